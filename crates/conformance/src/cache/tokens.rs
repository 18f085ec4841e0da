//! Tokens, which the caller chooses: requests that are repeated, leases nobody heard of, leases that are taken.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use cache_core::{Claim, LeaseToken, Lookup, Stamp, Ttl};

use super::CacheFixture;
use super::concurrent::poll_once;
use super::leases::{LEASE, fill, granted, stored, value};

/// A12: a request that is repeated with its token, because the answer was lost, is granted again; so is a take-over.
/// The lease is the same one: another token finds it busy, and it fills once.
pub async fn a_repeated_request_is_granted_again(f: CacheFixture) {
    let (key, token, dead) = (f.key("k"), LeaseToken::random(), Stamp::of(&value("dead")));
    let again = Lookup::Granted(Claim::lease(token));
    f.service.set_bytes(&key, value("dead"), Ttl::Default).await.unwrap();
    for _ in 0..2 {
        assert_eq!(f.service.lease_over(&key, &dead, token, LEASE).await.unwrap(), again);
        assert_eq!(f.service.get_or_lease(&key, token, LEASE).await.unwrap(), again);
        assert_eq!(f.peer.get_or_lease(&key, token, LEASE).await.unwrap(), again, "at any instance");
        let other = LeaseToken::random();
        assert_eq!(f.service.get_or_lease(&key, other, LEASE).await.unwrap(), Lookup::Busy);
        assert_eq!(f.service.lease_over(&key, &dead, other, LEASE).await.unwrap(), Lookup::Busy);
    }
    assert!(fill(&*f.service, &key, &Claim::lease(token), "v").await);
    assert!(!fill(&*f.service, &key, &Claim::lease(token), "again").await, "a lease fills once");
    let found = f.service.get_or_lease(&key, token, LEASE).await.unwrap();
    assert_eq!(found, Lookup::Hit(value("v")), "and a value is a hit for its token, too");
}

/// SA13: a lease that is asked for again ends when it would have ended: only `renew` prolongs it.
pub async fn a_repeated_request_prolongs_nothing(f: CacheFixture) {
    let (key, token) = (f.key("k"), LeaseToken::random());
    for lease_for in [f.short(), LEASE] {
        let found = f.service.get_or_lease(&key, token, lease_for).await.unwrap();
        assert_eq!(found, Lookup::Granted(Claim::lease(token)));
    }
    f.time.pass(f.short()).await;
    let _next = granted(&*f.service, &key).await;
    assert!(!fill(&*f.service, &key, &Claim::lease(token), "late").await);
}

/// SA6: the token of a request that was not granted, or never sent, ends nobody's lease, removes no value, and can
/// be granted the next lease.
pub async fn a_token_that_was_not_granted_releases_nothing(f: CacheFixture) {
    let (key, refused) = (f.key("k"), LeaseToken::random());
    f.service.release(&key, &Claim::lease(refused)).await.unwrap();
    let holder = granted(&*f.service, &key).await;
    assert_eq!(f.service.get_or_lease(&key, refused, LEASE).await.unwrap(), Lookup::Busy);
    f.service.release(&key, &Claim::lease(refused)).await.unwrap();
    assert!(!fill(&*f.service, &key, &Claim::lease(refused), "stolen").await);
    assert!(!f.service.renew(&key, &Claim::lease(refused), LEASE).await.unwrap());
    assert!(fill(&*f.service, &key, &holder, "v").await, "the lease stood");
    f.service.release(&key, &Claim::lease(refused)).await.unwrap();
    assert_eq!(stored(&*f.service, &key).await, Some(value("v")));
}

/// SA3, SA6: who does not read the answer, or does not wait for it, gives the lease up by the token: the next caller
/// gets it at once, and not when it would have ended.
pub async fn a_lease_that_nobody_heard_of_is_given_up_by_its_token(f: CacheFixture) {
    let (key, dead) = (f.key("k"), Stamp::of(&value("dead")));
    for way in 0..5 {
        let token = LeaseToken::random();
        match way {
            0 => drop(f.service.get_or_lease(&key, token, LEASE).await.unwrap()),
            1 => drop(f.service.lease_over(&key, &dead, token, LEASE).await.unwrap()),
            2 => drop(f.service.take_lease(&key, token, LEASE).await.unwrap()),
            3 => poll_once(f.service.get_or_lease(&key, token, LEASE)),
            _ => poll_once(f.service.take_lease(&key, token, LEASE)),
        }
        f.service.release(&key, &Claim::lease(token)).await.unwrap();
        let next = granted(&*f.service, &key).await;
        assert!(!fill(&*f.service, &key, &Claim::lease(token), "late").await, "way {way}");
        f.service.release(&key, &next).await.unwrap();
    }
}

/// SE2: a lease that is taken refuses what was loaded before it, by a lease and by a refresh; its own fill is stored.
pub async fn a_taken_lease_defeats_a_fill_in_flight(f: CacheFixture) {
    let (leased, refreshed) = (f.key("leased"), f.key("refreshed"));
    f.service.set_bytes(&refreshed, value("old"), Ttl::Default).await.unwrap();
    let old = granted(&*f.service, &leased).await;
    for (key, claim) in [(&leased, old), (&refreshed, Claim::replacing(Stamp::of(&value("old"))))] {
        let token = LeaseToken::random();
        let taken = f.peer.take_lease(key, token, LEASE).await.unwrap();
        assert_eq!(taken, Claim::lease(token), "{key}");
        assert!(!f.service.renew(key, &claim, LEASE).await.unwrap(), "{key}");
        assert!(!fill(&*f.service, key, &claim, "old").await, "{key}");
        f.service.release(key, &claim).await.unwrap();
        assert!(fill(&*f.service, key, &taken, "new").await, "{key}");
        assert_eq!(stored(&*f.service, key).await, Some(value("new")), "{key}");
    }
}

/// SE2: where a lease was taken readers find no value, and a lease; when it is given up, nothing.
pub async fn a_taken_lease_hides_the_value(f: CacheFixture) {
    for had in [Some("old"), None] {
        let key = f.key(had.unwrap_or("none"));
        if let Some(had) = had {
            f.service.set_bytes(&key, value(had), Ttl::Default).await.unwrap();
        }
        let taken = f.service.take_lease(&key, LeaseToken::random(), LEASE).await.unwrap();
        assert_eq!(stored(&*f.service, &key).await, None);
        assert_eq!(f.peer.get_many_bytes(&[&key]).await.unwrap(), [None]);
        let (other, seen) = (LeaseToken::random(), Stamp::of(&value("old")));
        assert_eq!(f.service.get_or_lease(&key, other, LEASE).await.unwrap(), Lookup::Busy);
        assert_eq!(f.service.lease_over(&key, &seen, other, LEASE).await.unwrap(), Lookup::Busy);
        f.service.release(&key, &taken).await.unwrap();
        let _next = granted(&*f.service, &key).await;
    }
}

/// SE1, P3: an invalidation and a `set` take a lease away that was taken, as they do any other.
pub async fn a_taken_lease_is_taken_away(f: CacheFixture) {
    for event in ["invalidate", "bulk", "prefix", "set"] {
        let key = f.key(event);
        let taken = f.service.take_lease(&key, LeaseToken::random(), LEASE).await.unwrap();
        match event {
            "invalidate" => f.peer.invalidate(&key).await.unwrap(),
            "bulk" => f.peer.invalidate_many(&[&key, &f.key("other")]).await.unwrap(),
            "prefix" => assert_eq!(f.peer.invalidate_prefix(&key).await.unwrap(), 0, "a lease is no entry"),
            _ => f.peer.set_bytes(&key, value("new"), Ttl::Default).await.unwrap(),
        }
        let before = stored(&*f.service, &key).await;
        assert!(!fill(&*f.service, &key, &taken, "old").await, "{event}");
        assert!(!f.service.renew(&key, &taken, LEASE).await.unwrap(), "{event}");
        assert_eq!(stored(&*f.service, &key).await, before, "{event}");
    }
}

/// SA13: a lease that was taken ends by itself unless it is renewed; what it took the place of does not come back.
pub async fn a_taken_lease_ends_like_any_other(f: CacheFixture) {
    let (key, renewed) = (f.key("k"), f.key("renewed"));
    f.service.set_bytes(&key, value("old"), Ttl::Default).await.unwrap();
    // Another's lease, which would have stood for longer.
    let _other = granted(&*f.service, &renewed).await;
    let late = f.service.take_lease(&key, LeaseToken::random(), f.short()).await.unwrap();
    let kept = f.service.take_lease(&renewed, LeaseToken::random(), f.short()).await.unwrap();
    assert!(f.service.renew(&renewed, &kept, LEASE).await.unwrap());
    f.time.pass(f.short()).await;
    assert_eq!(stored(&*f.service, &key).await, None);
    assert!(!fill(&*f.service, &key, &late, "late").await);
    let _next = granted(&*f.service, &key).await;
    assert!(fill(&*f.service, &renewed, &kept, "v").await);
}

/// SE2: of two who take the lease the later one fills, whoever is the first to try.
pub async fn the_later_of_two_taken_leases_stands(f: CacheFixture) {
    for earlier_first in [true, false] {
        let key = f.key(&earlier_first.to_string());
        let earlier = f.service.take_lease(&key, LeaseToken::random(), LEASE).await.unwrap();
        let later = f.peer.take_lease(&key, LeaseToken::random(), LEASE).await.unwrap();
        if earlier_first {
            assert!(!fill(&*f.service, &key, &earlier, "earlier").await);
        }
        f.service.release(&key, &earlier).await.unwrap();
        assert!(fill(&*f.service, &key, &later, "later").await);
        assert!(!fill(&*f.service, &key, &earlier, "earlier").await);
        assert_eq!(stored(&*f.service, &key).await, Some(value("later")));
    }
}
