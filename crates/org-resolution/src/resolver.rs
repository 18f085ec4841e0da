//! Looking organisations up, through the cache.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, LoadError, Scope};
use metrics::counter;
use tenant_cache::{Caches, NegativeTier, Source, TenantCache};

use crate::directory::{DirectoryError, OrgDirectory};
use crate::org::{OrgContext, OrgId, OrgStatus, Slug};
use crate::rejection::{Problem, RETRY_LATER};

/// How long an organisation is cached. Default of [`OrgResolver::new`]: 300 s.
pub const ORG_TTL: Duration = Duration::from_secs(300);

/// How long after [`ORG_TTL`] an organisation is still served when the directory cannot answer: an outage of the database
/// of ten minutes is none of what was in use. One that was changed was forgotten, and is not served.
pub const ORG_STALE_IF_ERROR: Duration = Duration::from_secs(600);

/// The longest a look-up in the directory may take: a caller waits no longer for a database that hangs.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds organisations by slug, id or host, each looked up at most once at a time in the whole fleet.
///
/// Entries stand under `org:<slug>`, `org:id:<id>` and `org:domain:<host>`, for [`ORG_TTL`]. "There is no such
/// organisation" is remembered for 30 s, in this process only: anybody can invent names, and must not fill the
/// shared tier with them. When the directory fails what was
/// known is served for [`ORG_STALE_IF_ERROR`] more.
#[derive(Debug, Clone)]
pub struct OrgResolver {
    by_slug: TenantCache<Slug, OrgContext>,
    by_id: TenantCache<OrgId, OrgContext>,
    by_domain: TenantCache<String, OrgContext>,
}

/// An organisation, and who knew it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The organisation.
    pub org: Arc<OrgContext>,
    /// Which tier knew it.
    pub source: Source,
}

/// A change that was committed.
#[derive(Debug, Clone)]
#[must_use = "the other instances may not have been told"]
pub struct Changed<T> {
    /// What the commit answered.
    pub value: T,
    /// Whether all instances were notified. If not it is repeated in the background while this process lives; until then
    /// they may go on with what they have cached, for at most [`ORG_TTL`].
    pub told: Result<(), CacheError>,
}

impl OrgResolver {
    /// A resolver on a directory, with its three caches in `caches`. Another one on the same `Arc` shares them.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when the domains `org`, `org:id` or `org:domain` are in use for something
    /// else, as by a resolver on another directory.
    pub fn new(caches: &Caches, directory: Arc<dyn OrgDirectory>) -> Result<Self, CacheError> {
        // The loaders hold it: no other directory has its address as long as the caches are there.
        let version = format!("directory {:p}", Arc::as_ptr(&directory));
        let (slugs, ids, domains) = (Arc::clone(&directory), Arc::clone(&directory), directory);
        Ok(Self {
            by_slug: org_domain(caches, "org", &version).load(move |slug: Slug| {
                let directory = Arc::clone(&slugs);
                async move { directory.org_by_slug(&slug).await }
            })?,
            by_id: org_domain(caches, "org:id", &version).load(move |id: OrgId| {
                let directory = Arc::clone(&ids);
                async move { directory.org_by_id(&id).await }
            })?,
            by_domain: org_domain(caches, "org:domain", &version).load(move |domain: String| {
                let directory = Arc::clone(&domains);
                async move { directory.org_by_domain(&domain).await }
            })?,
        })
    }

    /// The usable organisation with a slug.
    ///
    /// # Errors
    /// A [`Problem`]: `org_not_found` (unknown, deleted), `org_suspended` (suspended, or a status this version
    /// does not know), `store_unavailable`.
    pub async fn by_slug(&self, slug: &Slug) -> Result<Resolved, Problem> {
        usable(found(&self.by_slug, slug, |org| org.slug == *slug).await)
    }

    /// The usable organisation with an id.
    ///
    /// # Errors
    /// As [`by_slug`](Self::by_slug).
    pub async fn by_id(&self, id: &OrgId) -> Result<Resolved, Problem> {
        usable(found(&self.by_id, id, |org| org.id == *id).await)
    }

    /// The usable organisation with a host of its own.
    ///
    /// # Errors
    /// As [`by_slug`](Self::by_slug).
    pub async fn by_domain(&self, domain: &str) -> Result<Resolved, Problem> {
        usable(self.found_by_domain(domain).await)
    }

    /// As [`by_domain`](Self::by_domain); `None` when nobody has this host.
    pub(crate) async fn by_domain_if_known(&self, domain: &str) -> Result<Option<Resolved>, Problem> {
        let found = self.found_by_domain(domain).await;
        match &found {
            Ok((None, _)) => Ok(None),
            // No organisation has a host that cannot even be a key.
            Err(CacheError::InvalidKey(_)) => Ok(None),
            _ => usable(found).map(Some),
        }
    }

    async fn found_by_domain(&self, domain: &str) -> Answer {
        let has_it =
            |org: &OrgContext| org.custom_domain.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(domain));
        found(&self.by_domain, &domain.to_owned(), has_it).await
    }

    /// Forgets everything under which these states of an organisation are known: what it was and what it is.
    ///
    /// # Errors
    /// [`CacheError`] when the other instances could not be told; it is repeated in the background.
    pub async fn forget(&self, states: &[&OrgContext]) -> Result<(), CacheError> {
        let slugs: Vec<Slug> = states.iter().map(|org| org.slug.clone()).collect();
        let ids: Vec<OrgId> = states.iter().map(|org| org.id.clone()).collect();
        let domains: Vec<String> = states.iter().filter_map(|org| org.custom_domain.clone()).collect();
        self.forget_names(&slugs, &ids, &domains).await
    }

    /// Forgets what is known under these slugs, ids and hosts.
    ///
    /// # Errors
    /// As [`forget`](Self::forget).
    ///
    /// # Cancel safety
    /// A dropped call may have forgotten some of them.
    pub async fn forget_names(
        &self,
        slugs: &[Slug],
        ids: &[OrgId],
        domains: &[String],
    ) -> Result<(), CacheError> {
        // All three, also when one fails.
        let (slugs, ids, domains) = tokio::join!(
            self.by_slug.invalidate_many(slugs),
            self.by_id.invalidate_many(ids),
            self.by_domain.invalidate_many(domains),
        );
        slugs.and(ids).and(domains)
    }

    /// Runs a change of an organisation and forgets it before the commit and after it. `states` are what it was
    /// and what it will be: a rename then forgets the old and the new slug.
    ///
    /// Coherence rests on the second time; the first one makes it likely that readers load anew also when this
    /// process dies in between. When the commit fails it is forgotten all the same: a commit whose answer was
    /// lost may have taken place.
    ///
    /// # Errors
    /// The commit's own.
    ///
    /// # Cancel safety
    /// Not safe between the commit and the second time: run it in a task of its own.
    pub async fn change<T, E>(
        &self,
        states: &[&OrgContext],
        commit: impl Future<Output = Result<T, E>>,
    ) -> Result<Changed<T>, E> {
        if let Err(error) = self.forget(states).await {
            tracing::warn!(%error, "an organisation about to change was not forgotten everywhere");
        }
        let committed = commit.await;
        let told = self.forget(states).await;
        if let Err(error) = &told {
            tracing::warn!(%error, "not every server could be told of a change; it is being repeated");
        }
        committed.map(|value| Changed { value, told })
    }

    /// Forgets a name nobody had until now, of which it may be remembered that it does not exist.
    ///
    /// # Errors
    /// As [`forget`](Self::forget).
    pub async fn forget_slug(&self, slug: &Slug) -> Result<(), CacheError> {
        self.by_slug.invalidate(slug).await
    }
}

/// The options all three caches share.
fn org_domain<K: tenant_cache::CacheKey>(
    caches: &Caches,
    name: &str,
    version: &str,
) -> tenant_cache::DomainBuilder<K, OrgContext> {
    caches
        .domain(name)
        .version(version)
        .scope(Scope::Global)
        .ttl(ORG_TTL)
        .stale_while_revalidate(Duration::ZERO)
        .stale_if_error(ORG_STALE_IF_ERROR)
        .negative_ttl(Duration::from_secs(30))
        .negative_tier(NegativeTier::Near)
        .capacity(10_000)
        .negative_capacity(10_000)
        .timeout(LOOKUP_TIMEOUT)
}

/// What was found, and who knew it.
type Answer = Result<(Option<Arc<OrgContext>>, Source), CacheError>;

/// Looks a key up, and compares what was found with what was asked, whichever tier it came from. Another organisation is
/// counted and asked for again at the directory; one that the directory itself confuses is not served.
async fn found<K: tenant_cache::CacheKey>(
    cache: &TenantCache<K, OrgContext>,
    key: &K,
    is_it: impl Fn(&OrgContext) -> bool,
) -> Answer {
    let found = cache.lookup(key).await?;
    if found.value.as_deref().is_none_or(&is_it) {
        return Ok((found.value, found.source));
    }
    counter!("org_mismatches_total").increment(1);
    tracing::warn!(cache = cache.domain(), source = ?found.source, "another organisation than the one asked for");
    let value = if found.source == Source::Origin { None } else { Box::pin(cache.refresh(key)).await? };
    Ok((value.filter(|org| is_it(org)), Source::Origin))
}

fn usable(found: Answer) -> Result<Resolved, Problem> {
    let (org, source) = found.map_err(|error| unavailable(&error))?;
    let org = org.ok_or_else(Problem::org_not_found)?;
    match org.status {
        OrgStatus::Active => Ok(Resolved { org, source }),
        OrgStatus::Deleted => Err(Problem::org_not_found()),
        // Closed, too, for a status that this version does not know.
        OrgStatus::Suspended | OrgStatus::Unknown(_) => Err(Problem::org_suspended()),
    }
}

fn unavailable(error: &CacheError) -> Problem {
    match error {
        CacheError::InvalidKey(_) => return Problem::org_not_found(),
        CacheError::Load(LoadError::Failed { source, .. }) if source.is::<DirectoryError>() => {
            tracing::warn!(%error, "an organisation could not be looked up");
        }
        CacheError::Load(LoadError::TimedOut { .. }) => {
            tracing::warn!(%error, "an organisation could not be looked up in time");
        }
        error => tracing::error!(%error, "an organisation could not be looked up"),
    }
    Problem::unavailable("Organisations cannot be looked up now.", RETRY_LATER)
}
