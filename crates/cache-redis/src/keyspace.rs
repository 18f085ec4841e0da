//! How keys and values look on the server.

use bytes::Bytes;
use cache_core::Stamp;
use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};

/// What a lease marker begins with.
pub(crate) const MARKER: u8 = 0x00;
/// Stands in front of a value that would otherwise look like a marker, or like an escaped value.
const ESCAPE: u8 = 0x1B;

/// Keys in one step; far below what a script can take (`unpack` ends at 7 999).
pub(crate) const BATCH: usize = 1_000;

/// A key or channel with the deployment's prefix in front, put together on the way out.
#[derive(Clone, Copy)]
pub(crate) struct Prefixed<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) key: &'a str,
}

impl ToRedisArgs for Prefixed<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut text = out.writer_for_next_arg();
        // Writing to memory cannot fail.
        let _ = std::io::Write::write_all(&mut text, self.prefix.as_bytes());
        let _ = std::io::Write::write_all(&mut text, self.key.as_bytes());
    }
}

impl ToSingleRedisArg for Prefixed<'_> {}

/// The bytes to store for a value.
pub(crate) fn stored(value: Bytes) -> Bytes {
    match value.first() {
        Some(&(MARKER | ESCAPE)) => [&[ESCAPE], &value[..]].concat().into(),
        _ => value,
    }
}

/// The value in stored bytes; `None` for a lease marker.
pub(crate) fn value(stored: Vec<u8>) -> Option<Bytes> {
    match stored.first() {
        Some(&MARKER) => None,
        Some(&ESCAPE) => Some(Bytes::from(stored).slice(1..)),
        _ => Some(stored.into()),
    }
}

/// The marker of a lease.
pub(crate) fn marker(token: &[u8; 16]) -> [u8; 17] {
    let mut marker = [MARKER; 17];
    marker[1..].copy_from_slice(token);
    marker
}

/// What stored bytes must be for a claim to stand: beginning with, or equal to.
pub(crate) struct Expected {
    pub(crate) bytes: Vec<u8>,
    pub(crate) whole: bool,
}

impl Expected {
    pub(crate) fn marker(token: &[u8; 16]) -> Self {
        Self { bytes: marker(token).to_vec(), whole: true }
    }

    pub(crate) fn stamp(stamp: &Stamp) -> Self {
        let seen = stamp.as_bytes();
        let bytes = stored(Bytes::copy_from_slice(seen)).to_vec();
        Self { bytes, whole: seen.len() < Stamp::BYTES }
    }
}

/// A pattern for `MATCH` that finds exactly the keys which start with `prefix`.
pub(crate) fn starting_with(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 8);
    for char in prefix.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOLS 2: a value is never taken for a marker, whatever it begins with.
    #[test]
    fn values_are_read_back_and_never_look_like_markers() {
        for raw in [&b""[..], b"{}", b"\0", b"\0abcdefghijklmnop", b"\x1b", b"\x1b\0", b"\x01x"] {
            let stored = stored(Bytes::copy_from_slice(raw));
            assert_ne!(stored.first(), Some(&MARKER));
            assert_eq!(value(stored.to_vec()).as_deref(), Some(raw));
        }
        assert_eq!(value(marker(&[7; 16]).to_vec()), None);
    }

    /// A5: every character of a glob is an ordinary one.
    #[test]
    fn glob_characters_are_escaped() {
        assert_eq!(starting_with(r"a*?[b]^-\"), r"a\*\?\[b\]\^\-\\*");
    }
}
