//! Who of an organisation's users is connected. Whoever has a token joins, beats and leaves for connections of its own,
//! and sees those of all.
//!
//! A connection is known to the store as `<user>:<connection>`: nobody can touch another's, whatever it is called.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use cache_core::key::{push_segment, unescape, validate};
use cache_core::{Clock, KeyError, Member, PresenceError, PresenceOptions, Present, UserId};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use org_resolution::rejection::RETRY_LATER;
use org_resolution::{Org, Problem, Token};
use serde_json::{Value, json};

use crate::routes::v1::instant;
use crate::state::AppState;

/// Members shown at once.
const SHOWN: usize = 1_000;

/// Joins, or keeps a connection alive for another [`ttl`](PresenceOptions::ttl): 201 when it is new or had ended, else
/// 200. Ask for it again well before `expires_in` seconds are over, a quarter of them as a rule.
///
/// # Errors
/// `invalid_connection`; `store_unavailable`; those of the layers in front.
///
/// # Cancel safety
/// A request that is given up may have joined.
pub async fn put(
    State(state): State<AppState>,
    Org(org): Org,
    Token(token): Token,
    connection: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (connection, id) = id_of(&token.user, connection)?;
    let presence = state.app().presence();
    let lives = presence.heartbeat(&org.id, &id).await.map_err(problem)?;
    if !lives {
        let member = Member { user_id: token.user.clone(), connected_at: Clock::system().unix_ms() };
        presence.join(&org.id, &id, &member).await.map_err(problem)?;
    }
    state.connections().beat(&org.id, &id);
    let status = if lives { StatusCode::OK } else { StatusCode::CREATED };
    let expires_in = PresenceOptions::default().ttl.as_secs();
    let body = json!({ "user": token.user, "connection": connection, "expires_in": expires_in });
    Ok((status, NO_STORE, Json(body)).into_response())
}

/// Ends a connection. Idempotent.
///
/// # Errors
/// As [`put`].
///
/// # Cancel safety
/// A request that is given up may have ended it.
pub async fn delete(
    State(state): State<AppState>,
    Org(org): Org,
    Token(token): Token,
    connection: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let (_, id) = id_of(&token.user, connection)?;
    state.app().presence().leave(&org.id, &id).await.map_err(problem)?;
    state.connections().left(&org.id, &id);
    Ok(StatusCode::NO_CONTENT)
}

/// The connections of all users of the organisation, by user and connection: how many, and the first 1 000 of them.
///
/// # Errors
/// `store_unavailable`; those of the layers in front.
pub async fn list(
    State(state): State<AppState>,
    Org(org): Org,
    Token(_): Token,
) -> Result<Response, Problem> {
    let living = state.app().presence().list(&org.id).await.map_err(problem)?;
    let members: Vec<Value> = living.iter().take(SHOWN).map(shown).collect::<Result<_, _>>()?;
    Ok((NO_STORE, Json(json!({ "count": living.len(), "members": members }))).into_response())
}

/// What is kept would be wrong a moment later.
const NO_STORE: [(http::HeaderName, &str); 1] = [(CACHE_CONTROL, "no-store")];

/// The connection as its user calls it, and as the store knows it.
fn id_of(
    user: &UserId,
    connection: Result<Path<String>, PathRejection>,
) -> Result<(String, String), Problem> {
    let Path(connection) = connection.map_err(|rejection| invalid(&rejection.body_text()))?;
    validate(&connection).map_err(refused)?;
    let mut id = String::with_capacity(user.as_str().len() + connection.len() + 1);
    push_segment(&mut id, user.as_str());
    id.push(':');
    push_segment(&mut id, &connection);
    Ok((connection, id))
}

fn shown(present: &Present) -> Result<Value, Problem> {
    // What others put under our keys is shown as they call it.
    let own = present.connection.split_once(':').and_then(|(_, connection)| unescape(connection));
    let connection = own.as_deref().unwrap_or(&present.connection);
    let connected_at = instant(i64::try_from(present.member.connected_at).unwrap_or(i64::MAX))?;
    Ok(json!({ "user": present.member.user_id, "connection": connection, "connected_at": connected_at }))
}

fn problem(error: PresenceError) -> Problem {
    match error {
        PresenceError::InvalidConnection(error) => refused(error),
        PresenceError::Full { .. } => {
            tracing::warn!(%error, "nobody else can join");
            Problem::unavailable("No more connections can be kept now.", RETRY_LATER)
        }
        error => {
            tracing::warn!(%error, "presence cannot be told");
            Problem::unavailable("Who is connected cannot be told now.", RETRY_LATER)
        }
    }
}

fn refused(error: KeyError) -> Problem {
    invalid(&error.to_string())
}

fn invalid(why: &str) -> Problem {
    let detail = format!("This cannot be the name of a connection: {why}.");
    Problem::new(StatusCode::BAD_REQUEST, "invalid_connection", detail)
}
