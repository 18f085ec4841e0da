//! Who may use `/admin`, and the record of what was done there.

use std::fmt;
use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method};
use metrics::counter;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::state::AppState;
use crate::telemetry::Seldom;
use org_resolution::Problem;
use org_resolution::layer::{ClientIp, bearer};
use org_resolution::rate_limit::{key_of, refusal};

/// The longest path of an audit line, in bytes.
const MAX_PATH: usize = 256;

/// The admin token, known by its digest: comparing digests takes the same time wherever two tokens differ and
/// however long they are.
pub struct AdminToken {
    digest: [u8; 32],
    refusals: Seldom,
}

impl AdminToken {
    /// Remembers a token.
    #[must_use]
    pub fn new(token: &SecretString) -> Self {
        Self { digest: digest(token), refusals: Seldom::default() }
    }

    fn is(&self, token: &SecretString) -> bool {
        digest(token).ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

/// Lets requests with the admin token pass, and records the writes among them.
///
/// The right token always passes: it has 128 bits at least, so that no number of guesses comes near it, and a limit
/// that refused it after the failures of others would only lock the operator out. Failed attempts are limited by preset
/// `auth`, by client, so that they cost little.
pub async fn require(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let client = request.extensions().get::<ClientIp>().map(|client| client.0);
    if let Err(problem) = authorize(&state, request.headers(), client).await {
        return problem.into_response();
    }
    let mut record = Record::of(&request, client);
    let response = next.run(request).await;
    if let Some(record) = &mut record {
        record.outcome = Some(response.status().as_u16());
    }
    response
}

async fn authorize(state: &AppState, headers: &HeaderMap, client: Option<IpAddr>) -> Result<(), Problem> {
    let token = bearer(headers)?;
    if state.admin().is(&token) {
        return Ok(());
    }
    counter!("admin_token_refusals_total").increment(1);
    if let Some(unsaid) = state.admin().refusals.may_say() {
        tracing::warn!(?client, unsaid, "a wrong admin token was refused");
    }
    // Operators belong to no organisation: they are counted by client.
    let (quota, key) = (&state.app().quotas().auth, key_of(None, None, client));
    let decision = state.app().rate_limiter().check(quota, &key, quota.cost).await?;
    Err(if decision.allowed { Problem::invalid_token() } else { refusal(quota, &decision) })
}

/// A write to be recorded; one that is dropped without an outcome was given up by its client or for its time, and goes
/// on to its end.
struct Record {
    method: Method,
    path: String,
    client: Option<IpAddr>,
    outcome: Option<u16>,
}

impl Record {
    /// Of reads there is none.
    fn of(request: &Request, client: Option<IpAddr>) -> Option<Self> {
        let method = request.method().clone();
        if method.is_safe() {
            return None;
        }
        // What the router leaves of the path begins behind its own.
        let mut path = format!("/admin{}", request.uri().path());
        path.truncate(path.floor_char_boundary(MAX_PATH));
        Some(Self { method, path, client, outcome: None })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { method, path, client, outcome } = self;
        let client = client.map_or_else(|| "unknown".to_owned(), |client| client.to_string());
        let outcome = outcome.map_or_else(|| "\"given up\"".to_owned(), |status| status.to_string());
        tracing::info!(target: "audit", who = "admin", %method, path, %client, %outcome, "a write of an operator");
    }
}

fn digest(token: &SecretString) -> [u8; 32] {
    Sha256::digest(token.expose_secret()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L2: only the whole token is the token.
    #[test]
    fn only_the_whole_token_is_the_token() {
        let admin = AdminToken::new(&"correct-horse-battery".into());
        assert!(admin.is(&"correct-horse-battery".into()));
        for wrong in ["", "correct-horse-batter", "correct-horse-battery ", "Correct-horse-battery"] {
            assert!(!admin.is(&wrong.into()), "{wrong:?}");
        }
        assert_eq!(format!("{admin:?}"), "AdminToken");
    }
}
