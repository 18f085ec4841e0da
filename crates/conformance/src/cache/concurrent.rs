//! Many tasks at once, and calls that are dropped.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheService, CacheServiceExt, Claim, LeaseToken, Lookup, Stamp, Ttl};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::CacheFixture;

const LEASE: Duration = Duration::from_secs(30);

/// P4: of many callers on a cold key exactly one gets the lease.
pub async fn one_of_many_callers_gets_the_lease(f: CacheFixture) {
    for round in 0..10 {
        let key: Arc<str> = f.key(&round.to_string()).into();
        let mut callers = JoinSet::new();
        for _ in 0..64 {
            let (service, key) = (f.service.clone(), key.clone());
            callers
                .spawn(async move { service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap() });
        }
        let lookups = callers.join_all().await;
        let granted = lookups.iter().filter(|lookup| matches!(lookup, Lookup::Granted(_))).count();
        let busy = lookups.iter().filter(|lookup| matches!(lookup, Lookup::Busy)).count();
        assert_eq!((granted, busy), (1, 63));
    }
}

/// SE17, P1, P3: readers, loaders, refreshers, those who take over a dead value and those who take a lease, on two instances, and one writer; no
/// read is older than what the writer had committed and invalidated before it began.
pub async fn readers_never_see_an_acknowledged_past(f: CacheFixture) {
    let origin = Arc::new(Origin::default());
    let keys: Arc<[String; KEYS]> = Arc::new(std::array::from_fn(|n| f.key(&n.to_string())));
    let mut tasks = JoinSet::new();
    for seed in 0..8 {
        let service = if seed % 2 == 0 { f.service.clone() } else { f.peer.clone() };
        let (origin, keys, mut rng) = (origin.clone(), keys.clone(), StdRng::seed_from_u64(seed));
        tasks.spawn(async move {
            for _ in 0..150 {
                let n = rng.random_range(0..KEYS);
                let least = origin.acknowledged[n].load(Ordering::SeqCst);
                if let Some(version) = read(&*service, &keys[n], &origin, n, rng.random_range(0..5)).await {
                    assert!(version >= least, "read {version} after {least} was acknowledged");
                }
            }
        });
    }
    write(&f, &keys, &origin).await;
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

const KEYS: usize = 3;

/// What is cached: a version per key, and which of them no reader may be behind.
#[derive(Debug, Default)]
struct Origin {
    truth: [AtomicU64; KEYS],
    acknowledged: [AtomicU64; KEYS],
}

impl Origin {
    /// The row, after a moment; its first 33 bytes are unlike those of any other load.
    async fn load(&self, n: usize) -> Bytes {
        let version = self.truth[n].load(Ordering::SeqCst);
        let unique: [u8; Stamp::BYTES] = rand::random();
        tokio::task::yield_now().await;
        [&unique[..], &version.to_be_bytes()].concat().into()
    }
}

/// Commits and invalidates, in every way there is.
async fn write(f: &CacheFixture, keys: &[String; KEYS], origin: &Origin) {
    for round in 0..150 {
        let n = round % KEYS;
        let version = origin.truth[n].fetch_add(1, Ordering::SeqCst) + 1;
        match round % 4 {
            0 => f.service.invalidate_many(&[&keys[n], &f.scope]).await.unwrap(),
            1 => drop(f.service.invalidate_prefix(&keys[n]).await.unwrap()),
            _ => f.service.invalidate(&keys[n]).await.unwrap(),
        }
        origin.acknowledged[n].store(version, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

/// Reads a key in one of five ways; `None` when there was nothing to see.
async fn read(service: &dyn CacheService, key: &str, origin: &Origin, n: usize, way: u8) -> Option<u64> {
    let version = |bytes: &Bytes| {
        let (_, version) = bytes.split_last_chunk().expect("a row ends with its version");
        u64::from_be_bytes(*version)
    };
    let seen = service.get_bytes(key).await.unwrap();
    let (claim, found) = match (way, seen) {
        (0, seen) => return seen.as_ref().map(version),
        (1, Some(seen)) => (Claim::replacing(Stamp::of(&seen)), seen),
        (4, _) => {
            let taken = service.take_lease(key, LeaseToken::random(), LEASE).await.unwrap();
            (taken, Bytes::new())
        }
        (way, seen) => {
            let lookup = match seen {
                Some(seen) if way == 2 => {
                    service.lease_over(key, &Stamp::of(&seen), LeaseToken::random(), LEASE).await.unwrap()
                }
                _ => service.get_or_lease(key, LeaseToken::random(), LEASE).await.unwrap(),
            };
            match lookup {
                Lookup::Hit(bytes) => return Some(version(&bytes)),
                Lookup::Busy => return None,
                Lookup::Granted(claim) => (claim, Bytes::new()),
            }
        }
    };
    let loaded = origin.load(n).await;
    service.fill(key, &claim, loaded.clone(), Ttl::Default).await.unwrap();
    Some(version(if found.is_empty() { &loaded } else { &found }))
}

/// SE1, SE6, P3: a fill that runs at the very moment of an invalidation is refused or removed: whichever comes
/// first, nothing that was loaded before is left. Leases and refreshes, by key, by bulk and by prefix.
pub async fn an_invalidation_leaves_nothing_of_a_fill_beside_it(f: CacheFixture) {
    for round in 0..f.rounds(2_000) {
        let (key, refresh) = (f.key(&format!("{round}/k")), round % 2 == 0);
        let claim = if refresh {
            let old = Bytes::from(format!("old {round}"));
            f.service.set_bytes(&key, old.clone(), Ttl::Default).await.unwrap();
            Claim::replacing(Stamp::of(&old))
        } else {
            match f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap() {
                Lookup::Granted(claim) => claim,
                other => panic!("nobody else asks for {key}: {other:?}"),
            }
        };
        let start = Arc::new(Barrier::new(2));
        let (service, barrier, filled) = (f.service.clone(), start.clone(), key.clone());
        let fill = tokio::spawn(async move {
            barrier.wait().await;
            service.fill(&filled, &claim, Bytes::from_static(b"stale"), Ttl::Default).await.unwrap()
        });
        start.wait().await;
        match round % 3 {
            0 => f.service.invalidate(&key).await.unwrap(),
            1 => f.service.invalidate_many(&[&key, &f.scope]).await.unwrap(),
            _ => drop(f.service.invalidate_prefix(&f.key(&format!("{round}/"))).await.unwrap()),
        }
        let stored = fill.await.unwrap();
        let left = f.service.get_bytes(&key).await.unwrap();
        assert_eq!(left, None, "round {round}: refresh {refresh}, the fill was told {stored}");
    }
}

/// SE6: while a value is replaced, by a set or by a refresh, readers find the old one or the new one: never none.
pub async fn a_value_that_is_replaced_is_never_missing(f: CacheFixture) {
    let key = f.key("k");
    f.service.set(&key, &0, None).await.unwrap();
    let (service, written) = (f.service.clone(), key.clone());
    let rounds = f.rounds(20_000);
    let writer = tokio::spawn(async move {
        for round in 0..rounds {
            match service.get_bytes(&written).await.unwrap() {
                Some(old) if round % 2 == 0 => {
                    let (claim, new) = (Claim::replacing(Stamp::of(&old)), Bytes::from(round.to_string()));
                    assert!(service.fill(&written, &claim, new, Ttl::Default).await.unwrap());
                }
                _ => service.set(&written, &round, None).await.unwrap(),
            }
        }
    });
    let mut reads = 0_u64;
    while !writer.is_finished() {
        assert!(f.service.get::<usize>(&key).await.unwrap().is_some(), "after {reads} reads");
        let lookup = f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap();
        assert!(matches!(lookup, Lookup::Hit(_)), "after {reads} reads: {lookup:?}");
        reads += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

/// SA3: a call that is dropped after its first step leaves no lock behind.
pub async fn cancelled_calls_leave_nothing_behind(f: CacheFixture) {
    let key = f.key("k");
    let value = || Bytes::from_static(b"1");
    let claim = Claim::lease(LeaseToken::random());
    for _ in 0..20 {
        poll_once(f.service.get_bytes(&key));
        poll_once(f.service.set_bytes(&key, value(), Ttl::Default));
        poll_once(f.service.get_or_lease(&key, LeaseToken::random(), Duration::from_millis(1)));
        poll_once(f.service.take_lease(&key, LeaseToken::random(), Duration::from_millis(1)));
        poll_once(f.service.fill(&key, &claim, value(), Ttl::Default));
        poll_once(f.service.renew(&key, &claim, LEASE));
        poll_once(f.service.release(&key, &claim));
        poll_once(f.service.invalidate(&key));
        poll_once(f.service.invalidate_many(&[&key, &f.key("other")]));
        poll_once(f.service.invalidate_prefix(&key));
        poll_once(f.service.health());
    }
    f.time.pass(Duration::from_millis(50)).await;
    let work = async {
        f.service.set(&key, &2, None).await.unwrap();
        assert_eq!(f.service.get(&key).await.unwrap(), Some(2));
        f.service.invalidate(&key).await.unwrap();
        let Lookup::Granted(claim) = f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap()
        else {
            panic!("nothing is left behind, so the lease is free");
        };
        assert!(f.service.fill(&key, &claim, value(), Ttl::Default).await.unwrap());
    };
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("nothing is locked");
}

/// SH1: random operations of one caller, of every kind and with time passing where it can be told to, answer
/// as the model does.
pub async fn random_operations_agree_with_a_naive_model(f: CacheFixture) {
    for _ in 0..f.rounds(50) {
        f.service.invalidate_prefix(&f.scope).await.unwrap();
        crate::model::agree(&f, rand::random(), 500).await;
    }
}

/// Polls a call once and drops it.
pub(super) fn poll_once<T>(call: impl Future<Output = T>) {
    let _ = pin!(call).poll(&mut Context::from_waker(Waker::noop()));
}
