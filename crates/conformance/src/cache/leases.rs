//! Leases and their interleavings: the fill of a load that began before an invalidation is refused.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, CacheService, Claim, LeaseToken, Lookup, Stamp, Ttl};

use super::{CacheFixture, MAX_VALUE_BYTES};

pub(super) const LEASE: Duration = Duration::from_secs(30);

pub(super) fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(super) async fn granted(service: &dyn CacheService, key: &str) -> Claim {
    match service.get_or_lease(key, LeaseToken::random(), LEASE).await.unwrap() {
        Lookup::Granted(claim) => claim,
        other => panic!("the lease is free, yet: {other:?}"),
    }
}

pub(super) async fn fill(service: &dyn CacheService, key: &str, claim: &Claim, text: &'static str) -> bool {
    service.fill(key, claim, value(text), Ttl::Default).await.unwrap()
}

pub(super) async fn stored(service: &dyn CacheService, key: &str) -> Option<Bytes> {
    service.get_bytes(key).await.unwrap()
}

/// A12, P4: the first caller gets the lease, the others hear that it is taken.
pub async fn one_caller_gets_the_lease(f: CacheFixture) {
    let key = f.key("k");
    let _claim = granted(&*f.service, &key).await;
    let asked = std::time::Instant::now();
    assert_eq!(f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
    assert!(asked.elapsed() < LEASE / 3, "the answer does not wait for the lease");
    assert!(matches!(
        f.service.get_or_lease(&f.key("other"), LeaseToken::random(), LEASE).await.unwrap(),
        Lookup::Granted(_)
    ));
}

/// A12: a value that is there is a hit, and its life is not touched.
pub async fn a_value_is_a_hit(f: CacheFixture) {
    let key = f.key("k");
    f.service.set_bytes(&key, value("v"), f.short().into()).await.unwrap();
    assert_eq!(
        f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(),
        Lookup::Hit(value("v"))
    );
    f.time.pass(f.short()).await;
    assert!(matches!(
        f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(),
        Lookup::Granted(_)
    ));
}

/// PROTOCOLS 2: readers do not see a lease.
pub async fn a_lease_is_no_value(f: CacheFixture) {
    let key = f.key("k");
    let _claim = granted(&*f.service, &key).await;
    assert_eq!(stored(&*f.service, &key).await, None);
    assert_eq!(f.service.get_many_bytes(&[&key, &key]).await.unwrap(), [None, None]);
    assert_eq!(f.service.invalidate_prefix(&key).await.unwrap(), 0, "a lease is no entry");
}

/// A12: the holder's fill is stored, once.
pub async fn a_fill_under_the_lease_is_stored(f: CacheFixture) {
    let key = f.key("k");
    let claim = granted(&*f.service, &key).await;
    assert!(fill(&*f.service, &key, &claim, "v").await);
    assert_eq!(stored(&*f.service, &key).await, Some(value("v")));
    assert_eq!(
        f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(),
        Lookup::Hit(value("v"))
    );
    assert!(!fill(&*f.service, &key, &claim, "again").await, "a lease fills once");
    assert_eq!(stored(&*f.service, &key).await, Some(value("v")));
}

/// SE1, P3: after an invalidation the fill is refused, and the next caller gets a lease of its own.
pub async fn an_invalidation_takes_the_lease_away(f: CacheFixture) {
    let key = f.key("k");
    let old = granted(&*f.service, &key).await;
    f.service.invalidate(&key).await.unwrap();
    assert!(!fill(&*f.service, &key, &old, "old").await);
    assert_eq!(stored(&*f.service, &key).await, None);
    let new = granted(&*f.service, &key).await;
    assert!(!fill(&*f.service, &key, &old, "old").await);
    assert!(fill(&*f.service, &key, &new, "new").await);
    assert_eq!(stored(&*f.service, &key).await, Some(value("new")));
}

/// SE1: the same by a bulk invalidation.
pub async fn a_bulk_invalidation_takes_the_lease_away(f: CacheFixture) {
    let (key, other) = (f.key("k"), f.key("other"));
    let (claim, kept) = (granted(&*f.service, &key).await, granted(&*f.service, &other).await);
    f.service.invalidate_many(&[&key, &f.key("third")]).await.unwrap();
    assert!(!fill(&*f.service, &key, &claim, "old").await);
    assert!(fill(&*f.service, &other, &kept, "v").await, "other leases stand");
}

/// SE3: the same by a prefix.
pub async fn a_prefix_takes_the_lease_away(f: CacheFixture) {
    let (key, other) = (f.key("a/k"), f.key("b/k"));
    let (claim, kept) = (granted(&*f.service, &key).await, granted(&*f.service, &other).await);
    f.service.invalidate_prefix(&f.key("a/")).await.unwrap();
    assert!(!fill(&*f.service, &key, &claim, "old").await);
    assert_eq!(stored(&*f.service, &key).await, None);
    assert!(fill(&*f.service, &other, &kept, "v").await, "other leases stand");
}

/// SE2, SE12: a set during a load stays.
pub async fn a_set_defeats_the_fill(f: CacheFixture) {
    let (key, other) = (f.key("k"), f.key("other"));
    let (claim, bulk) = (granted(&*f.service, &key).await, granted(&*f.service, &other).await);
    f.service.set_bytes(&key, value("new"), Ttl::Default).await.unwrap();
    f.service.set_many_bytes(&[(other.as_str(), value("new"))], Ttl::Default).await.unwrap();
    assert!(!fill(&*f.service, &key, &claim, "old").await);
    assert!(!fill(&*f.service, &other, &bulk, "old").await);
    for key in [&key, &other] {
        assert_eq!(stored(&*f.service, key).await, Some(value("new")));
        let found = f.service.get_or_lease(key, LeaseToken::random(), LEASE).await.unwrap();
        assert_eq!(found, Lookup::Hit(value("new")), "a value for everyone");
    }
    let zero = f.key("zero");
    let claim = granted(&*f.service, &zero).await;
    f.service.set_bytes(&zero, value("new"), Duration::ZERO.into()).await.unwrap();
    assert!(!fill(&*f.service, &zero, &claim, "old").await, "a set that stores nothing, too");
}

/// F2 of COHERENCE (ABA): a client's second load does not re-arm the stale fill of its first.
pub async fn a_second_load_of_one_client_does_not_revive_the_first(f: CacheFixture) {
    let key = f.key("k");
    let first = granted(&*f.service, &key).await;
    f.service.invalidate(&key).await.unwrap();
    let second = granted(&*f.service, &key).await;
    assert_ne!(first, second);
    assert!(!fill(&*f.service, &key, &first, "old").await);
    assert!(fill(&*f.service, &key, &second, "new").await);
    assert_eq!(stored(&*f.service, &key).await, Some(value("new")));
}

/// SA13: a lease ends by itself; the next caller gets it, and the late fill is refused.
pub async fn an_expired_lease_passes_on(f: CacheFixture) {
    let key = f.key("k");
    let Lookup::Granted(late) = f.service.get_or_lease(&key, LeaseToken::random(), f.short()).await.unwrap()
    else {
        panic!("the lease is free");
    };
    if let super::Time::Manual(clock) = &f.time {
        clock.advance(f.short() - Duration::from_nanos(1));
        assert_eq!(
            f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(),
            Lookup::Busy,
            "to the last nanosecond"
        );
        clock.advance(Duration::from_nanos(1));
    } else {
        assert_eq!(f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
        f.time.pass(f.short()).await;
    }
    assert!(!fill(&*f.service, &key, &late, "late").await);
    let next = granted(&*f.service, &key).await;
    assert!(!fill(&*f.service, &key, &late, "late").await);
    assert!(!f.service.renew(&key, &late, LEASE).await.unwrap(), "and cannot be renewed");
    assert!(fill(&*f.service, &key, &next, "v").await);
}

/// COHERENCE 1.4: a lease that is renewed outlives its first end; one that is gone is not revived.
pub async fn a_renewed_lease_stands(f: CacheFixture) {
    let key = f.key("k");
    let Lookup::Granted(claim) = f.service.get_or_lease(&key, LeaseToken::random(), f.short()).await.unwrap()
    else {
        panic!("the lease is free");
    };
    assert!(f.service.renew(&key, &claim, LEASE).await.unwrap());
    f.time.pass(f.short()).await;
    assert_eq!(f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
    assert!(fill(&*f.service, &key, &claim, "v").await);
    assert!(!f.service.renew(&key, &claim, LEASE).await.unwrap(), "used up");
    let gone = granted(&*f.service, &f.key("gone")).await;
    f.service.invalidate(&f.key("gone")).await.unwrap();
    assert!(!f.service.renew(&f.key("gone"), &gone, LEASE).await.unwrap(), "taken away");
}

/// SA6: a load that failed gives way at once.
pub async fn a_released_lease_passes_on_at_once(f: CacheFixture) {
    let key = f.key("k");
    let first = granted(&*f.service, &key).await;
    f.service.release(&key, &first).await.unwrap();
    let second = granted(&*f.service, &key).await;
    assert!(!fill(&*f.service, &key, &first, "late").await);
    f.service.release(&key, &second).await.unwrap();
    f.service.release(&key, &second).await.unwrap();
}

/// PROTOCOLS 2: releasing what is not ours leaves a lease and a value alone.
pub async fn a_foreign_release_does_nothing(f: CacheFixture) {
    let key = f.key("k");
    let old = granted(&*f.service, &key).await;
    f.service.invalidate(&key).await.unwrap();
    let new = granted(&*f.service, &key).await;
    f.service.release(&key, &old).await.unwrap();
    assert!(fill(&*f.service, &key, &new, "v").await);
    f.service.release(&key, &new).await.unwrap();
    f.service.release(&key, &Claim::replacing(Stamp::of(&value("v")))).await.unwrap();
    assert_eq!(stored(&*f.service, &key).await, Some(value("v")));
}

/// A3: a fill with a life of zero stores nothing, and the next caller need not wait.
pub async fn a_fill_with_no_life_gives_the_lease_up(f: CacheFixture) {
    let key = f.key("k");
    let claim = granted(&*f.service, &key).await;
    assert!(f.service.fill(&key, &claim, value("v"), Duration::ZERO.into()).await.unwrap());
    assert_eq!(stored(&*f.service, &key).await, None);
    let _next = granted(&*f.service, &key).await;
}

/// A8: a value that is too large is an error, and the lease stands for a smaller one.
pub async fn an_oversized_fill_keeps_the_lease(f: CacheFixture) {
    let key = f.key("k");
    let claim = granted(&*f.service, &key).await;
    let large = Bytes::from(vec![0; MAX_VALUE_BYTES + 1]);
    let refused = f.service.fill(&key, &claim, large, Ttl::Default).await;
    assert!(matches!(refused, Err(CacheError::ValueTooLarge { .. })), "{refused:?}");
    assert!(fill(&*f.service, &key, &claim, "v").await);
}

/// A2, A3: what a fill or a refresh stores has the life it says: its own, the default, a huge one that is clamped.
pub async fn what_is_filled_has_a_life_of_its_own(f: CacheFixture) {
    let (short, long) = (f.key("short"), f.key("long"));
    for refresh in [false, true] {
        for (key, life) in [(&short, f.short().into()), (&long, Duration::MAX.into())] {
            let claim = if refresh {
                f.service.set_bytes(key, value("old"), Ttl::Default).await.unwrap();
                Claim::replacing(Stamp::of(&value("old")))
            } else {
                granted(&*f.service, key).await
            };
            assert!(f.service.fill(key, &claim, value("new"), life).await.unwrap());
        }
        assert_eq!(stored(&*f.service, &short).await, Some(value("new")));
        f.time.pass(f.short()).await;
        assert_eq!(stored(&*f.service, &short).await, None, "refresh {refresh}");
        assert_eq!(stored(&*f.service, &long).await, Some(value("new")), "refresh {refresh}");
        f.service.invalidate(&long).await.unwrap();
    }
}

/// A8: leases, fills and take-overs work under any key.
pub async fn leases_are_held_under_hostile_keys_too(f: CacheFixture) {
    let longest = "x".repeat(512 - f.scope.len());
    for name in ["*", "[a-z]", "\\", "{a}", "}{", "%s", " ", "é\u{1f600}", &longest] {
        let (key, dead) = (f.key(name), Stamp::of(&value("v")));
        let claim = granted(&*f.service, &key).await;
        assert_eq!(
            f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(),
            Lookup::Busy,
            "{name}"
        );
        assert!(f.service.renew(&key, &claim, LEASE).await.unwrap(), "{name}");
        assert!(fill(&*f.service, &key, &claim, "v").await, "{name}");
        let Lookup::Granted(claim) =
            f.service.lease_over(&key, &dead, LeaseToken::random(), LEASE).await.unwrap()
        else {
            panic!("{name}: the value is the one that was seen");
        };
        f.service.release(&key, &claim).await.unwrap();
        let _claim = granted(&*f.service, &key).await;
    }
}

/// SE7, P4: leases, values and invalidations are the store's, not an instance's.
pub async fn another_instance_is_on_the_same_store(f: CacheFixture) {
    let (key, here, there) = (f.key("k"), &*f.service, &*f.peer);
    let old = granted(here, &key).await;
    assert_eq!(there.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
    there.invalidate(&key).await.unwrap();
    assert!(!fill(here, &key, &old, "old").await, "taken away by the other");
    let new = granted(there, &key).await;
    assert!(!fill(here, &key, &old, "old").await);
    assert!(fill(there, &key, &new, "new").await);
    assert_eq!(stored(here, &key).await, Some(value("new")));
    there.invalidate_prefix(&key).await.unwrap();
    assert!(!fill(here, &key, &Claim::replacing(Stamp::of(&value("new"))), "old").await);
    assert_eq!(stored(here, &key).await, None);
}
