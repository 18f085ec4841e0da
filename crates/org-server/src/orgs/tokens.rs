//! Tokens of organisations: made here, known by digest afterwards.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cache_core::UserId;
use org_resolution::token::TokenDigest;
use org_resolution::{CachedToken, OrgId, Problem, Slug, TokenError, TokenValidator};
use rand::TryRngCore as _;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::orgs::Orgs;
use crate::store::{Store, StoreError, TokenRow, now_ms};

/// The longest life of a token, in seconds: a year.
pub const MAX_LIFE_SECONDS: u64 = 366 * 24 * 60 * 60;
/// The life of a token that is made without one, in seconds.
pub const DEFAULT_LIFE_SECONDS: u64 = 60 * 60;
/// The most scopes of a token.
pub const MAX_SCOPES: usize = 32;
/// The longest scope, in bytes.
pub const MAX_SCOPE_BYTES: usize = 64;

/// What a new token shall be.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenDraft {
    /// The user it acts for.
    pub user: String,
    /// What it may do. Default nothing in particular.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// How long it lives, in seconds. Default [`DEFAULT_LIFE_SECONDS`].
    pub expires_in: Option<u64>,
}

/// A token that was just made: the only time its text is seen.
#[derive(Debug)]
pub struct NewToken {
    /// By what it is revoked.
    pub id: String,
    /// The token itself.
    pub token: SecretString,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: i64,
}

impl TokenDraft {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = UserId::new(self.user.as_str()) {
            problems.push(format!("`user`: {error}"));
        }
        if self.scopes.len() > MAX_SCOPES {
            problems.push(format!("`scopes` has {} entries, more than {MAX_SCOPES}", self.scopes.len()));
        }
        let plain = |scope: &String| {
            (1..=MAX_SCOPE_BYTES).contains(&scope.len()) && scope.bytes().all(|b| b.is_ascii_graphic())
        };
        if !self.scopes.iter().all(plain) {
            problems.push(format!("a scope is not 1 to {MAX_SCOPE_BYTES} visible ASCII characters"));
        }
        if !(1..=MAX_LIFE_SECONDS).contains(&self.life()) {
            problems.push(format!("`expires_in` is not 1 to {MAX_LIFE_SECONDS} seconds"));
        }
        problems
    }

    fn life(&self) -> u64 {
        self.expires_in.unwrap_or(DEFAULT_LIFE_SECONDS)
    }
}

impl Orgs {
    /// Makes a token for a user of an organisation.
    ///
    /// # Errors
    /// `invalid_body`, `org_not_found`, `store_unavailable`.
    ///
    /// # Cancel safety
    /// A dropped call may have stored a token nobody knows; it ends by itself.
    pub async fn make_token(&self, slug: &Slug, draft: TokenDraft) -> Result<NewToken, Problem> {
        let problems = draft.problems();
        if !problems.is_empty() {
            return Err(Problem::invalid_body(problems));
        }
        let org = self.0.store.org_by_slug(slug.as_str()).await?.ok_or_else(Problem::org_not_found)?;
        let org_id = super::org_id(&org)?;
        let token = random_token()?;
        let life_ms = i64::try_from(draft.life() * 1000).unwrap_or(i64::MAX);
        let row = TokenRow {
            id: uuid::Uuid::new_v4().to_string(),
            org_id: org.id,
            digest: digest(&token),
            cache_digest: *TokenDigest::of(&org_id, &self.0.tokens.policy().audience, &token).as_bytes(),
            user: draft.user,
            scopes: draft.scopes,
            expires_at: now_ms().saturating_add(life_ms),
        };
        self.0.store.insert_token(&row).await?;
        Ok(NewToken { id: row.id, token, expires_at: row.expires_at })
    }

    /// Revokes a token of an organisation. `false` when not every server could be told: those accept it for
    /// some seconds more, and are told again in the background.
    ///
    /// # Errors
    /// `org_not_found`, `not_found`, `store_unavailable`.
    ///
    /// # Cancel safety
    /// Not safe between the commit and the caches: run it to its end.
    pub async fn revoke_token(&self, slug: &Slug, id: &str) -> Result<bool, Problem> {
        let org = self.0.store.org_by_slug(slug.as_str()).await?.ok_or_else(Problem::org_not_found)?;
        let gone = || Problem::not_found("token");
        let row = self.0.store.token(&org.id, id).await?.ok_or_else(gone)?;
        let deleted = self.0.store.delete_token(&org.id, id).await;
        // Also when it failed: a commit whose answer was lost may have taken place, and nobody could find out
        // any more under what the token is cached.
        let told = self.0.tokens.revoke(&TokenDigest::from_bytes(row.cache_digest)).await;
        let told = super::provision::told("a revoked token", &told);
        deleted?.map(|_| told).ok_or_else(gone)
    }
}

/// The database as the port that token validation asks for.
#[derive(Debug)]
pub(super) struct StoredTokens(pub(super) Store);

#[async_trait]
impl TokenValidator for StoredTokens {
    /// Looked up by the token alone: whose it is decides the caller, so that a token of another organisation
    /// is told from one that does not exist.
    async fn validate(&self, _: &OrgId, token: &SecretString) -> Result<Option<CachedToken>, TokenError> {
        let row = self.0.token_by_digest(&digest(token)).await.map_err(TokenError::validator)?;
        let row = row.filter(|row| row.expires_at > now_ms());
        row.map(read).transpose().map_err(TokenError::validator)
    }
}

fn read(row: TokenRow) -> Result<CachedToken, StoreError> {
    let damaged = |what| move |_| StoreError::Damaged { what };
    Ok(CachedToken {
        org: OrgId::new(row.org_id).map_err(damaged("token's organisation"))?,
        user: UserId::new(row.user).map_err(damaged("token's user"))?,
        scopes: row.scopes,
        expires_at: u64::try_from(row.expires_at).unwrap_or(0),
    })
}

fn random_token() -> Result<SecretString, Problem> {
    let mut random = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(|error| {
        tracing::error!(%error, "the system gives no random numbers");
        Problem::internal()
    })?;
    Ok(format!("ort_{}", URL_SAFE_NO_PAD.encode(random)).into())
}

fn digest(token: &SecretString) -> [u8; 32] {
    Sha256::digest(token.expose_secret()).into()
}
