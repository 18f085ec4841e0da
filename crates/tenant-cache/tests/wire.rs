//! The stored forms, byte for byte: what was once written must be readable by every later version. The bytes here are
//! written down by hand from `docs/stored-forms.md`; when a test fails because of them, the format has changed, and
//! entries of running fleets would be lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheService, Clock, Postcard, Ttl};
use conformance::model::ModelCache;
use proptest::prelude::*;
use support::{Origin, of, plain, tenant, versions_with};
use tenant_cache::{Caches, DomainBuilder, Source, TenantCache};

const KEY: &str = "acme:rows:k";
/// XXH3 (64 bits) of the key's text.
const KEY_TAG: &str = "2654ae2487517286";
/// The numbers of everything, the domain, the tenant's domain; and of the tag `t` and the tags' guard.
const GENERATIONS: [(&str, &str); 5] = [
    ("gen:all", "0000000000000001"),
    ("gen:d:rows", "0000000000000002"),
    ("gen:t:acme:rows", "0000000000000003"),
    ("gen:g:acme:t", "0000000000000004"),
    ("gen:w:acme", "0000000000000005"),
];

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// An entry of the key: kind, write id, key tag, hard and soft end in the year 2200, born in 2001, three generations.
fn entry(kind: &str, rest: &str) -> Bytes {
    let write_id = "00112233445566778899aabbccddeeff";
    let times = "0000069cb9b8f400 0000069cb9b8f400 000000e8d4a51000";
    let numbers = "03 0000000000000001 0000000000000002 0000000000000003";
    bytes(&format!("{kind} {write_id} {KEY_TAG} {times} {numbers} {rest}"))
}

struct Store {
    far: Arc<ModelCache>,
    origin: Origin,
}

impl Store {
    /// With the groups' numbers, as an older version wrote them.
    async fn new() -> Self {
        let far = Arc::new(ModelCache::new(Clock::system(), 1 << 20));
        for (key, number) in GENERATIONS {
            let written = "0000019a00000000";
            let stored = bytes(&format!("{number} {written}"));
            far.set_bytes(key, stored, Ttl::For(Duration::from_secs(3_600))).await.unwrap();
        }
        Self { far, origin: Origin::open() }
    }

    fn cache(
        &self,
        options: impl FnOnce(DomainBuilder<String, u64>) -> DomainBuilder<String, u64>,
    ) -> (Caches, TenantCache<String, u64>) {
        let caches = Caches::builder().far(self.far.clone()).build().unwrap();
        let cache = versions_with(&caches, &self.origin, options);
        (caches, cache)
    }

    async fn put(&self, entry: Bytes) {
        self.far.set_bytes(KEY, entry, Ttl::For(Duration::from_secs(3_600))).await.unwrap();
    }
}

async fn read(cache: &TenantCache<String, u64>) -> (Option<u64>, Source) {
    let found = of("acme", cache.lookup(&"k".to_owned())).await.unwrap();
    (plain(found.value), found.source)
}

/// SH2: a value, "there is no such thing", a value with a tag, a compressed one.
#[tokio::test]
async fn entries_of_every_form_are_read() {
    let s = Store::new().await;
    // Compressed: the length, little-endian, and one LZ4 block that is two literals.
    let forms = [
        ("value", entry("01", "34 32"), Some(42)),
        ("absent", entry("02", ""), None),
        ("tagged", entry("11", "01 0001 74 0000000000000004 34 32"), Some(42)),
        ("absent, tagged", entry("12", "01 0001 74 0000000000000004"), None),
        ("compressed", entry("21", "02000000 20 34 32"), Some(42)),
    ];
    for (name, stored, value) in forms {
        s.put(stored).await;
        let (_caches, cache) = s.cache(|domain| domain);
        assert_eq!(read(&cache).await, (value, Source::Far), "{name}");
        assert_eq!((s.origin.loads(), cache.stats().damaged), (0, 0), "{name}");
    }
}

/// SH2: what this version writes is what an older one can read: the same layout, with a new write id and new times.
#[tokio::test]
async fn what_is_written_has_the_same_layout() {
    let s = Store::new().await;
    let (_caches, cache) = s.cache(|domain| domain);
    s.origin.commit("k", 42);
    read(&cache).await;
    let written = s.far.get_bytes(KEY).await.unwrap().unwrap();
    let expected = entry("01", "34 32");
    assert_eq!(written.len(), expected.len());
    let same = |range: std::ops::Range<usize>| {
        assert_eq!(written[range.clone()], expected[range.clone()], "{range:?}");
    };
    same(0..1);
    same(17..25);
    same(49..written.len());
    for (key, number) in &GENERATIONS[..3] {
        let stored = s.far.get_bytes(key).await.unwrap().unwrap();
        assert_eq!(
            (stored[..8].to_vec(), stored.len()),
            (bytes(number).to_vec(), 16),
            "{key}: left as it was"
        );
    }
}

/// SH2, E9: the number of a tag that stands in the entry is compared with the one that stands for the tag.
#[tokio::test]
async fn a_generation_that_changed_makes_entries_dead() {
    let s = Store::new().await;
    s.put(entry("11", "01 0001 74 0000000000000004 34 32")).await;
    let (caches, cache) = s.cache(|domain| domain);
    assert_eq!(read(&cache).await, (Some(42), Source::Far));
    caches.invalidate_tag(Some(&tenant("acme")), "t").await.unwrap();
    s.origin.commit("k", 43);
    assert_eq!(read(&cache).await, (Some(43), Source::Origin));
}

/// SH2, E1: the compact codec's form: a version, then the fields one after the other; another version is a miss.
#[tokio::test]
async fn the_compact_codec_has_a_version() {
    let s = Store::new().await;
    s.origin.commit("k", 7);
    // 2: the version. ac 02: 300 as a varint.
    s.put(entry("01", "02 ac 02")).await;
    let (_caches, cache) = s.cache(|domain| domain.codec(Postcard::version(2)));
    assert_eq!(read(&cache).await, (Some(300), Source::Far));
    let (_caches, newer) = s.cache(|domain| domain.codec(Postcard::version(3)));
    assert_eq!(read(&newer).await, (Some(7), Source::Origin));
    assert_eq!(newer.stats().damaged, 1);
}

/// SC6: what claims to be compressed and is a bomb, a lie or rubbish is a counted miss that is replaced, and takes no
/// memory to speak of.
#[tokio::test]
async fn damaged_compressed_entries_are_replaced() {
    let s = Store::new().await;
    s.origin.commit("k", 7);
    let damaged = [
        ("longer than any value may be", "ffffffff 20 34 32"),
        ("longer than its input can make", "00004000 20 34 32"),
        ("longer than it is", "03000000 20 34 32"),
        ("shorter than it is", "01000000 20 34 32"),
        ("no block", "02000000"),
        ("no length", "0200"),
        ("nothing", ""),
    ];
    for (what, payload) in damaged {
        s.put(entry("21", payload)).await;
        let (_caches, cache) = s.cache(|domain| domain);
        assert_eq!(read(&cache).await, (Some(7), Source::Origin), "{what}");
        assert_eq!(cache.stats().damaged, 1, "{what}");
        let (_caches, again) = s.cache(|domain| domain);
        assert_eq!(read(&again).await, (Some(7), Source::Far), "{what}: replaced");
    }
}

/// SC6: forms of later versions, and entries of other keys, are misses.
#[tokio::test]
async fn unknown_forms_are_replaced() {
    let s = Store::new().await;
    s.origin.commit("k", 7);
    let foreign = bytes(&format!("01 {} {}", "00".repeat(16), "00".repeat(40)));
    for stored in [entry("03", "34 32"), entry("81", "34 32"), entry("41", "34 32"), foreign, bytes("01")] {
        s.put(stored.clone()).await;
        let (_caches, cache) = s.cache(|domain| domain);
        assert_eq!(read(&cache).await, (Some(7), Source::Origin), "{stored:?}");
        assert_eq!(cache.stats().damaged, 1, "{stored:?}");
    }
}

/// SC6, SH2: long values are compressed when they get shorter by it, and are read whatever the reader's own option.
#[tokio::test]
async fn long_values_are_compressed_and_read_by_all() {
    let far = Arc::new(ModelCache::new(Clock::system(), 1 << 20));
    let long = "a".repeat(10_000);
    let text = |over: Option<usize>| {
        let (caches, long) = (Caches::builder().far(far.clone()).build().unwrap(), long.clone());
        let domain = caches.domain::<String, String>("texts").scope(cache_core::Scope::Tenant);
        let domain = match over {
            Some(bytes) => domain.compress_over(bytes),
            None => domain,
        };
        let load = move |_: String| std::future::ready(Ok::<_, std::io::Error>(Some(long.clone())));
        (caches, domain.load(load).unwrap())
    };
    let (_a, compressing) = text(Some(1_000));
    of("acme", compressing.get(&"k".to_owned())).await.unwrap();
    let stored = far.get_bytes("acme:texts:k").await.unwrap().unwrap();
    assert!(stored.len() < 500 && stored[0] == 0x21, "{} bytes of form {:x}", stored.len(), stored[0]);
    let (_b, plain) = text(None);
    let found = of("acme", plain.lookup(&"k".to_owned())).await.unwrap();
    assert_eq!((found.value.as_deref(), found.source), (Some(&long), Source::Far));
    of("acme", plain.refresh(&"k".to_owned())).await.unwrap();
    assert_eq!(far.get_bytes("acme:texts:k").await.unwrap().unwrap()[0], 0x01);
    let found = of("acme", compressing.fresh(&"k".to_owned())).await.unwrap();
    assert_eq!(found.as_deref(), Some(&long), "both forms may stand side by side");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// SC6: whatever lies under the key, a reader gets the value, and nothing panics.
    #[test]
    fn rubbish_is_replaced(kind in any::<u8>(), rest in proptest::collection::vec(any::<u8>(), 0..80)) {
        let hex: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let stored = entry(&format!("{kind:02x}"), &hex);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let s = Store::new().await;
            s.origin.commit("k", 7);
            // Markers of leases begin with a zero byte: those are waited for, not read.
            s.put(if kind == 0 { bytes("ff") } else { stored }).await;
            let (_caches, cache) = s.cache(|domain| domain.lease_wait(Duration::from_millis(1)));
            let (_, source) = read(&cache).await;
            prop_assert!(matches!(source, Source::Origin | Source::Far));
            Ok(())
        })?;
    }
}
