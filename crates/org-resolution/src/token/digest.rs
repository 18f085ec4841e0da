//! What stands for a token where the token must not be.

use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::org::OrgId;
use crate::secret::lengths;
use crate::token::TokenError;

/// Under what a token is cached: it cannot be turned back into the token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token, presented to an organisation.
    #[must_use]
    pub fn of(org: &OrgId, audience: &str, token: &SecretString) -> Self {
        let parts = [org.as_str().as_bytes(), audience.as_bytes(), token.expose_secret().as_bytes()];
        Self(Sha256::digest(zeroize::Zeroizing::new(lengths(&parts)).as_slice()).into())
    }

    /// The digest under which it is cached while its organisation's tokens are of this
    /// [generation](crate::OrgContext::token_generation). Of 256 bits 192 stay those of the token: no two share one.
    #[must_use]
    pub fn under(mut self, generation: u64) -> Self {
        for (byte, of_generation) in self.0.iter_mut().zip(generation.to_be_bytes()) {
            *byte ^= of_generation;
        }
        self
    }

    /// The digest of a session's id, which can be a credential itself.
    pub(crate) fn of_session(session: &str) -> Self {
        Self(Sha256::digest(session).into())
    }

    /// The digest itself, to be stored with what is needed to revoke the token.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Takes a digest that was stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl FromStr for TokenDigest {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digit = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = (0..32).map(|n| digit(2 * n)).collect();
        let bytes = bytes.filter(|_| text.len() == 64).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(TokenError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(id: &str) -> OrgId {
        OrgId::new(id).expect("an id")
    }

    /// K7: the digest separates its parts, whatever they contain, and is read back from its text.
    #[test]
    fn the_digest_separates_its_parts() {
        let of = |org_id: &str, audience: &str, token: &str| {
            TokenDigest::of(&org(org_id), audience, &SecretString::from(token))
        };
        let digest = of("a", "bc", "d");
        for other in [of("ab", "c", "d"), of("a", "b", "cd"), of("a", "bc", "dd"), of("abc", "", "d")] {
            assert_ne!(digest, other);
        }
        assert_eq!(digest.to_string().len(), 64);
        assert_eq!(digest.to_string().parse::<TokenDigest>().ok(), Some(digest));
        for text in ["", "00", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<TokenDigest>().is_err(), "{text}");
        }
    }
}
