//! Secrets at rest: sealed before they reach the database or Redis, opened only into types that forget.
//!
//! XChaCha20-Poly1305. A sealed secret is `version ‖ key id[4] ‖ nonce[24] ‖ ciphertext`. The key is derived per
//! organisation (HKDF-SHA256 from the master key of that id), and the associated data bind it to its
//! organisation and field: moved to another one it does not open. One key of the ring seals, all open.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::org::OrgId;

mod cache;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4;
const NONCE: usize = 24;

/// A sealed secret. `Debug` shows its length and nothing of it; in JSON it is base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// Takes bytes that were sealed before.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the key that it was sealed with; `None` when it was not sealed by this scheme.
    #[must_use]
    pub fn key_id(&self) -> Option<u32> {
        let [VERSION, id @ ..] = self.0.first_chunk::<HEADER>()? else { return None };
        Some(u32::from_be_bytes(*id))
    }
}

impl TryFrom<String> for Sealed {
    type Error = SealError;

    fn try_from(text: String) -> Result<Self, SealError> {
        BASE64.decode(text).map(Self).map_err(|_| SealError::Malformed)
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        BASE64.encode(sealed.0)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// Why something does not seal or open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// A ring needs a key.
    #[error("the key ring is empty")]
    NoKey,
    /// A key is not 32 bytes in base64, or two have one id.
    #[error("a master key is 32 bytes in base64, with a number of its own in front when there are several")]
    InvalidKey,
    /// Not sealed by this scheme, or cut short.
    #[error("this is no sealed secret")]
    Malformed,
    /// Sealed with a key that is not in the ring.
    #[error("it was sealed with master key {0}, which is not in the key ring")]
    UnknownKey(u32),
    /// The key is there, and the secret does not open: another key under this id, another organisation or
    /// field, or changed bytes.
    #[error("it does not open: the master key is another one, or the secret was moved or changed")]
    DoesNotOpen,
}

/// The master keys by id. The current one seals, by default that with the highest id. `Debug` shows ids only; keys are
/// wiped when dropped.
pub struct KeyRing {
    keys: BTreeMap<u32, Zeroizing<[u8; 32]>>,
    /// The id of one of them.
    current: u32,
}

impl KeyRing {
    /// Reads one key (`BASE64`, which gets the id 1), or several: `1:BASE64,2:BASE64`.
    ///
    /// To rotate: add the new key to every instance's ring while the old one is [current](Self::sealing_with), make the new
    /// one current everywhere, seal everything again, and drop the old one once nothing is under it.
    ///
    /// # Errors
    /// [`SealError::NoKey`] and [`SealError::InvalidKey`]; no text repeats a key.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (id, key) = match part.split_once(':') {
                None => (1, part),
                Some((id, key)) => (id.parse().map_err(|_| SealError::InvalidKey)?, key),
            };
            let key = Zeroizing::new(BASE64.decode(key).map_err(|_| SealError::InvalidKey)?);
            let key: [u8; 32] = key.as_slice().try_into().map_err(|_| SealError::InvalidKey)?;
            if keys.insert(id, Zeroizing::new(key)).is_some() {
                return Err(SealError::InvalidKey);
            }
        }
        let current = *keys.last_key_value().ok_or(SealError::NoKey)?.0;
        Ok(Self { keys, current })
    }

    /// Makes the key with this id the one that seals; `None` when there is none.
    #[must_use]
    pub fn sealing_with(self, id: u32) -> Option<Self> {
        self.has(id).then_some(Self { current: id, ..self })
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current
    }

    /// Whether there is a key with this id.
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.keys.contains_key(&id)
    }

    /// Seals a secret of an organisation for one field, with the current key.
    ///
    /// # Panics
    /// Never: a ring has its current key, and the cipher takes any length that fits into memory.
    #[must_use]
    pub fn seal(&self, org: &OrgId, field: &str, secret: &str) -> Sealed {
        let master = self.keys.get(&self.current).expect("one of its keys is current");
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload { msg: secret.as_bytes(), aad: &associated(org, field) };
        let sealed = cipher(master, org).encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.expect("only a length beyond memory is refused");
        let mut bytes = Vec::with_capacity(HEADER + NONCE + sealed.len());
        bytes.push(VERSION);
        bytes.extend(self.current.to_be_bytes());
        bytes.extend(nonce);
        bytes.extend(sealed);
        Sealed(bytes)
    }

    /// Opens what was sealed for the same organisation and field.
    ///
    /// # Errors
    /// [`SealError`], which tells a missing key from a wrong one.
    pub fn open(&self, org: &OrgId, field: &str, sealed: &Sealed) -> Result<SecretString, SealError> {
        let (header, rest) = sealed.0.split_at_checked(HEADER).ok_or(SealError::Malformed)?;
        let (nonce, text) = rest.split_at_checked(NONCE).ok_or(SealError::Malformed)?;
        let [VERSION, id @ ..] = header else { return Err(SealError::Malformed) };
        let id = u32::from_be_bytes(id.try_into().map_err(|_| SealError::Malformed)?);
        let master = self.keys.get(&id).ok_or(SealError::UnknownKey(id))?;
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| SealError::Malformed)?;
        let payload = Payload { msg: text, aad: &associated(org, field) };
        let opened = cipher(master, org).decrypt(&XNonce::from(nonce), payload);
        let opened = Zeroizing::new(opened.map_err(|_| SealError::DoesNotOpen)?);
        let text = std::str::from_utf8(&opened).map_err(|_| SealError::DoesNotOpen)?;
        Ok(SecretString::from(text))
    }

    /// Whether a secret was sealed with the current key; others should be sealed again.
    #[must_use]
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        sealed.key_id() == Some(self.current)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// The key of one organisation.
fn cipher(master: &[u8; 32], org: &OrgId) -> XChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, master)
        .expand(&lengths(&[b"org-secret", org.as_str().as_bytes()]), &mut *key)
        .expect("32 bytes are a valid length for SHA-256");
    XChaCha20Poly1305::new(&Key::from(*key))
}

fn associated(org: &OrgId, field: &str) -> Vec<u8> {
    lengths(&[&[VERSION], org.as_str().as_bytes(), field.as_bytes()])
}

/// Each part with its length in front, so that no two lists of parts are the same bytes.
pub(crate) fn lengths(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    fn key(byte: u8) -> String {
        BASE64.encode([byte; 32])
    }

    fn ring(text: &str) -> KeyRing {
        KeyRing::parse(text).expect("a ring")
    }

    fn org(id: &str) -> OrgId {
        OrgId::new(id).expect("an id")
    }

    proptest! {
        /// K6, D4: what was sealed opens for its organisation and field, and nowhere else.
        #[test]
        fn opens_only_where_it_was_sealed(secret in ".{0,200}", a in "[a-c]{1,3}", b in "[a-c]{1,3}", flip in any::<prop::sample::Index>()) {
            let ring = ring(&key(1));
            let sealed = ring.seal(&org(&a), &b, &secret);
            let opened = ring.open(&org(&a), &b, &sealed).expect("opens");
            prop_assert_eq!(opened.expose_secret(), &secret);
            if a != b {
                prop_assert_eq!(ring.open(&org(&b), &b, &sealed).err(), Some(SealError::DoesNotOpen));
                prop_assert_eq!(ring.open(&org(&a), &a, &sealed).err(), Some(SealError::DoesNotOpen));
            }
            let mut changed = sealed.clone();
            let at = flip.index(changed.0.len());
            changed.0[at] ^= 1;
            prop_assert!(ring.open(&org(&a), &b, &changed).is_err());
            let cut = Sealed(sealed.0[..at].to_vec());
            prop_assert!(ring.open(&org(&a), &b, &cut).is_err());
        }
    }

    /// K6: rotation: the newest seals, the old ones open until they are dropped.
    #[test]
    fn keys_rotate() {
        let (old, both, new) = (
            ring(&format!("1:{}", key(1))),
            ring(&format!("1:{},2:{}", key(1), key(2))),
            ring(&format!("2:{}", key(2))),
        );
        let (org, sealed) = (org("acme"), old.seal(&org("acme"), "f", "s"));
        assert!(both.open(&org, "f", &sealed).is_ok() && !both.is_current(&sealed));
        let anew = both.seal(&org, "f", "s");
        assert!(both.is_current(&anew) && new.open(&org, "f", &anew).is_ok());
        assert_eq!(new.open(&org, "f", &sealed).err(), Some(SealError::UnknownKey(1)));
    }

    /// The key that is chosen seals, whatever its id; one that is not there cannot be chosen.
    #[test]
    fn the_current_key_is_chosen() {
        let both = || ring(&format!("1:{},2:{}", key(1), key(2)));
        assert_eq!(both().current(), 2, "the highest unless told otherwise");
        let chosen = both().sealing_with(1).expect("there");
        let sealed = chosen.seal(&org("acme"), "f", "s");
        assert!(chosen.is_current(&sealed) && !both().is_current(&sealed));
        assert_eq!(sealed.key_id(), Some(1));
        assert!(both().open(&org("acme"), "f", &sealed).is_ok());
        assert!(both().sealing_with(3).is_none());
        assert_eq!(Sealed(vec![9, 0, 0, 0, 1]).key_id(), None);
        assert_eq!(Sealed(vec![1]).key_id(), None);
    }

    /// K6: a wrong master key is told from a damaged secret and from a missing key.
    #[test]
    fn a_wrong_key_is_named() {
        let (org, sealed) = (org("acme"), ring(&key(1)).seal(&org("acme"), "f", "s"));
        assert_eq!(ring(&key(2)).open(&org, "f", &sealed).err(), Some(SealError::DoesNotOpen));
        assert_eq!(ring(&key(1)).open(&org, "f", &Sealed(vec![9])).err(), Some(SealError::Malformed));
        for text in
            ["", " , ", "AAAA", "not base64!", &format!("x:{}", key(1)), &format!("1:{0},1:{0}", key(1))]
        {
            let error = KeyRing::parse(text).expect_err("no ring");
            assert!(matches!(error, SealError::NoKey | SealError::InvalidKey), "{text}: {error}");
        }
    }

    /// K6: nothing of a secret is shown, sealed or not, and two seals of one secret differ.
    #[test]
    fn nothing_is_shown() {
        let ring = ring(&key(1));
        let (first, second) = (ring.seal(&org("a"), "f", "hunter2"), ring.seal(&org("a"), "f", "hunter2"));
        assert_ne!(first, second);
        assert_eq!(format!("{first:?} {ring:?}"), format!("Sealed({} bytes) {{1}}", first.0.len()));
        let opened = ring.open(&org("a"), "f", &first).expect("opens");
        assert!(!format!("{opened:?}").contains("hunter2"));
    }
}
