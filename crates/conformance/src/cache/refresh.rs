//! Refreshing a value while it is served, and taking a dead one over.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::time::Duration;

use cache_core::{Claim, LeaseToken, Lookup, Stamp, Ttl};

use super::CacheFixture;
use super::leases::{LEASE, fill, granted, stored, value};

/// SE6: a refresh stores over the value it saw, with which readers went on meanwhile.
pub async fn a_refresh_replaces_what_it_saw(f: CacheFixture) {
    for seen in ["old", "", "\u{1b}escaped", "\0marked", "a value that is longer than what is compared of it"]
    {
        let key = f.key("k");
        f.service.set_bytes(&key, value(seen), Ttl::Default).await.unwrap();
        let claim = Claim::replacing(Stamp::of(&value(seen)));
        assert!(f.service.renew(&key, &claim, LEASE).await.unwrap(), "{seen:?} stands");
        assert_eq!(stored(&*f.service, &key).await, Some(value(seen)));
        assert!(fill(&*f.service, &key, &claim, "new").await, "{seen:?}");
        assert_eq!(stored(&*f.service, &key).await, Some(value("new")));
        assert!(!fill(&*f.service, &key, &claim, "again").await, "{seen:?} is gone");
    }
}

/// SE6: a refresh gives way to an invalidation, a set, a lease and another refresh.
pub async fn a_refresh_gives_way(f: CacheFixture) {
    let old = || Claim::replacing(Stamp::of(&value("old")));
    for event in ["invalidate", "set", "lease", "refresh", "longer"] {
        let key = f.key(event);
        f.service.set_bytes(&key, value("old"), Ttl::Default).await.unwrap();
        match event {
            "set" => f.service.set_bytes(&key, value("new"), Ttl::Default).await.unwrap(),
            "refresh" => assert!(fill(&*f.service, &key, &old(), "new").await),
            "longer" => f.service.set_bytes(&key, value("older"), Ttl::Default).await.unwrap(),
            _ => f.service.invalidate(&key).await.unwrap(),
        }
        if event == "lease" {
            let _claim = granted(&*f.service, &key).await;
        }
        let before = stored(&*f.service, &key).await;
        assert!(!fill(&*f.service, &key, &old(), "stale").await, "{event}");
        assert!(!f.service.renew(&key, &old(), LEASE).await.unwrap(), "{event}");
        assert_eq!(stored(&*f.service, &key).await, before, "{event}");
    }
}

/// A3, SE6: a refresh with a life of zero removes the value it saw.
pub async fn a_refresh_with_no_life_removes_what_it_saw(f: CacheFixture) {
    let key = f.key("k");
    f.service.set_bytes(&key, value("old"), Ttl::Default).await.unwrap();
    let claim = Claim::replacing(Stamp::of(&value("old")));
    assert!(f.service.fill(&key, &claim, value("new"), Duration::ZERO.into()).await.unwrap());
    assert_eq!(stored(&*f.service, &key).await, None);
    assert!(!fill(&*f.service, &key, &claim, "new").await);
}

/// F12 of COHERENCE: a value that does not count any more makes way for one lease.
pub async fn a_dead_value_is_taken_over_once(f: CacheFixture) {
    for dead in ["dead", "", "\0dead", "a dead value that is longer than what is compared of it"] {
        let (key, stamp) = (f.key(dead.trim_start_matches('\0')), Stamp::of(&value(dead)));
        f.service.set_bytes(&key, value(dead), Ttl::Default).await.unwrap();
        let Lookup::Granted(claim) =
            f.service.lease_over(&key, &stamp, LeaseToken::random(), LEASE).await.unwrap()
        else {
            panic!("{dead:?} is still there");
        };
        assert_eq!(stored(&*f.service, &key).await, None);
        assert_eq!(
            f.service.lease_over(&key, &stamp, LeaseToken::random(), LEASE).await.unwrap(),
            Lookup::Busy
        );
        assert!(fill(&*f.service, &key, &claim, "new").await);
    }
}

/// F12: what changed since it was seen is a hit.
pub async fn a_changed_value_is_not_taken_over(f: CacheFixture) {
    let (key, stamp) = (f.key("k"), Stamp::of(&value("dead")));
    for now in ["new", "deader", "dea", ""] {
        f.service.set_bytes(&key, value(now), Ttl::Default).await.unwrap();
        assert_eq!(
            f.service.lease_over(&key, &stamp, LeaseToken::random(), LEASE).await.unwrap(),
            Lookup::Hit(value(now))
        );
    }
}

/// F12: when the dead value is gone meanwhile, it is a lease like any other.
pub async fn nothing_is_taken_over_as_an_ordinary_lease(f: CacheFixture) {
    let (key, stamp) = (f.key("k"), Stamp::of(&value("dead")));
    let Lookup::Granted(claim) =
        f.service.lease_over(&key, &stamp, LeaseToken::random(), LEASE).await.unwrap()
    else {
        panic!("nothing is there");
    };
    assert_eq!(f.service.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
    f.service.invalidate(&key).await.unwrap();
    assert!(!fill(&*f.service, &key, &claim, "old").await);
}
