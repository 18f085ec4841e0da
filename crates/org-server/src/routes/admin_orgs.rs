//! Organisations and tokens for operators.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, StatusCode};
use org_resolution::{OrgContext, Problem, Slug};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::draft::OrgDraft;
use crate::orgs::provision::{self, Changed, UNNOTIFIED_BOUND};
use crate::orgs::tokens::TokenDraft;
use crate::routes::v1::instant;
use crate::state::AppState;
use crate::store::orgs::MAX_PAGE;

/// `pending` when a change is stored and not every server could be notified yet; `bound` is how many seconds those may go on
/// with what they have cached.
const CACHE_INVALIDATION: HeaderName = HeaderName::from_static("cache-invalidation");

/// How many organisations a page has unless asked otherwise.
const DEFAULT_PAGE: u32 = 50;

/// Which page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// The last slug of the page before.
    after: Option<String>,
    /// How many, at most [`MAX_PAGE`].
    limit: Option<u32>,
}

/// The organisations in the order of their slugs, whatever their status; `next` is the `after` of the next
/// page.
///
/// # Errors
/// `invalid_query`, `store_unavailable`.
pub async fn list(
    State(state): State<AppState>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(page) = page
        .map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, "invalid_query", rejection.body_text()))?;
    let limit = page.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let orgs = state.orgs().page(page.after.as_deref(), limit).await?;
    let next = orgs.last().filter(|_| orgs.len() as u64 == u64::from(limit)).map(|org| org.slug.clone());
    Ok(Json(json!({ "orgs": orgs.iter().map(shown).collect::<Vec<_>>(), "next": next })))
}

/// Creates (201) or changes (200) an organisation; what the body leaves out stays.
///
/// # Errors
/// `invalid_slug`, `slug_reserved`, `invalid_body`, `conflict`, `store_unavailable`.
pub async fn put(
    State(state): State<AppState>,
    Path(slug): Path<String>,
    body: Result<Json<OrgDraft>, JsonRejection>,
) -> Result<Response, Problem> {
    let slug = provision::slug(&slug)?;
    let Json(draft) = body?;
    let orgs = state.orgs().clone();
    let changed = state.to_its_end(async move { orgs.put(&slug, draft).await }).await?;
    let status = if changed.is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(answer(status, &changed))
}

/// The new slug.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    slug: String,
}

/// Gives an organisation another slug.
///
/// # Errors
/// `invalid_slug`, `slug_reserved`, `invalid_body`, `org_not_found`, `slug_taken`, `store_unavailable`.
pub async fn rename(
    State(state): State<AppState>,
    Path(slug): Path<String>,
    body: Result<Json<Rename>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(to) = body?;
    let (slug, to): (Slug, Slug) = (provision::slug(&slug)?, provision::slug(&to.slug)?);
    let orgs = state.orgs().clone();
    let changed = state.to_its_end(async move { orgs.rename(&slug, &to).await }).await?;
    Ok(answer(StatusCode::OK, &changed))
}

/// Removes an organisation with its tokens.
///
/// # Errors
/// `invalid_slug`, `org_not_found`, `store_unavailable`.
pub async fn remove(State(state): State<AppState>, Path(slug): Path<String>) -> Result<Response, Problem> {
    let slug = provision::slug(&slug)?;
    let orgs = state.orgs().clone();
    let changed = state.to_its_end(async move { orgs.remove(&slug).await }).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    tell(&mut response, changed.told);
    Ok(response)
}

/// Makes a token; its text is in this answer and nowhere else.
///
/// # Errors
/// `invalid_slug`, `invalid_body`, `org_not_found`, `store_unavailable`.
pub async fn make_token(
    State(state): State<AppState>,
    Path(slug): Path<String>,
    body: Result<Json<TokenDraft>, JsonRejection>,
) -> Result<Response, Problem> {
    let slug = provision::slug(&slug)?;
    let Json(draft) = body?;
    let orgs = state.orgs().clone();
    let made = state.to_its_end(async move { orgs.make_token(&slug, draft).await }).await?;
    let body = json!({
        "id": made.id, "token": made.token.expose_secret(), "expires_at": instant(made.expires_at)?,
    });
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// Revokes a token.
///
/// # Errors
/// `invalid_slug`, `org_not_found`, `not_found`, `store_unavailable`.
pub async fn revoke_token(
    State(state): State<AppState>,
    Path((slug, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let slug = provision::slug(&slug)?;
    let orgs = state.orgs().clone();
    let told = state.to_its_end(async move { orgs.revoke_token(&slug, &id).await }).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    tell(&mut response, told);
    Ok(response)
}

fn answer(status: StatusCode, changed: &Changed) -> Response {
    let mut response = (status, Json(shown(&changed.org))).into_response();
    tell(&mut response, changed.told);
    response
}

fn tell(response: &mut Response, told: bool) {
    if !told {
        let pending = format!("pending; bound={}", UNNOTIFIED_BOUND.as_secs());
        let pending = HeaderValue::try_from(pending).expect("a number and ASCII make a header");
        response.headers_mut().insert(CACHE_INVALIDATION, pending);
    }
}

/// What operators see: of secrets the names.
fn shown(org: &OrgContext) -> Value {
    let mut shown = org.public();
    shown["custom_domain"] = json!(org.custom_domain);
    shown["secrets"] = json!(org.secrets.keys().collect::<Vec<_>>());
    shown
}
