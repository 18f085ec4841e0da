//! Who may use `/admin`.

use std::fmt;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::state::AppState;
use org_resolution::layer::ClientIp;
use org_resolution::{Problem, rate_limit};

/// The admin token, known by its digest: comparing digests takes the same time wherever two tokens differ and
/// however long they are.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Remembers a token.
    #[must_use]
    pub fn new(token: &SecretString) -> Self {
        Self(digest(token.expose_secret()))
    }

    fn is(&self, token: &str) -> bool {
        digest(token).ct_eq(&self.0).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

/// Lets requests with the admin token pass.
///
/// Failed attempts are limited by preset `auth`, by client. The right token passes whatever others at the same
/// address did: nobody behind a shared proxy can lock the operator out, and no limit is what keeps a token of
/// 16 and more characters from being guessed.
pub async fn require(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let token = bearer(request.headers()).map(SecretString::from);
    match authorize(&state, token, client_key(&request)).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn authorize(state: &AppState, token: Option<SecretString>, key: String) -> Result<(), Problem> {
    let token = token.ok_or_else(Problem::unauthorized)?;
    if state.admin().is(token.expose_secret()) {
        return Ok(());
    }
    let (limits, quota) = (state.app().rate_limiter(), &state.app().quotas().auth);
    let decision = limits.check(quota, &key, quota.cost).await?;
    if decision.allowed { Err(Problem::invalid_token()) } else { Err(rate_limit::refusal(quota, &decision)) }
}

/// Operators belong to no organisation: they are counted by client.
fn client_key(request: &Request) -> String {
    rate_limit::key_of(None, None, request.extensions().get::<ClientIp>().map(|client| client.0))
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
