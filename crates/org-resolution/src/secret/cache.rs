//! The key ring as the sealer of cache entries.
//!
//! ```text
//! version[1] ‖ key id[4] ‖ nonce[24] ‖ XChaCha20-Poly1305     bound to version ‖ the place of the entry
//! key = HKDF-SHA256(master[key id], info = lp("cache") ‖ lp(tenant)), of no tenant: lp("cache-global")
//! ```

use bytes::Bytes;
use cache_core::{SealFailure, Sealer};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{HEADER, KeyRing, NONCE, VERSION, lengths};

impl Sealer for KeyRing {
    /// With the current key.
    fn seal(&self, tenant: Option<&str>, place: &[u8], plain: &[u8]) -> Result<Bytes, SealFailure> {
        let master = self.keys.get(&self.current).ok_or(SealFailure::Unavailable)?;
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload { msg: plain, aad: &bound(place) };
        let sealed = cipher(master, tenant).encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| SealFailure::Unavailable)?;
        let mut blob = Vec::with_capacity(HEADER + NONCE + sealed.len());
        blob.push(VERSION);
        blob.extend(self.current.to_be_bytes());
        blob.extend(nonce);
        blob.extend(sealed);
        Ok(blob.into())
    }

    fn open(&self, tenant: Option<&str>, place: &[u8], sealed: &[u8]) -> Result<Bytes, SealFailure> {
        let (header, rest) = sealed.split_first_chunk::<HEADER>().ok_or(SealFailure::Malformed)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>().ok_or(SealFailure::Malformed)?;
        let [VERSION, id @ ..] = *header else { return Err(SealFailure::Malformed) };
        let master = self.keys.get(&u32::from_be_bytes(id)).ok_or(SealFailure::UnknownKey)?;
        let payload = Payload { msg: text, aad: &bound(place) };
        let opened = cipher(master, tenant).decrypt(&XNonce::from(*nonce), payload);
        opened.map(Bytes::from).map_err(|_| SealFailure::DoesNotOpen)
    }
}

fn cipher(master: &[u8; 32], tenant: Option<&str>) -> XChaCha20Poly1305 {
    let info = match tenant {
        Some(tenant) => lengths(&[b"cache", tenant.as_bytes()]),
        None => lengths(&[b"cache-global"]),
    };
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, master)
        .expand(&info, &mut *key)
        .expect("32 bytes are a valid length for SHA-256");
    XChaCha20Poly1305::new(&Key::from(*key))
}

fn bound(place: &[u8]) -> Vec<u8> {
    [&[VERSION], place].concat()
}
