//! How a lock and those who ask for it are named on the server.

use std::sync::Arc;

use crate::connection::RedisLink;
use crate::keyspace::escaped;

/// The keys of one lock, all in one slot of a cluster.
#[derive(Debug)]
pub(super) struct Names {
    /// The name as the caller knows it.
    pub(super) key: Box<str>,
    /// Who holds it: `lock:<name>`, with an expiry.
    pub(super) owner: String,
    /// The last fencing token.
    pub(super) fence: String,
    /// Who waits, by arrival.
    pub(super) queue: String,
    /// Until when each of those is taken for alive.
    pub(super) alive: String,
}

impl Names {
    pub(super) fn of(link: &RedisLink, key: &str) -> Arc<Self> {
        let owner = link.prefixed(&format!("lock:{}", escaped(key)));
        // What stands between the braces is the whole owner key, which has no braces itself: the same slot.
        let beside = |part: &str| format!("{{{owner}}}:{part}");
        Arc::new(Self {
            key: key.into(),
            fence: beside("fence"),
            queue: beside("queue"),
            alive: beside("alive"),
            owner,
        })
    }
}

/// One attempt to hold a lock: `<instance>/<number>`. Made before anything is sent, so that whatever became of
/// it can be settled by name.
#[derive(Debug, Clone)]
pub(super) struct Id {
    pub(super) number: u64,
    pub(super) text: Arc<str>,
}

impl Id {
    pub(super) fn new(instance: &str, number: u64) -> Self {
        Self { number, text: format!("{instance}/{number}").into() }
    }

    /// The number in a payload that names an id of this instance.
    pub(super) fn number_in(payload: &[u8], instance: &str) -> Option<u64> {
        let text = std::str::from_utf8(payload).ok()?;
        text.strip_prefix(instance)?.strip_prefix('/')?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RedisSettings;

    /// The slot as the specification of Redis Cluster has it: CRC16 (XMODEM) of what stands between the first
    /// `{` and the first `}` after it, of everything when there is nothing between them.
    fn slot(key: &str) -> u16 {
        let tag = key
            .find('{')
            .and_then(|open| {
                let length = key[open + 1..].find('}')?;
                (length > 0).then(|| &key[open + 1..open + 1 + length])
            })
            .unwrap_or(key);
        tag.bytes().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            })
        }) % 16_384
    }

    /// COHERENCE F13: whatever a lock is called, its keys are in one slot, or a cluster refuses the scripts.
    #[test]
    fn the_keys_of_a_lock_are_in_one_slot() {
        // As tried on a server.
        assert_eq!((slot("lock:{a}b"), slot("{lock:{a}b}:fence")), (15_495, 8_681));
        for prefix in ["", "staging:"] {
            let settings = RedisSettings::from_url("redis://h").unwrap().with_key_prefix(prefix).unwrap();
            let link = RedisLink::lazy(settings).unwrap();
            for key in ["plain", "{a}b", "}x", "{", "}", "{}", "a{b}c{d}", "%7B", "é{"] {
                let names = Names::of(&link, key);
                assert!(names.owner.starts_with(&format!("{prefix}lock:")), "{names:?}");
                for other in [&names.fence, &names.queue, &names.alive] {
                    assert_eq!(slot(other), slot(&names.owner), "{key}: {other} and {}", names.owner);
                }
            }
        }
    }

    /// What arrives on the wake-up channel is not believed.
    #[test]
    fn only_own_ids_are_read() {
        assert_eq!(Id::number_in(b"ab/7", "ab"), Some(7));
        for payload in [&b""[..], b"ab", b"ab/", b"ab/x", b"abc/7", b"b/7", b"ab/7/8", b"\xff", b"ab/-1"] {
            assert_eq!(Id::number_in(payload, "ab"), None, "{payload:?}");
        }
    }
}
