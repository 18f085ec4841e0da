//! Organisations as this server keeps them: database, sealed secrets and caches together.
//!
//! | you look for | module |
//! |---|---|
//! | looking up | here |
//! | creating, changing, renaming, removing, importing | [`provision`] |
//! | tokens | [`tokens`] |
//! | the proof of the master keys, and changing to another | [`keys`], [`rotate`] |
//! | propagating what a server left | [`outbox`] |

pub mod keys;
pub mod outbox;
pub mod provision;
pub mod rotate;
pub mod tokens;

use std::sync::Arc;

use app_builder::AppService;
use async_trait::async_trait;
use cache_core::{CacheError, Clock};
use org_resolution::{
    DirectoryError, KeyRing, OrgContext, OrgDirectory, OrgId, OrgResolver, SealError, Slug, TokenPolicy,
    TokenService,
};
use secrecy::SecretString;
use tenant_cache::Caches;

use crate::orgs::outbox::Outbox;
use crate::orgs::tokens::StoredTokens;
use crate::store::{OrgRow, Store, StoreError};

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
    /// Secrets were sealed with keys that the ring has not.
    #[error(
        "secrets of this database are sealed with {keys}, which is not in the key ring: add it, and drop it only when \
         `org-server rotate-keys` counts none under it"
    )]
    MissingKeys {
        /// Their ids, each with the number of secrets and one of them.
        keys: String,
    },
    /// The key that shall seal is none of the ring.
    #[error("is {id}, which no key of ORG_MASTER_KEY has")]
    NoSuchKey {
        /// Its id.
        id: u32,
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
    caches: Caches,
    outbox: Outbox,
}

impl Orgs {
    /// Organisations of a database, through the caches of an application, which should seal with the same ring. Proves
    /// first that the ring has the key that the database was sealed with, and one for every secret; a new database
    /// remembers it. Seals nothing again.
    ///
    /// # Errors
    /// [`OrgsError::MasterKey`] and [`OrgsError::MissingKeys`] before anything else was done; [`OrgsError::Store`];
    /// [`OrgsError::Caches`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(store: Store, app: &AppService, ring: Arc<KeyRing>) -> Result<Self, OrgsError> {
        keys::prove(&store, &ring).await?;
        keys::check(&store, &ring).await?;
        Self::assemble(store, app, ring)
    }

    /// As [`open`](Self::open), to [`rotate`](Self::rotate): also when there are secrets without a key, which are then
    /// named.
    ///
    /// # Errors
    /// As there, without [`OrgsError::MissingKeys`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open_to_rotate(
        store: Store,
        app: &AppService,
        ring: Arc<KeyRing>,
    ) -> Result<Self, OrgsError> {
        keys::prove(&store, &ring).await?;
        Self::assemble(store, app, ring)
    }

    fn assemble(store: Store, app: &AppService, ring: Arc<KeyRing>) -> Result<Self, OrgsError> {
        let directory = Arc::new(StoredOrgs(store.clone()));
        let resolver = OrgResolver::new(app.caches(), directory)?;
        let validator = Arc::new(StoredTokens(store.clone()));
        let tokens = TokenService::new(app.caches(), validator, TokenPolicy::default(), Clock::system())?;
        let tokens = tokens.refusing_unless(tokens::is_well_formed);
        let (caches, outbox) = (app.caches().clone(), Outbox::default());
        Ok(Self(Arc::new(Inner { store, ring, resolver, tokens, caches, outbox })))
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
