//! The number of a group, and how it is written in the far tier.
//!
//! ```text
//! value[8] ‖ written_ms[8]                where the caches have no sealer
//! value[8] ‖ written_ms[8] ‖ proof        where they have one: the sealer's, of nothing, bound to
//!                                         lp("generation") ‖ lp(namespace) ‖ lp(key) ‖ value ‖ written_ms
//! ```
//! Without the proof whoever writes to the store could give a group the number that a dead entry carries, which is readable
//! in the entry, and revive it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use cache_core::error::{BackendError, BackendErrorKind};
use cache_core::{CacheError, Sealer};

/// Stands for the number of a tag that has none. No group ever gets it.
pub(crate) const NO_NUMBER: u64 = 0;

/// How long the number of a domain or of everything is kept after its last renewal: twice the longest life of an entry.
/// Those of tags live as long as what carries them; see [`TagNumbers`](crate::tag_numbers::TagNumbers).
pub(crate) const GENERATION_TTL: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// Value and time.
const PLAIN: usize = 8 + 8;

/// A group's number in the far tier, and when it ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) value: u64,
    pub(crate) ends_ms: u64,
}

impl Number {
    /// A new one, with so long to live.
    pub(crate) fn random(now_ms: u64, life: Duration) -> Self {
        Self { value: rand::random::<u64>().max(1), ends_ms: now_ms.saturating_add(life.as_millis() as u64) }
    }

    /// What is left of its life.
    pub(crate) fn left(self, now_ms: u64) -> Duration {
        Duration::from_millis(self.ends_ms.saturating_sub(now_ms))
    }
}

/// How the numbers of a process are written.
#[derive(Debug, Clone, Default)]
pub(crate) struct NumberForm {
    pub(crate) sealer: Option<Arc<dyn Sealer>>,
    pub(crate) namespace: Arc<str>,
}

impl NumberForm {
    /// With the number stands when it would have been written, had it [`GENERATION_TTL`] to live: what older versions
    /// read, who renew what is older than half of that.
    ///
    /// # Errors
    /// [`CacheError::Backend`] when the sealer has no key.
    pub(crate) fn write(&self, text: &str, number: Number) -> Result<Bytes, CacheError> {
        let written_ms = number.ends_ms.saturating_sub(GENERATION_TTL.as_millis() as u64);
        let mut bytes = Vec::with_capacity(PLAIN);
        bytes.put_u64(number.value);
        bytes.put_u64(written_ms);
        if let Some(sealer) = &self.sealer {
            let proof = sealer.seal(None, &self.place(text, &bytes), &[]).map_err(|error| {
                BackendError::new(BackendErrorKind::NotReady, "seal", "a generation does not seal")
                    .with_source(error)
            })?;
            bytes.put_slice(&proof);
        }
        Ok(bytes.into())
    }

    /// The number in stored bytes; `None` for what is none, or is not proved to be this group's.
    pub(crate) fn read(&self, text: &str, bytes: &[u8]) -> Option<Number> {
        let (plain, proof) = bytes.split_at_checked(PLAIN)?;
        match &self.sealer {
            None if proof.is_empty() => {}
            Some(sealer) if sealer.open(None, &self.place(text, plain), proof).is_ok() => {}
            _ => return None,
        }
        let (value, written_ms) = plain.split_at(8);
        let value = u64::from_be_bytes(value.try_into().ok()?);
        let written_ms = u64::from_be_bytes(written_ms.try_into().ok()?);
        let ends_ms = written_ms.saturating_add(GENERATION_TTL.as_millis() as u64);
        (value != NO_NUMBER).then_some(Number { value, ends_ms })
    }

    fn place(&self, text: &str, plain: &[u8]) -> Vec<u8> {
        place(&[b"generation", self.namespace.as_bytes(), text.as_bytes()], plain)
    }
}

/// What a seal is bound to: each part with its length in front, and what is fixed in its form behind them.
pub(crate) fn place(parts: &[&[u8]], rest: &[u8]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| 4 + part.len()).sum();
    let mut place = Vec::with_capacity(length + rest.len());
    for part in parts {
        place.put_u32(part.len() as u32);
        place.put_slice(part);
    }
    place.put_slice(rest);
    place
}
