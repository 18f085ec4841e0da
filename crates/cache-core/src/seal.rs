//! Entries that their store can neither read nor change unnoticed.

use std::fmt;

use bytes::Bytes;

/// Seals bytes for one tenant and one place, and opens them nowhere else.
///
/// Implementers use an authenticated cipher (AEAD), a key of its own for each tenant and one for what belongs to no
/// tenant, and bind `place` as associated data. Nonces of 96 bits must not be random: one key seals very often.
///
/// What it does not do: it does not hide how long the bytes are, nor which key they are stored under, and it cannot
/// tell an older blob of the same place from the newest; who needs that puts an end of life into `place`.
pub trait Sealer: fmt::Debug + Send + Sync {
    /// Seals `plain`.
    ///
    /// # Errors
    /// [`SealFailure::Unavailable`] when there is no key to seal with.
    fn seal(&self, tenant: Option<&str>, place: &[u8], plain: &[u8]) -> Result<Bytes, SealFailure>;

    /// Opens what was sealed for the same tenant and place. Any bytes may come: never a panic.
    ///
    /// # Errors
    /// [`SealFailure`] by kind; nothing of the plain bytes is given away when they are not authentic.
    fn open(&self, tenant: Option<&str>, place: &[u8], sealed: &[u8]) -> Result<Bytes, SealFailure>;
}

/// Why something does not seal or open. It says nothing of keys or contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealFailure {
    /// There is no key to seal with.
    #[error("there is no key to seal with")]
    Unavailable,
    /// Not sealed by this scheme, or cut short.
    #[error("these are no sealed bytes")]
    Malformed,
    /// Sealed with a key that is not known here: not yet, or not any more.
    #[error("sealed with a key that is not known here")]
    UnknownKey,
    /// The key is known and it does not open: another tenant or place, or changed bytes.
    #[error("it does not open: moved, changed, or sealed with another key")]
    DoesNotOpen,
}
