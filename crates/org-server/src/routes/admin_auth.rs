//! Who may use `/admin`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cache_core::RateLimitError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::state::AppState;
use org_resolution::Problem;
use org_resolution::layer::ClientIp;
use org_resolution::rate_limit::{key_of, refusal};

/// How long a client that had the right token is remembered.
const REMEMBER_FOR: Duration = Duration::from_secs(15 * 60);
/// How many of them.
const REMEMBER: usize = 256;

/// The admin token, known by its digest: comparing digests takes the same time wherever two tokens differ and
/// however long they are.
pub struct AdminToken {
    digest: [u8; 32],
    /// Clients that had it lately, and when.
    lately: Mutex<HashMap<String, Instant>>,
}

impl AdminToken {
    /// Remembers a token.
    #[must_use]
    pub fn new(token: &SecretString) -> Self {
        Self { digest: digest(token.expose_secret()), lately: Mutex::default() }
    }

    fn is(&self, token: &str) -> bool {
        digest(token).ct_eq(&self.digest).into()
    }

    fn had_it_lately(&self, client: &str) -> bool {
        self.clients().get(client).is_some_and(|at| at.elapsed() < REMEMBER_FOR)
    }

    fn remember(&self, client: String) {
        let mut clients = self.clients();
        if clients.len() >= REMEMBER {
            clients.retain(|_, at| at.elapsed() < REMEMBER_FOR);
        }
        // With as many operators at once nobody else is remembered, and nothing worse happens.
        if clients.len() < REMEMBER || clients.contains_key(&client) {
            clients.insert(client, Instant::now());
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

/// Lets requests with the admin token pass.
///
/// Failed attempts are limited by preset `auth`, by client. After too many of them the right token is refused,
/// too, so that nobody can go on guessing; except to a client that had it lately, so that somebody behind the
/// same address cannot lock the operator out in the middle of the work.
pub async fn require(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let token = bearer(request.headers()).map(SecretString::from);
    match authorize(&state, token, client_key(&request)).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn authorize(state: &AppState, token: Option<SecretString>, client: String) -> Result<(), Problem> {
    let token = token.ok_or_else(Problem::unauthorized)?;
    let (limits, quota) = (state.app().rate_limiter(), &state.app().quotas().auth);
    if !state.admin().is(token.expose_secret()) {
        let decision = limits.check(quota, &client, quota.cost).await?;
        let refused = if decision.allowed { Problem::invalid_token() } else { refusal(quota, &decision) };
        return Err(refused);
    }
    if !state.admin().had_it_lately(&client) {
        match limits.check(quota, &client, 0).await {
            Ok(decision) if decision.remaining == 0 => return Err(refusal(quota, &decision)),
            // Who has the right token must not depend on the store of a limit for those who have not.
            Ok(_) | Err(RateLimitError::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    state.admin().remember(client);
    Ok(())
}

/// Operators belong to no organisation: they are counted by client.
fn client_key(request: &Request) -> String {
    key_of(None, None, request.extensions().get::<ClientIp>().map(|client| client.0))
}

/// The token of an `Authorization: Bearer …` header.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L2: only the whole token is the token.
    #[test]
    fn only_the_whole_token_is_the_token() {
        let admin = AdminToken::new(&"correct-horse-battery".into());
        assert!(admin.is("correct-horse-battery"));
        for wrong in ["", "correct-horse-batter", "correct-horse-battery ", "Correct-horse-battery"] {
            assert!(!admin.is(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{admin:?}"), "AdminToken");
    }

    /// K9: what is no bearer token is none.
    #[test]
    fn bearer_tokens_are_read() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header value"));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bearer  abc").as_deref(), Some("abc"));
        assert!(read("Basic abc").is_none() && read("Bearer").is_none() && read("Bearer  ").is_none());
    }
}
