//! Organisations as this server keeps them: database, sealed secrets and caches together.
//!
//! | you look for | module |
//! |---|---|
//! | looking up, and the proof of the master key | here |
//! | creating, changing, renaming, removing, importing | [`provision`] |
//! | tokens | [`tokens`] |

pub mod provision;
pub mod tokens;

use std::sync::Arc;

use app_builder::AppService;
use async_trait::async_trait;
use cache_core::{CacheError, Clock};
use org_resolution::secret::Sealed;
use org_resolution::{
    DirectoryError, KeyRing, OrgContext, OrgDirectory, OrgId, OrgResolver, SealError, Slug, TokenPolicy,
    TokenService,
};
use secrecy::{ExposeSecret, SecretString};

use crate::orgs::tokens::StoredTokens;
use crate::store::{OrgRow, Store, StoreError};

/// The name of the record that only the right master key opens.
const CANARY: &str = "master-key-canary";
/// What the record says, and for whom and which field it is sealed: nobody's.
const CANARY_TEXT: &str = "the master key is right";
const CANARY_ORG: &str = "org-server";

/// Why organisations cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrgsError {
    /// The master key is none, or not the one this database's secrets were sealed with.
    #[error("the master key does not fit this database: {reason}")]
    MasterKey {
        /// Why; never with the key.
        reason: SealError,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caches could not be defined.
    #[error(transparent)]
    Caches(#[from] CacheError),
}

/// The organisations. Clones share everything.
#[derive(Debug, Clone)]
pub struct Orgs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    ring: Arc<KeyRing>,
    resolver: OrgResolver,
    tokens: TokenService,
}

impl Orgs {
    /// Organisations of a database, through the caches of an application, which should seal with the same ring. Proves first that the master key is
    /// the one the database's secrets were sealed with; a new database remembers it. When the ring has a newer
    /// key than that, every secret is sealed anew with the newest one.
    ///
    /// # Errors
    /// [`OrgsError::MasterKey`] before anything else was done; [`OrgsError::Store`]; [`OrgsError::Caches`].
    ///
    /// # Cancel safety
    /// A dropped call may have sealed some secrets anew; the next one goes on.
    pub async fn open(store: Store, app: &AppService, ring: Arc<KeyRing>) -> Result<Self, OrgsError> {
        let wrong = |reason| OrgsError::MasterKey { reason };
        let nobody = canary_org();
        let fresh = ring.seal(&nobody, CANARY, CANARY_TEXT);
        let canary = Sealed::from_bytes(store.fact_or_insert(CANARY, fresh.as_bytes()).await?);
        ring.open(&nobody, CANARY, &canary).map_err(wrong)?;
        let directory = Arc::new(StoredOrgs(store.clone()));
        let resolver = OrgResolver::new(app.caches(), directory)?;
        let validator = Arc::new(StoredTokens(store.clone()));
        let tokens = TokenService::new(app.caches(), validator, TokenPolicy::default(), Clock::system())?;
        let tokens = tokens.refusing_unless(tokens::is_well_formed);
        let is_current = ring.is_current(&canary);
        let orgs = Self(Arc::new(Inner { store, ring, resolver, tokens }));
        if !is_current {
            orgs.seal_anew().await?;
            orgs.0.store.set_fact(CANARY, fresh.as_bytes()).await?;
        }
        Ok(orgs)
    }

    /// Looks organisations up through the caches; for the layer that resolves requests.
    #[must_use]
    pub fn resolver(&self) -> &OrgResolver {
        &self.0.resolver
    }

    /// Validates tokens through the cache; for the layer that reads them.
    #[must_use]
    pub fn token_service(&self) -> &TokenService {
        &self.0.tokens
    }

    /// The slug of some organisation that may be used, the first in their order among the first ones.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn any_active(&self) -> Result<Option<String>, StoreError> {
        let page = self.0.store.org_page(None, crate::store::orgs::MAX_PAGE).await?;
        Ok(page.into_iter().find(|row| row.status == "active").map(|row| row.slug))
    }

    /// Opens a secret of an organisation.
    ///
    /// # Errors
    /// [`SealError`]; `Ok(None)` when there is none under this name.
    pub fn secret(&self, org: &OrgContext, field: &str) -> Result<Option<SecretString>, SealError> {
        org.secrets.get(field).map(|sealed| self.0.ring.open(&org.id, field, sealed)).transpose()
    }

    /// Seals every secret with the newest key of the ring, organisation by organisation.
    async fn seal_anew(&self) -> Result<(), OrgsError> {
        tracing::info!("the key ring has a newer master key: sealing secrets anew");
        let mut after: Option<String> = None;
        loop {
            let page = self.0.store.org_page(after.as_deref(), crate::store::orgs::MAX_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.slug.clone());
            for row in
                page.iter().filter(|row| row.secrets.values().any(|sealed| !self.0.ring.is_current(sealed)))
            {
                let put = |before: Option<&OrgRow>| self.sealed_anew(before.unwrap_or(row));
                self.0.store.put_org(&row.slug, put).await?;
            }
        }
    }

    fn sealed_anew(&self, row: &OrgRow) -> Result<OrgRow, OrgsError> {
        let id = org_id(row)?;
        let mut row = row.clone();
        for (field, sealed) in &mut row.secrets {
            let opened = self.0.ring.open(&id, field, sealed);
            let secret = opened.map_err(|reason| OrgsError::MasterKey { reason })?;
            *sealed = self.0.ring.seal(&id, field, secret.expose_secret());
        }
        Ok(row)
    }
}

/// The keys that secrets and cached entries are sealed with.
///
/// # Errors
/// [`OrgsError::MasterKey`] when the text is none; it is not repeated.
pub fn key_ring(master_key: &SecretString) -> Result<Arc<KeyRing>, OrgsError> {
    let ring = KeyRing::parse(master_key.expose_secret());
    ring.map(Arc::new).map_err(|reason| OrgsError::MasterKey { reason })
}

fn canary_org() -> OrgId {
    OrgId::new(CANARY_ORG).expect("a short text is an id")
}

fn org_id(row: &OrgRow) -> Result<OrgId, StoreError> {
    OrgId::new(row.id.as_str()).map_err(|_| StoreError::Damaged { what: "id" })
}

/// What is cached and handed to handlers.
fn context(row: OrgRow) -> Result<OrgContext, StoreError> {
    Ok(OrgContext {
        id: org_id(&row)?,
        slug: row.slug.parse().map_err(|_| StoreError::Damaged { what: "slug" })?,
        name: row.name,
        plan: row.plan,
        status: row.status.into(),
        settings: row.settings,
        custom_domain: row.custom_domain,
        token_generation: u64::try_from(row.token_generation).unwrap_or(0),
        secrets: row.secrets,
    })
}

/// The database as the port that resolution asks for.
#[derive(Debug)]
struct StoredOrgs(Store);

#[async_trait]
impl OrgDirectory for StoredOrgs {
    async fn org_by_slug(&self, slug: &Slug) -> Result<Option<OrgContext>, DirectoryError> {
        answer(self.0.org_by_slug(slug.as_str()).await)
    }

    async fn org_by_id(&self, id: &OrgId) -> Result<Option<OrgContext>, DirectoryError> {
        answer(self.0.org_by_id(id.as_str()).await)
    }

    async fn org_by_domain(&self, domain: &str) -> Result<Option<OrgContext>, DirectoryError> {
        answer(self.0.org_by_domain(domain).await)
    }
}

fn answer(found: Result<Option<OrgRow>, StoreError>) -> Result<Option<OrgContext>, DirectoryError> {
    found.and_then(|row| row.map(context).transpose()).map_err(DirectoryError::new)
}
