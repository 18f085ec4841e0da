//! Tokens of organisations: made here, known by digest afterwards.

use async_trait::async_trait;
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

    /// Revokes a token of an organisation. `false` when not every server could be notified: they are as soon as any server
    /// reaches them, and until then may accept it, for at most
    /// [`UNNOTIFIED_BOUND`](super::provision::UNNOTIFIED_BOUND).
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
        let org = super::context(org)?;
        let deleted = self.0.store.delete_token(org.id.as_str(), id).await;
        // Also when it failed: a commit whose answer was lost may have taken place, and nobody could find out
        // any more under what the token is cached.
        let digest = TokenDigest::from_bytes(row.cache_digest).under(org.token_generation);
        let revoked = self.0.tokens.revoke(&digest).await;
        // Its tokens are of another generation now: what is cached of this one is found no more.
        let forgotten = revoked.and(self.forget(&[org]).await);
        let change = deleted.as_ref().ok().and_then(|deleted| Some(deleted.as_ref()?.change));
        let told = self.notified("a revoked token", forgotten, change.as_slice()).await;
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

/// What every token begins with, so that one which leaks is recognised.
const PREFIX: &str = "ort_";
/// Random characters of a token: 256 bits in base 62. As many in base64url make up one of the old form, without checksum.
const RANDOM_CHARS: usize = 43;
/// Characters of the checksum: 32 bits in base 62.
const CHECKSUM_CHARS: usize = 6;
static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn random_token() -> Result<SecretString, Problem> {
    let mut text =
        zeroize::Zeroizing::new(String::with_capacity(PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS));
    text.push_str(PREFIX);
    while text.len() < PREFIX.len() + RANDOM_CHARS {
        let mut random = [0];
        rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(|error| {
            tracing::error!(%error, "the system gives no random numbers");
            Problem::internal()
        })?;
        // 62 and 63 are drawn again: otherwise some characters would be likelier than others.
        if let Some(digit) = BASE62.get(usize::from(random[0] & 63)) {
            text.push(char::from(*digit));
        }
    }
    let checksum = checksum(text.as_bytes());
    text.extend(checksum.map(char::from));
    Ok(text.as_str().into())
}

/// Whether a text can be a token by its form: a mistyped or invented one is told by its checksum. Who knows how it is made
/// can make one that passes here, and then has to guess 256 bits.
pub(super) fn is_well_formed(token: &SecretString) -> bool {
    let text = token.expose_secret();
    let Some(rest) = text.strip_prefix(PREFIX) else { return false };
    if rest.len() == RANDOM_CHARS {
        return rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    }
    let (random, end) = text.as_bytes().split_at(text.len().saturating_sub(CHECKSUM_CHARS));
    rest.len() == RANDOM_CHARS + CHECKSUM_CHARS
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && checksum(random) == end
}

/// The CRC-32 in base 62.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_CHARS] {
    let mut rest = CRC.checksum(bytes);
    let mut digits = [0; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

fn digest(token: &SecretString) -> [u8; 32] {
    Sha256::digest(token.expose_secret()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token reads as itself, every change of one character is told, and no two are alike.
    #[test]
    fn a_token_is_told_by_its_checksum() {
        let token = random_token().expect("random numbers");
        let text = token.expose_secret();
        assert_eq!(text.len(), 53);
        assert!(is_well_formed(&token));
        for at in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'Q' { b'R' } else { b'Q' };
            let mistyped = String::from_utf8(bytes).expect("ASCII");
            assert!(!is_well_formed(&mistyped.into()), "{at}");
        }
        assert_ne!(random_token().expect("random numbers").expose_secret(), text);
        assert_eq!(&checksum(b"123456789"), b"3jZRME", "CRC-32's check value, 0xCBF43926");
    }
}
