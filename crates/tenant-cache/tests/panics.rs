//! A panic in any function that a cache was given is an error of every caller who waits, at once; nobody hangs, and
//! nothing stays locked.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, Codec, CodecError, LoadError, Scope};
use cache_moka::MokaCacheService;
use futures_util::future::join_all;
use tenant_cache::{Caches, DomainBuilder, TenantCache};

/// A key whose text form panics for 13.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Unlucky(u32);

impl fmt::Display for Unlucky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(self.0 != 13, "as the test wants it");
        self.0.fmt(f)
    }
}

impl FromStr for Unlucky {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A codec that panics for 13: when it writes it, or when it reads it.
#[derive(Debug)]
struct PanickingCodec {
    on_write: bool,
}

impl Codec<u32> for PanickingCodec {
    fn encode(&self, value: &u32) -> Result<Bytes, CodecError> {
        assert!(!(self.on_write && *value == 13), "as the test wants it");
        Ok(Bytes::copy_from_slice(&value.to_be_bytes()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        let value = u32::from_be_bytes(bytes.try_into().unwrap());
        assert!(self.on_write || value != 13, "as the test wants it");
        Ok(value)
    }
}

type Define = fn(DomainBuilder<Unlucky, u32>) -> DomainBuilder<Unlucky, u32>;

fn cache(far: bool, define: Define) -> TenantCache<Unlucky, u32> {
    let caches = match far {
        true => {
            Caches::builder().far(Arc::new(MokaCacheService::builder().build().unwrap())).build().unwrap()
        }
        false => Caches::in_memory(),
    };
    define(caches.domain("unlucky").scope(Scope::Global).near_ttl(Duration::ZERO))
        .load(|key: Unlucky| async move {
            tokio::task::yield_now().await;
            if key.0 == 99 { Err(std::io::Error::other("no")) } else { Ok(Some(key.0)) }
        })
        .unwrap()
}

/// Four callers at the same time, again and again; then the next key is found as if nothing had been.
async fn all_are_told(cache: &TenantCache<Unlucky, u32>, key: u32, what: &str) {
    for _ in 0..20 {
        let callers = join_all((0..4).map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(&Unlucky(key)).await })
        }));
        let ended = tokio::time::timeout(Duration::from_secs(10), callers).await;
        for ended in ended.unwrap_or_else(|_| panic!("{what}: a caller hangs")) {
            let found = ended.unwrap_or_else(|error| panic!("{what}: a caller panics: {error}"));
            assert!(matches!(found, Err(CacheError::Load(LoadError::Panicked { .. }))), "{what}: {found:?}");
        }
    }
    assert_eq!(cache.get(&Unlucky(7)).await.unwrap().as_deref(), Some(&7), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_waiter_of_a_panic_is_told() {
    let cases: [(&str, u32, Define); 6] = [
        ("fallback", 99, |domain| {
            domain.fallback(|_: &Unlucky, _: &LoadError| panic!("as the test wants it"))
        }),
        ("ttl_by", 13, |domain| {
            domain.ttl_by(|key: &Unlucky, _: Option<&u32>| {
                assert!(key.0 != 13, "as the test wants it");
                Duration::from_secs(60)
            })
        }),
        ("tags", 13, |domain| {
            domain.tags(|key: &Unlucky| {
                assert!(key.0 != 13, "as the test wants it");
                vec!["tag".to_owned()]
            })
        }),
        ("on_miss", 13, |domain| {
            domain.on_miss(|key: &Unlucky| assert!(key.0 != 13, "as the test wants it"))
        }),
        ("the key's text", 13, |domain| domain),
        ("the codec's writing", 13, |domain| domain.codec(PanickingCodec { on_write: true })),
    ];
    for (what, key, define) in cases {
        for far in [false, true] {
            if far || !what.contains("codec") {
                all_are_told(&cache(far, define), key, what).await;
            }
        }
    }
}

/// A stored value whose reading panics: the one who reads it and those who wait for that are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_panic_while_a_stored_value_is_read_is_told() {
    let cache = cache(true, |domain| domain.codec(PanickingCodec { on_write: false }));
    cache.insert(&Unlucky(3), 13).await.unwrap();
    all_are_told(&cache, 3, "the codec's reading").await;
}

/// What is not a lookup is told, too.
#[tokio::test]
async fn changes_are_told_of_a_panic() {
    let cache = cache(true, |domain| domain.codec(PanickingCodec { on_write: true }));
    let told = |done: Result<(), CacheError>| {
        assert!(matches!(done, Err(CacheError::Load(LoadError::Panicked { .. }))), "{done:?}");
    };
    told(cache.insert(&Unlucky(13), 1).await);
    told(cache.insert(&Unlucky(1), 13).await);
    told(cache.invalidate(&Unlucky(13)).await);
    told(cache.refresh(&Unlucky(13)).await.map(drop));
    told(cache.get_many(&[Unlucky(1), Unlucky(13)]).await.map(drop));
    assert_eq!(cache.get(&Unlucky(1)).await.unwrap().as_deref(), Some(&1));
}

/// A hook that panics on a hit in memory.
#[tokio::test]
async fn a_panicking_hook_is_told() {
    let cache: TenantCache<u32, u32> = Caches::in_memory()
        .domain("hooks")
        .scope(Scope::Global)
        .on_hit(|key: &u32, _| assert!(*key != 13, "as the test wants it"))
        .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(key)) })
        .unwrap();
    cache.get(&13).await.unwrap();
    let found = cache.get(&13).await;
    assert!(matches!(found, Err(CacheError::Load(LoadError::Panicked { .. }))), "{found:?}");
    assert_eq!(cache.peek(&13).unwrap().as_deref(), Some(&13), "the entry is what it was");
}

/// A refresh in the background that panics leaves the entry as it is, and the next one can begin.
#[tokio::test]
async fn a_refresh_that_panics_blocks_nothing() {
    let hand = cache_core::ManualClock::new();
    let loads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let cache: TenantCache<u32, u32> = Caches::builder()
        .clock(hand.clock())
        .build()
        .unwrap()
        .domain("refreshed")
        .scope(Scope::Global)
        .jitter(0.0)
        .ttl(Duration::from_secs(60))
        .stale_while_revalidate(Duration::from_secs(600))
        .ttl_by(move |_: &u32, value: Option<&u32>| {
            assert!(value != Some(&2), "as the test wants it");
            Duration::from_secs(60)
        })
        .load(move |_: u32| {
            let load = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) as u32 + 1;
            async move { Ok::<_, std::io::Error>(Some(load)) }
        })
        .unwrap();
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1));
    for expected in [2, 3] {
        hand.advance(Duration::from_secs(90));
        assert!(cache.lookup(&1).await.unwrap().stale);
        conformance::wait::until("the refresh", || {
            loads.load(std::sync::atomic::Ordering::SeqCst) == expected
        })
        .await;
    }
    conformance::wait::eventually("the third value", async || {
        cache.get(&1).await.unwrap().as_deref() == Some(&3)
    })
    .await;
}
