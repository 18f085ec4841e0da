//! What happens to a payload between the codec and the far tier: compressed, then sealed; and back.
//!
//! ```text
//! packed  length[4, little-endian] ‖ LZ4 block          when it is longer than the threshold, and shorter so
//! sealed  what the sealer makes of it, bound to
//!         lp("far-value") ‖ lp(namespace) ‖ lp(key) ‖ lp("value" or "absent") ‖ header
//!         lp = length[4, big-endian] ‖ bytes
//! ```
//! The header is bound, so that nobody can prolong an entry, or make an absence of a value. A cache that seals
//! believes nothing that is not sealed.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use cache_core::error::{BackendError, BackendErrorKind};
use cache_core::{CacheError, Sealer};

use crate::far::Asked;
use crate::frame::{Form, Frame, FrameError, Stored};
use crate::number;

/// LZ4 makes of a byte at most 255.
const MAX_RATIO: usize = 255;

/// How the payloads of a cache are stored.
#[derive(Debug)]
pub(crate) struct Wrapping {
    pub(crate) compress_over: Option<usize>,
    pub(crate) max_bytes: usize,
    pub(crate) sealer: Option<Arc<dyn Sealer>>,
    pub(crate) namespace: Arc<str>,
}

impl Wrapping {
    /// The bytes to store.
    pub(crate) fn write(&self, asked: Asked<'_>, frame: &Frame) -> Result<Bytes, CacheError> {
        let plain = frame.payload.as_deref().unwrap_or_default();
        self.check_size(plain.len())?;
        let packed = self.pack(plain);
        let form = Form { packed: packed.is_some(), sealed: self.sealer.is_some() };
        let body = packed.as_deref().unwrap_or(plain);
        let mut out = frame.header(asked.text, form, body.len());
        match &self.sealer {
            None => out.put_slice(body),
            Some(sealer) => {
                let place = self.place(asked.text, frame.payload.is_none(), &out);
                out.put_slice(&sealer.seal(asked.tenant, &place, body).map_err(|error| {
                    BackendError::new(BackendErrorKind::NotReady, "seal", "an entry does not seal")
                        .with_source(error)
                })?);
            }
        }
        Ok(out.freeze())
    }

    /// # Errors
    /// [`CacheError::ValueTooLarge`].
    pub(crate) fn check_size(&self, size: usize) -> Result<(), CacheError> {
        let limit = self.max_bytes;
        if size > limit { Err(CacheError::ValueTooLarge { size, limit }) } else { Ok(()) }
    }

    /// The entry, with its payload as the codec wrote it.
    pub(crate) fn read(&self, asked: Asked<'_>, stored: Stored) -> Result<Frame, FrameError> {
        let Stored { frame, absent, form, header, body } = stored;
        let body = match (&self.sealer, form.sealed) {
            (None, false) => body,
            (Some(sealer), true) => {
                let place = self.place(asked.text, absent, &header);
                sealer.open(asked.tenant, &place, &body).map_err(FrameError::Sealed)?
            }
            _ => return Err(FrameError::OtherForm),
        };
        if absent {
            return Ok(frame);
        }
        let payload = if form.packed { self.unpack(&body)? } else { body };
        if payload.len() > self.max_bytes {
            return Err(FrameError::TooLarge);
        }
        Ok(Frame { payload: Some(payload), ..frame })
    }

    /// Where a sealed payload belongs.
    fn place(&self, key: &str, absent: bool, header: &[u8]) -> Vec<u8> {
        let kind: &[u8] = if absent { b"absent" } else { b"value" };
        number::place(&[b"far-value", self.namespace.as_bytes(), key.as_bytes(), kind], header)
    }

    fn pack(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.compress_over.filter(|over| plain.len() > *over)?;
        let packed = lz4_flex::block::compress_prepend_size(plain);
        (packed.len() < plain.len()).then_some(packed)
    }

    /// What is claimed of the length is not believed: it decides how much memory is taken.
    fn unpack(&self, packed: &[u8]) -> Result<Bytes, FrameError> {
        let (length, block) =
            lz4_flex::block::uncompressed_size(packed).map_err(|_| FrameError::Malformed)?;
        if length > self.max_bytes {
            return Err(FrameError::TooLarge);
        }
        if length > block.len().saturating_mul(MAX_RATIO) {
            return Err(FrameError::Malformed);
        }
        match lz4_flex::block::decompress(block, length) {
            Ok(plain) if plain.len() == length => Ok(plain.into()),
            _ => Err(FrameError::Malformed),
        }
    }
}
