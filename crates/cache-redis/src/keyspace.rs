//! How keys and values look on the server.

use bytes::Bytes;
use cache_core::{LeaseToken, Stamp};
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

/// What the keys of locks, limits and presence begin with, also behind the brace that keeps several in one slot.
/// They are no entries of the cache: removing them would free a lock that is held and grant a limit anew.
const COORDINATION_ROOTS: [&str; 3] = ["lock:", "limit:", "presence:"];

/// Whether a key of the server belongs to locks, limits or presence of the deployment with this prefix.
pub(crate) fn is_coordination(prefix: &str, key: &[u8]) -> bool {
    let key = key.strip_prefix(b"{").unwrap_or(key);
    let Some(key) = key.strip_prefix(prefix.as_bytes()) else { return false };
    COORDINATION_ROOTS.iter().any(|root| key.starts_with(root.as_bytes()))
}

/// Whether a key of the server counts the messages of the bus: `{<prefix>cache:…}:seq`.
pub(crate) fn is_of_the_bus(prefix: &str, key: &[u8]) -> bool {
    let inner = key.strip_prefix(b"{").and_then(|key| key.strip_prefix(prefix.as_bytes()));
    inner.is_some_and(|key| key.starts_with(b"cache:"))
}

/// A name of a caller's without braces: a cluster takes what stands between them for the slot. Different names stay
/// different.
pub(crate) fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 8);
    for char in name.chars() {
        match char {
            '{' => text.push_str("%7B"),
            '}' => text.push_str("%7D"),
            '%' => text.push_str("%25"),
            other => text.push(other),
        }
    }
    text
}

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
pub(crate) fn marker(token: &LeaseToken) -> [u8; 1 + LeaseToken::BYTES] {
    let mut marker = [MARKER; 1 + LeaseToken::BYTES];
    marker[1..].copy_from_slice(token.as_bytes());
    marker
}

/// What stored bytes must be for a claim to stand: beginning with, or equal to.
pub(crate) struct Expected {
    pub(crate) bytes: Vec<u8>,
    pub(crate) whole: bool,
}

impl Expected {
    pub(crate) fn marker(token: &LeaseToken) -> Self {
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
        assert_eq!(value(marker(&LeaseToken::from_bytes([7; 16])).to_vec()), None);
    }

    /// A5: what locks, limits, presence and the bus keep is told from entries, with and without a prefix.
    #[test]
    fn entries_are_told_from_the_rest() {
        let service = |prefix, key: &str| {
            is_coordination(prefix, key.as_bytes()) || is_of_the_bus(prefix, key.as_bytes())
        };
        for key in [
            "lock:a",
            "{lock:a}:fence",
            "limit:api:ann",
            "{limit:api:ann}:x",
            "presence:{acme}",
            "presence:{acme}:d",
            "{cache:invalidate}:seq",
        ] {
            assert!(service("", key), "{key}");
            let prefixed = key.strip_prefix('{').map_or(format!("st:{key}"), |rest| format!("{{st:{rest}"));
            assert!(service("st:", &prefixed) && !service("st:", key), "{prefixed}");
        }
        for key in ["locks:a", "acme:lock:a", "%6Cock:d:k", "limit", "{acme", "cache:k", "org:acme", ""] {
            assert!(!service("", key), "{key}");
        }
    }

    /// D2: different names, different keys.
    #[test]
    fn names_stay_apart() {
        assert_ne!(escaped("{"), escaped("%7B"));
        assert_eq!(escaped("a{b}%c:d/é"), "a%7Bb%7D%25c:d/é");
    }

    /// A5: every character of a glob is an ordinary one.
    #[test]
    fn glob_characters_are_escaped() {
        assert_eq!(starting_with(r"a*?[b]^-\"), r"a\*\?\[b\]\^\-\\*");
    }
}
