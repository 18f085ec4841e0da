//! Tokens: whose is it, and may it still be used?
//!
//! Validated tokens are cached under `token:<digest>`, the full SHA-256 over organisation, audience and token,
//! each with its length in front. The token itself is in no key, value, log or span. An entry lives until the
//! token ends, at most [`TokenPolicy::cap`]; the end is checked again on every hit. Revocation is an
//! invalidation, so it wins over a validation in flight. The digest is changed by the organisation's token generation: an
//! entry from before a revocation is not found any more, also when somebody puts it back.

mod digest;

pub use digest::TokenDigest;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::{CacheError, Clock, LockError, LockOptions, Locks, Scope, UserId};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tenant_cache::{Caches, NegativeTier, Policy, TenantCache};
use tokio::sync::Semaphore;

use crate::org::{OrgContext, OrgId};
use crate::rejection::{Problem, RETRY_LATER};
use crate::resolver::LOOKUP_TIMEOUT;

/// The longest token, in bytes. A longer one is refused without being looked at.
pub const MAX_TOKEN_BYTES: usize = 4_096;

/// What a token was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedToken {
    /// The organisation it belongs to.
    pub org: OrgId,
    /// The user it acts for.
    pub user: UserId,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: u64,
}

/// The port to whoever knows tokens. Object safe; you implement it.
#[async_trait]
pub trait TokenValidator: fmt::Debug + Send + Sync {
    /// What a token is, presented to an organisation; `None` when it is no valid token.
    ///
    /// # Errors
    /// [`TokenError::Validator`] when that cannot be told now. Never cached.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    async fn validate(&self, org: &OrgId, token: &SecretString) -> Result<Option<CachedToken>, TokenError>;
}

/// Why a token is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is no token, has ended, or was revoked.
    #[error("the token is not valid")]
    Invalid,
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("a token has at most {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// It is valid, and for another organisation.
    #[error("the token belongs to another organisation")]
    OrgMismatch,
    /// Whoever knows tokens cannot answer.
    #[error("tokens cannot be validated now: {0}")]
    Validator(Arc<dyn std::error::Error + Send + Sync>),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl TokenError {
    /// The validator's own error.
    pub fn validator(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Validator(Arc::new(source))
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid | TokenError::TooLong => Self::invalid_token(),
            TokenError::OrgMismatch => Self::org_mismatch(),
            TokenError::Validator(_) | TokenError::Cache(_) => {
                tracing::warn!(%error, "a token could not be validated");
                Self::unavailable("Tokens cannot be validated now.", RETRY_LATER)
            }
        }
    }
}

/// How long validated tokens are cached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenPolicy {
    /// For whom tokens must be meant; part of the digest. Default empty.
    pub audience: String,
    /// The longest life in the cache. Default 300 s, at most 3 600 s.
    pub cap: Duration,
    /// How much earlier than the token itself an entry ends, for clocks that differ. Default 5 s.
    pub skew: Duration,
    /// How long it is remembered that a token is not valid, in this process. Default 5 s.
    pub invalid_for: Duration,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self {
            audience: String::new(),
            cap: Duration::from_secs(300),
            skew: Duration::from_secs(5),
            invalid_for: Duration::from_secs(5),
        }
    }
}

impl TokenPolicy {
    /// The largest [`cap`](Self::cap).
    pub const MAX_CAP: Duration = Duration::from_secs(3_600);

    /// Sets [`audience`](Self::audience).
    #[must_use]
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = audience.into();
        self
    }

    /// Sets [`cap`](Self::cap).
    #[must_use]
    pub fn with_cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// The life of an entry: until the token ends, less the skew, and no longer than the cap.
    fn life(&self, token: Option<&CachedToken>, now_ms: u64) -> Duration {
        let Some(token) = token else { return self.invalid_for };
        let left = Duration::from_millis(token.expires_at.saturating_sub(now_ms));
        left.saturating_sub(self.skew).min(self.cap)
    }
}

/// Validates tokens through the cache. `Debug` leaves the validator out, which may hold tokens.
#[derive(Clone)]
pub struct TokenService {
    tokens: TenantCache<TokenDigest, CachedToken>,
    validator: Arc<dyn TokenValidator>,
    policy: Arc<TokenPolicy>,
    clock: Clock,
    plausible: fn(&SecretString) -> bool,
}

impl fmt::Debug for TokenService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenService").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl TokenService {
    /// A service with its cache in `caches`, under the domain `token`.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when the cap is zero or over [`TokenPolicy::MAX_CAP`], or the domain is in
    /// use for something else, as by a service whose policy gives other lives. Several services may share it.
    pub fn new(
        caches: &Caches,
        validator: Arc<dyn TokenValidator>,
        policy: TokenPolicy,
        clock: Clock,
    ) -> Result<Self, CacheError> {
        if policy.cap.is_zero() || policy.cap > TokenPolicy::MAX_CAP {
            return Err(CacheError::configuration("token cache", "`cap` is zero or over 3 600 s"));
        }
        // All that the lives depend on besides the cap.
        let version = format!("skew {:?}, invalid for {:?}", policy.skew, policy.invalid_for);
        let policy = Arc::new(policy);
        let (lives, now) = (Arc::clone(&policy), clock.clone());
        let tokens = caches
            .domain("token")
            // Nothing of the application's defaults: a token is never served stale, nor refreshed without a caller who has it.
            .policy(Policy::default())
            .version(version)
            .scope(Scope::Global)
            .ttl(policy.cap)
            .ttl_by(move |_: &TokenDigest, token: Option<&CachedToken>| lives.life(token, now.unix_ms()))
            .negative_tier(NegativeTier::Near)
            .capacity(10_000)
            .negative_capacity(10_000)
            .timeout(LOOKUP_TIMEOUT)
            // Only a look-up brings the token along; the digest alone names nothing.
            .load(|_: TokenDigest| async { Ok::<_, TokenError>(None) })?;
        Ok(Self { tokens, validator, policy, clock, plausible: |_| true })
    }

    /// Refuses tokens that cannot be any by their form alone, such as one with a wrong checksum: without a look-up in
    /// any tier.
    #[must_use]
    pub fn refusing_unless(mut self, plausible: fn(&SecretString) -> bool) -> Self {
        self.plausible = plausible;
        self
    }

    /// What a token is, presented to an organisation.
    ///
    /// # Errors
    /// [`TokenError`].
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn validate(
        &self,
        org: &OrgContext,
        token: &SecretString,
    ) -> Result<Arc<CachedToken>, TokenError> {
        self.validate_in_turn(org, token, None).await
    }

    /// As [`validate`](Self::validate); the validator is asked when one of these turns is free. What is cached waits for
    /// none.
    pub(crate) async fn validate_in_turn(
        &self,
        org: &OrgContext,
        token: &SecretString,
        turns: Option<Arc<Semaphore>>,
    ) -> Result<Arc<CachedToken>, TokenError> {
        if token.expose_secret().len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        if !(self.plausible)(token) {
            return Err(TokenError::Invalid);
        }
        let digest = self.digest(org, token);
        let (validator, org_id, token) = (Arc::clone(&self.validator), org.id.clone(), token.clone());
        let load = move || {
            let (validator, org, token) = (Arc::clone(&validator), org_id.clone(), token.clone());
            let turns = turns.clone();
            async move {
                let _turn = match &turns {
                    Some(turns) => Some(turns.acquire().await.map_err(TokenError::validator)?),
                    None => None,
                };
                validator.validate(&org, &token).await
            }
        };
        let found = self.tokens.lookup_with(&digest, load).await?.value.ok_or(TokenError::Invalid)?;
        if found.expires_at <= self.clock.unix_ms() {
            return Err(TokenError::Invalid);
        }
        if found.org != org.id {
            return Err(TokenError::OrgMismatch);
        }
        Ok(found)
    }

    /// Whether memory holds this token as a valid one: it was presented here lately, and not revoked since.
    /// Asks nobody.
    #[must_use]
    pub fn knows(&self, org: &OrgContext, token: &SecretString) -> bool {
        if token.expose_secret().len() > MAX_TOKEN_BYTES {
            return false;
        }
        let known = self.tokens.peek(&self.digest(org, token));
        matches!(known, Ok(Some(known)) if known.org == org.id && known.expires_at > self.clock.unix_ms())
    }

    fn digest(&self, org: &OrgContext, token: &SecretString) -> TokenDigest {
        TokenDigest::of(&org.id, &self.policy.audience, token).under(org.token_generation)
    }

    /// Forgets a token that was revoked, by the digest [under](TokenDigest::under) which it was cached. After `Ok` this instance does not accept it, and the others stop
    /// within the staleness bound of the bus. Call it after the revocation was committed.
    ///
    /// # Errors
    /// [`CacheError`] when the other instances could not be notified; it is repeated in the background while this process
    /// lives. Until then they may accept it, for at most [`TokenPolicy::cap`].
    pub async fn revoke(&self, digest: &TokenDigest) -> Result<(), CacheError> {
        self.tokens.invalidate(digest).await
    }

    /// The options.
    #[must_use]
    pub fn policy(&self) -> &TokenPolicy {
        &self.policy
    }
}

/// Refreshes one session's token once at a time across the fleet: looks, and if it is stale takes the lock,
/// looks again, and only then refreshes. Waits at most 10 s for the lock; what `refresh` asks needs a deadline of
/// its own.
///
/// The lock is named by a digest of the session: a session's id can be a credential.
///
/// # Errors
/// Those of the lock, or of `look` and `refresh`.
///
/// # Cancel safety
/// Dropping the future drops the refresh and releases the lock.
pub async fn refresh_once<T, E>(
    locks: &dyn Locks,
    session: &str,
    look: impl AsyncFn() -> Result<Option<T>, E>,
    refresh: impl Future<Output = Result<T, E>>,
) -> Result<T, E>
where
    E: From<LockError>,
{
    if let Some(current) = look().await? {
        return Ok(current);
    }
    let session = TokenDigest::of_session(session);
    let guard = locks.acquire(&format!("token-refresh/{session}"), &LockOptions::default()).await?;
    let work = async {
        match look().await? {
            Some(current) => Ok(current),
            None => refresh.await,
        }
    };
    let done = tokio::select! {
        biased;
        () = guard.lost() => Err(LockError::Lost.into()),
        done = work => done,
    };
    // A release that fails is left to the lock's own end.
    let _ = guard.release().await;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(id: &str) -> OrgId {
        OrgId::new(id).expect("an id")
    }

    /// K7: the life of an entry is that of the token less the skew, capped, and never negative.
    #[test]
    fn an_entry_never_outlives_its_token() {
        let policy = TokenPolicy::default();
        let token = |expires_at| CachedToken {
            org: org("a"),
            user: UserId::new("u").expect("an id"),
            scopes: vec![],
            expires_at,
        };
        let life = |expires_at| policy.life(Some(&token(expires_at)), 1_000_000).as_secs();
        assert_eq!(life(1_000_000 + 60_000), 55);
        assert_eq!(life(1_000_000 + 10_000_000), 300);
        assert_eq!(life(1_000_000 + 1_000), 0);
        assert_eq!(life(0), 0);
    }
}
