//! What an organisation's users see.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cache_core::RateLimitError;
use http::HeaderName;
use http::header::CACHE_CONTROL;
use org_resolution::layer::{ClientIp, Resolution};
use org_resolution::{Org, OrgContext, Problem, Token};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::limits;
use crate::state::AppState;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The organisation of the request; never a secret.
pub async fn org(Org(org): Org, Extension(resolution): Extension<Resolution>) -> Response {
    let headers = [(CACHE_STATUS, resolution.cache_status())];
    // What a client keeps could not be made to forget.
    (headers, [(CACHE_CONTROL, "no-store")], Json(org.public())).into_response()
}

/// Whose token it is.
///
/// # Errors
/// `unauthorized`, `invalid_token`, `org_mismatch` from the layer in front; `internal` for an end beyond the calendar.
pub async fn me(Org(org): Org, Token(token): Token) -> Result<Json<Value>, Problem> {
    let expires_at = instant(i64::try_from(token.expires_at).unwrap_or(i64::MAX))?;
    Ok(Json(json!({
        "org": org.slug, "user": token.user, "scopes": token.scopes, "expires_at": expires_at,
    })))
}

/// Limits requests by preset `api`, per organisation and client; those without an organisation per client.
pub async fn limited(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let quota = &state.app().quotas().api;
    let (limits, key) = (state.app().rate_limiter(), key_of(&request));
    match limits::check(&*limits, quota, &key).await.map_err(Problem::from) {
        Err(problem) => problem.into_response(),
        Ok(decision) => {
            let mut response = match decision.into_result() {
                Ok(_) => next.run(request).await,
                Err(refused) => Problem::from(RateLimitError::from(refused)).into_response(),
            };
            limits::describe(&mut response, quota, &decision);
            response
        }
    }
}

fn key_of(request: &Request) -> String {
    let org = request.extensions().get::<Arc<OrgContext>>();
    let client = request.extensions().get::<ClientIp>().map(|client| client.0);
    limits::key_of(org.map_or("", |org| org.id.as_str()), None, client)
}

/// Milliseconds since 1970 as a date and time.
///
/// # Errors
/// `internal` for a time beyond the calendar.
pub(crate) fn instant(ms: i64) -> Result<String, Problem> {
    let at = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).ok_or_else(Problem::internal)
}
