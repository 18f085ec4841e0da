//! Caches for operators: what they have done, and making them forget. Metadata only, never a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use cache_core::key::{KeyParts, Owner};
use cache_core::{CacheError, TenantId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tenant_cache::Stats;

use crate::state::AppState;
use org_resolution::rejection::{Problem, RETRY_LATER};

/// What the caches of this process have done.
#[derive(Debug, Serialize)]
pub struct CacheReport {
    /// `memory` or `redis`.
    pub backend: &'static str,
    /// By domain.
    pub domains: BTreeMap<Arc<str>, DomainReport>,
    /// How invalidations travel.
    pub bus: BusReport,
}

/// What one domain's cache has done.
#[derive(Debug, Serialize)]
pub struct DomainReport {
    /// Share of look-ups answered without loading, 0 to 1; `null` before the first.
    pub hit_ratio: Option<f64>,
    /// All look-ups answered without loading.
    pub hits: u64,
    /// The counts one by one.
    #[serde(flatten)]
    pub stats: Stats,
}

/// How the bus is.
#[derive(Debug, Serialize)]
pub struct BusReport {
    /// `trusted`, `starting`, `recovering` or `down`, as `/readyz` says.
    pub health: &'static str,
    /// Messages sent.
    pub published: u64,
    /// Messages received from others.
    pub received: u64,
    /// Announcements that failed and are being repeated.
    pub pending: u64,
    /// Messages that were not understood.
    pub malformed: u64,
    /// Skipped sequence numbers.
    pub gaps: u64,
    /// Times the subscription was made anew.
    pub reconnects: u64,
    /// Times all memory was emptied.
    pub flushes: u64,
    /// Times a subscriber panicked.
    pub panics: u64,
    /// The last round trip through the bus, in milliseconds.
    pub lag_ms: Option<f64>,
}

/// Answers [`CacheReport`].
pub async fn report(State(state): State<AppState>) -> Json<CacheReport> {
    let domain = |stats: Stats| {
        let asked = stats.hits() + stats.misses;
        let hit_ratio = (asked > 0).then(|| stats.hits() as f64 / asked as f64);
        DomainReport { hit_ratio, hits: stats.hits(), stats }
    };
    let caches = state.app().caches();
    let bus = caches.bus().state();
    Json(CacheReport {
        backend: match &state.app().settings().backend {
            app_builder::Backend::Memory => "memory",
            _ => "redis",
        },
        domains: caches.stats().into_iter().map(|(name, stats)| (name, domain(stats))).collect(),
        bus: BusReport {
            health: bus.health.as_str(),
            published: bus.published,
            received: bus.received,
            pending: bus.pending,
            malformed: bus.malformed,
            gaps: bus.gaps,
            reconnects: bus.reconnects,
            flushes: bus.flushes,
            panics: bus.panics,
            lag_ms: bus.lag.map(|lag| lag.as_secs_f64() * 1000.0),
        },
    })
}

/// What to forget: `key` (a full key text, or with `domain` a key within it, with `tenant` the tenant's);
/// `domain` (every tenant's, or with `tenant` one's); `prefix` of full key texts; `tag` (with `tenant` the tenant's,
/// alone that of no tenant).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    domain: Option<String>,
    key: Option<String>,
    tenant: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
}

/// What was forgotten.
#[derive(Debug, Serialize)]
pub struct Forgotten {
    /// How many entries the shared tier held, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
    /// The full key text, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Makes every instance forget what the body names.
///
/// # Errors
/// `invalid_body`; `store_unavailable` when not every instance could be told.
pub async fn invalidate(
    State(state): State<AppState>,
    body: Result<Json<Forget>, JsonRejection>,
) -> Result<Json<Forgotten>, Problem> {
    let Json(what) = body?;
    let tenant = what.tenant.as_deref().map(TenantId::new).transpose();
    let tenant = tenant.map_err(|error| Problem::invalid_body(vec![format!("`tenant`: {error}")]))?;
    state.clone().to_its_end(async move { forget(&state, what, tenant).await.map(Json) }).await
}

async fn forget(state: &AppState, what: Forget, tenant: Option<TenantId>) -> Result<Forgotten, Problem> {
    let caches = state.app().caches();
    let Forget { domain, key, prefix, tag, .. } = what;
    match (domain, key, prefix, tag) {
        (domain, Some(key), None, None) => {
            let text = match domain {
                Some(domain) => {
                    let owner = tenant.map_or(Owner::Global, Owner::Tenant);
                    KeyParts { owner, domain: domain.into(), key: key.into() }.to_text()
                }
                None if tenant.is_some() => return Err(unclear()),
                None => key,
            };
            caches.invalidate_keys(&[&text]).await.map_err(problem)?;
            Ok(Forgotten { removed: None, key: Some(text) })
        }
        (None, None, Some(prefix), None) if tenant.is_none() => {
            let removed = caches.invalidate_prefix(&prefix).await.map_err(problem)?;
            Ok(Forgotten { removed: Some(removed), key: None })
        }
        (None, None, None, Some(tag)) => {
            caches.invalidate_tag(tenant.as_ref(), &tag).await.map_err(problem)?;
            Ok(Forgotten { removed: None, key: None })
        }
        (Some(domain), None, None, None) => {
            caches.invalidate_domain(tenant.as_ref(), &domain).await.map_err(problem)?;
            Ok(Forgotten { removed: None, key: None })
        }
        _ => Err(unclear()),
    }
}

fn unclear() -> Problem {
    let detail = "Name one of: `key`; `domain` and `key`, with `tenant` if it is one's; `domain`, with `tenant` if \
                  it is one's; `prefix`; `tag`, with `tenant` if it is one's.";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", detail)
}

fn problem(error: CacheError) -> Problem {
    match error {
        CacheError::InvalidKey(_) | CacheError::Configuration { .. } => {
            Problem::invalid_body(vec![error.to_string()])
        }
        error => {
            tracing::warn!(%error, "an invalidation could not be told to every instance; it is being repeated");
            Problem::unavailable(
                "Not every instance could be told; this is repeated until it has succeeded.",
                RETRY_LATER,
            )
        }
    }
}
