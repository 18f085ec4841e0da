//! What an organisation's users see.

use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::HeaderName;
use http::header::CACHE_CONTROL;
use org_resolution::layer::Resolution;
use org_resolution::{Org, Problem, Token};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

/// Milliseconds since 1970 as a date and time.
///
/// # Errors
/// `internal` for a time beyond the calendar.
pub(crate) fn instant(ms: i64) -> Result<String, Problem> {
    let at = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).ok_or_else(Problem::internal)
}
