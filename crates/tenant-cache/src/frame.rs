//! How an entry is written in the far tier.
//!
//! ```text
//! value   01 ‖ write_id[16] ‖ key_tag[8] ‖ hard_ms[8] ‖ soft_ms[8] ‖ born_ms[8] ‖ n[1] ‖ generation[8]×n ‖ payload
//! absent  02 ‖ …the same header, no payload
//! tagged  +10 ‖ …the same header ‖ m[1] ‖ (length[2] ‖ tag ‖ generation[8])×m ‖ payload
//! packed  +20: the payload is compressed      sealed  +40: the payload, or nothing for absent, is sealed
//! ```
//! What packing and sealing make of a payload is in `wrap`.
//!
//! Numbers are big-endian. `write_id` is random per write: what a refresh compares before it replaces.
//! `key_tag` is a hash of the full key: a reply that a desynchronised connection hands to the wrong caller,
//! or a value that was moved, is a miss and not somebody else's data. `hard_ms` is when the entry is dead,
//! `soft_ms` when it is stale, `born_ms` when it was loaded, by the server's clock. The generations are those
//! read *before* the load: of the groups that follow from the key, and then those of the tags that the loader
//! named.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use cache_core::SealFailure;
use xxhash_rust::xxh3::xxh3_64;

const VALUE: u8 = 1;
const ABSENT: u8 = 2;
/// Added to the kind: the loader named tags.
const TAGGED: u8 = 0x10;
/// Added to the kind: the payload is compressed.
const PACKED: u8 = 0x20;
/// Added to the kind: the payload is sealed.
const SEALED: u8 = 0x40;
const FIXED: usize = 1 + 16 + 8 + 8 + 8 + 8 + 1;

/// The most generations an entry can depend on.
pub(crate) const MAX_GENERATIONS: usize = 16;

/// An entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) hard_ms: u64,
    pub(crate) soft_ms: u64,
    pub(crate) born_ms: u64,
    pub(crate) generations: Vec<u64>,
    /// Tags that the loader named, with their numbers.
    pub(crate) tags: Vec<(Box<str>, u64)>,
    /// `None` for "there is no such thing".
    pub(crate) payload: Option<Bytes>,
}

/// What was done to a payload before it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Form {
    pub(crate) packed: bool,
    pub(crate) sealed: bool,
}

/// An entry whose payload was not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Without its payload.
    pub(crate) frame: Frame,
    pub(crate) absent: bool,
    pub(crate) form: Form,
    /// Everything in front of the body, as it was read.
    pub(crate) header: Bytes,
    pub(crate) body: Bytes,
}

/// Why stored bytes are not an entry of this key. Each is a miss that is counted and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Not written by this cache, or cut short.
    Malformed,
    /// Written for another key.
    ForeignKey,
    /// Larger than this cache's values may be.
    TooLarge,
    /// Not sealed, in a cache that seals; or the other way about.
    OtherForm,
    /// It is sealed and does not open.
    Sealed(SealFailure),
}

impl Frame {
    /// The header to store under `key`, with a fresh write id; the body comes behind it.
    pub(crate) fn header(&self, key: &str, form: Form, body: usize) -> BytesMut {
        let mut out = BytesMut::with_capacity(FIXED + 8 * self.generations.len() + body);
        let kind = if self.payload.is_some() { VALUE } else { ABSENT };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let tagged = flag(!self.tags.is_empty(), TAGGED);
        out.put_u8(kind | tagged | flag(form.packed, PACKED) | flag(form.sealed, SEALED));
        out.put_u128(rand::random());
        out.put_u64(xxh3_64(key.as_bytes()));
        out.put_u64(self.hard_ms);
        out.put_u64(self.soft_ms);
        out.put_u64(self.born_ms);
        out.put_u8(self.generations.len().min(MAX_GENERATIONS) as u8);
        for generation in self.generations.iter().take(MAX_GENERATIONS) {
            out.put_u64(*generation);
        }
        if !self.tags.is_empty() {
            out.put_u8(self.tags.len().min(MAX_GENERATIONS) as u8);
            for (tag, generation) in self.tags.iter().take(MAX_GENERATIONS) {
                out.put_u16(tag.len() as u16);
                out.put_slice(tag.as_bytes());
                out.put_u64(*generation);
            }
        }
        out
    }
}

impl Stored {
    /// Reads an entry that was written for the same key.
    pub(crate) fn read(key: &str, bytes: &Bytes) -> Result<Self, FrameError> {
        let (tag, stored) = read(bytes.clone()).map_err(|_| FrameError::Malformed)?;
        if tag == xxh3_64(key.as_bytes()) { Ok(stored) } else { Err(FrameError::ForeignKey) }
    }
}

/// An entry, and the hash of the key it was written for.
fn read(mut bytes: Bytes) -> Result<(u64, Stored), TryGetError> {
    let whole = bytes.clone();
    let refused = || TryGetError { requested: FIXED, available: 0 };
    let first = bytes.try_get_u8()?;
    let (kind, tagged) = (first & !(TAGGED | PACKED | SEALED), first & TAGGED != 0);
    if !matches!(kind, VALUE | ABSENT) {
        return Err(refused());
    }
    bytes.try_get_u128()?;
    let tag = bytes.try_get_u64()?;
    let (hard_ms, soft_ms, born_ms) = (bytes.try_get_u64()?, bytes.try_get_u64()?, bytes.try_get_u64()?);
    let count = bytes.try_get_u8()?;
    let generations = (0..count).map(|_| bytes.try_get_u64()).collect::<Result<_, _>>()?;
    let mut tags = Vec::new();
    for _ in 0..if tagged { bytes.try_get_u8()? } else { 0 } {
        let length = usize::from(bytes.try_get_u16()?);
        if bytes.len() < length {
            return Err(refused());
        }
        let text = bytes.split_to(length);
        let text = std::str::from_utf8(&text).map_err(|_| refused())?;
        tags.push((text.into(), bytes.try_get_u64()?));
    }
    let frame = Frame { hard_ms, soft_ms, born_ms, generations, tags, payload: None };
    let form = Form { packed: first & PACKED != 0, sealed: first & SEALED != 0 };
    let header = whole.slice(..whole.len() - bytes.len());
    Ok((tag, Stored { frame, absent: kind == ABSENT, form, header, body: bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Frame {
        /// The plain form.
        fn encode(&self, key: &str) -> Bytes {
            let mut out = self.header(key, Form::default(), 0);
            out.put_slice(self.payload.as_deref().unwrap_or_default());
            out.freeze()
        }

        fn decode(key: &str, bytes: &Bytes) -> Result<Self, FrameError> {
            let stored = Stored::read(key, bytes)?;
            Ok(Self { payload: (!stored.absent).then_some(stored.body), ..stored.frame })
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let payload = proptest::option::of(any::<Vec<u8>>().prop_map(Bytes::from));
        let generations = proptest::collection::vec(any::<u64>(), 0..=MAX_GENERATIONS);
        let tags = proptest::collection::vec((".{1,20}".prop_map(Into::into), any::<u64>()), 0..=8);
        let times = (any::<u64>(), any::<u64>(), any::<u64>());
        (times, generations, tags, payload).prop_map(
            |((hard_ms, soft_ms, born_ms), generations, tags, payload)| Frame {
                hard_ms,
                soft_ms,
                born_ms,
                generations,
                tags,
                payload,
            },
        )
    }

    proptest! {
        /// SC6: what was written is read back, and only under its own key.
        #[test]
        fn a_frame_is_read_back_under_its_own_key(frame in frame(), key in ".{1,40}", other in ".{1,40}") {
            let bytes = frame.encode(&key);
            prop_assert_eq!(Frame::decode(&key, &bytes), Ok(frame));
            if key != other {
                prop_assert_eq!(Frame::decode(&other, &bytes), Err(FrameError::ForeignKey));
            }
        }

        /// SC6: truncated and random bytes are refused, never a panic.
        #[test]
        fn damage_never_panics(bytes in any::<Vec<u8>>(), frame in frame(), cut in any::<prop::sample::Index>()) {
            let _ = Frame::decode("k", &Bytes::from(bytes));
            let whole = frame.encode("k");
            let _ = Frame::decode("k", &whole.slice(..cut.index(whole.len())));
        }

        /// SE1: two writes of one value are told apart by what a refresh compares.
        #[test]
        fn every_write_has_its_own_stamp(frame in frame()) {
            let stamp = |bytes: Bytes| cache_core::Stamp::of(&bytes);
            prop_assert_ne!(stamp(frame.encode("k")), stamp(frame.encode("k")));
        }
    }

    /// SC6: the header alone, cut at any byte, is malformed.
    #[test]
    fn a_cut_header_is_malformed() {
        let (generations, tags) = (vec![7, 8], vec![("t".into(), 9)]);
        let frame =
            Frame { hard_ms: 1, soft_ms: 1, born_ms: 1, generations, tags, payload: Some(Bytes::new()) };
        let bytes = frame.encode("k");
        for cut in 0..bytes.len() {
            assert_eq!(Frame::decode("k", &bytes.slice(..cut)), Err(FrameError::Malformed), "{cut}");
        }
    }
}
