//! The routes, and what every request passes on its way to them.
//!
//! ```text
//! public:     door (counts) ─┬─► /healthz
//!                            └─► door (place, time) ─► OrgLayer (whose is it?) ─► /v1/…  limit `api` ─► v1
//! operators:  door (counts, time) ─┬─► /healthz /readyz /metrics   health
//!                                  └─► /admin/…  token ─► limit `mutation` ─► admin_*
//! ```
//!
//! | you look for | module |
//! |---|---|
//! | limits of size and time, metrics | [`door`] |
//! | is it alive, is it ready | [`health`] |
//! | what an organisation's users see | [`v1`] |
//! | who of them is connected | [`presence`] |
//! | who may use `/admin` | [`admin_auth`] |
//! | organisations and tokens for operators | [`admin_orgs`] |
//! | caches for operators | [`admin_cache`] |

pub mod admin_auth;
pub mod admin_cache;
pub mod admin_orgs;
pub mod door;
pub mod health;
pub mod presence;
pub mod v1;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use http::HeaderName;
use org_resolution::{OrgLayer, RateLimitLayer, SourceConfig, Strategy, TokenLayer};
use tower::Layer;

use crate::settings::ServerSettings;
use crate::state::AppState;

/// The largest body of a request, in bytes: the largest organisation with room for its JSON.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// Paths that belong to no organisation, whatever is answered there and on which listener.
const EXEMPT: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/admin"];

/// What anybody may reach. It needs the peer's address as connect info.
pub fn public(state: AppState, settings: &ServerSettings) -> Router {
    let routes = Router::new()
        .nest("/v1", v1_routes(&state))
        .fallback(door::not_found)
        .method_not_allowed_fallback(door::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(door::named))
        .with_state(state.clone());
    // Around the routes: the path form is taken off before routing.
    let orgs = OrgLayer::new(sources(settings), state.orgs().resolver().clone());
    let (limits, names) = (state.app().rate_limiter(), state.app().quotas().names.clone());
    let resolved = orgs.limiting_unknown_names(limits, names).layer(routes);
    let timed = Router::new()
        .fallback_service(resolved)
        .layer(from_fn_with_state(state.clone(), door::in_time))
        .layer(from_fn_with_state(state, door::in_place));
    // Not among the requests that wait for a place: a busy server is alive.
    Router::new()
        .route("/healthz", get(health::healthz))
        .method_not_allowed_fallback(door::method_not_allowed)
        .layer(from_fn(door::named))
        .fallback_service(timed)
        .layer(from_fn(door::counted))
        .layer(from_fn(door::unkept))
}

/// What operators and their tools reach, on a listener of its own: no path of an organisation leads here. It needs the
/// peer's address as connect info.
pub fn operators(state: AppState, settings: &ServerSettings) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .nest("/admin", admin_routes(&state))
        .fallback(door::not_found)
        .method_not_allowed_fallback(door::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(door::named))
        .layer(from_fn_with_state(settings.trusted_proxies.clone(), door::from_client))
        .layer(from_fn_with_state(state.clone(), door::in_time))
        .layer(from_fn(door::counted))
        .layer(from_fn(door::unkept))
        .with_state(state)
}

fn v1_routes(state: &AppState) -> Router<AppState> {
    let (limits, quotas) = (state.app().rate_limiter(), state.app().quotas());
    let limited = RateLimitLayer::new(Arc::clone(&limits), quotas.api.clone());
    let tokens = TokenLayer::new(state.orgs().token_service().clone());
    let tokens = tokens.limiting_failures(limits, quotas.auth.clone());
    // The token first: those who have one are counted by user.
    let users = Router::new()
        .route("/me", get(v1::me))
        .route("/presence", get(presence::list))
        .route("/presence/{connection}", put(presence::put).delete(presence::delete))
        .layer(limited.clone())
        .layer(tokens);
    Router::new().route("/org", get(v1::org)).fallback(door::not_found).layer(limited).merge(users)
}

fn admin_routes(state: &AppState) -> Router<AppState> {
    let (limits, quotas) = (state.app().rate_limiter(), state.app().quotas());
    let writes = Router::new()
        .route("/orgs/{slug}", put(admin_orgs::put).delete(admin_orgs::remove))
        .route("/orgs/{slug}/rename", post(admin_orgs::rename))
        .route("/orgs/{slug}/tokens", post(admin_orgs::make_token))
        .route("/orgs/{slug}/tokens/{id}", delete(admin_orgs::revoke_token))
        .route("/cache/invalidate", post(admin_cache::invalidate))
        .route_layer(RateLimitLayer::new(limits, quotas.mutation.clone()));
    Router::new()
        .route("/orgs", get(admin_orgs::list))
        .route("/cache", get(admin_cache::report))
        .merge(writes)
        .fallback(door::not_found)
        .layer(from_fn_with_state(state.clone(), admin_auth::require))
}

fn sources(settings: &ServerSettings) -> SourceConfig {
    let strategies = vec![
        Strategy::Host { base_domain: settings.base_domain.clone() },
        Strategy::Path,
        Strategy::Header(HeaderName::from_static("x-org-slug")),
        Strategy::CustomDomain,
    ];
    let config = SourceConfig::new(strategies).trusting(settings.trusted_proxies.clone());
    EXEMPT.iter().fold(config, |config, path| config.exempting(*path))
}
