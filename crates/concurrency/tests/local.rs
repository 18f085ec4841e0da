//! What is particular to this process: limits and presence on a manual clock, and what is left in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{
    LockOptions, ManualClock, Member, PresenceError, PresenceOptions, Quota, RateLimitError, TenantId, UserId,
};
use concurrency::LocalConcurrencyService;

fn on(hand: &ManualClock) -> LocalConcurrencyService {
    LocalConcurrencyService::builder().clock(hand.clock()).build()
}

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

fn member(user: &str) -> Member {
    Member { user_id: UserId::new(user).unwrap(), connected_at: 7 }
}

/// F1: one object, three contracts, each to be had alone.
#[tokio::test]
async fn the_service_is_the_sum_of_its_parts() {
    let all: Arc<dyn ConcurrencyService> = Arc::new(LocalConcurrencyService::new());
    let locks: Arc<dyn Locks> = all.clone();
    let limits: Arc<dyn RateLimits> = all.clone();
    let presence: Arc<dyn Presence> = all;
    assert_eq!(locks.with_lock("k", async { 1 }).await.unwrap(), 1);
    assert!(limits.check(&Quota::api(), "k", 1).await.unwrap().allowed);
    assert_eq!(presence.count(&tenant("a")).await.unwrap(), 0);
}

/// F6, G: a million different keys leave nothing behind.
#[tokio::test]
async fn a_million_keys_leave_nothing_behind() {
    let hand = ManualClock::new();
    let service = on(&hand);
    for n in 0..1_000_000_u32 {
        let key = n.to_string();
        drop(service.try_acquire(&key, &LockOptions::default()).await.unwrap().unwrap());
        service.check(&Quota::api(), &key, 1).await.unwrap();
    }
    assert!(service.kept() <= 100_000 + 64, "bounded while in use: {}", service.kept());
    hand.advance(Duration::from_secs(61));
    assert_eq!(service.kept(), 0);
}

/// G1, SH6: parallel callers take exactly the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_callers_take_exactly_the_limit() {
    let hand = ManualClock::new();
    let service = on(&hand);
    for quota in [Quota::api(), Quota::auth()] {
        let tasks = (0..400).map(|_| {
            let (service, quota) = (service.clone(), quota.clone());
            tokio::spawn(async move { service.check(&quota, "k", 1).await.unwrap().allowed })
        });
        let mut allowed = 0;
        for task in tasks.collect::<Vec<_>>() {
            allowed += u32::from(task.await.unwrap());
        }
        assert_eq!(allowed, quota.limit, "{}", quota.name);
    }
}

/// G1, G2: keys and quotas are counted apart, a refusal says when to come back, and what cannot ever be allowed
/// is an error.
#[tokio::test]
async fn limits_are_counted_apart_and_say_when() {
    let hand = ManualClock::new();
    let service = on(&hand);
    let auth = Quota::auth();
    for _ in 0..5 {
        assert!(service.check(&auth, "ann", 1).await.unwrap().allowed);
    }
    let refused = service.check(&auth, "ann", 1).await.unwrap();
    assert_eq!(refused.retry_after, Some(Duration::from_secs(900)));
    assert!(refused.into_result().unwrap_err().to_string().contains("900s"));
    assert!(service.check(&auth, "bob", 1).await.unwrap().allowed);
    assert!(service.check(&Quota::mfa(), "ann", 1).await.unwrap().allowed);
    hand.advance(Duration::from_secs(900));
    assert!(service.check(&auth, "ann", 1).await.unwrap().allowed);
    let impossible = service.check(&auth, "ann", 6).await.unwrap_err();
    assert!(matches!(impossible, RateLimitError::CostExceedsLimit { cost: 6, limit: 5 }), "{impossible:?}");
    assert!(matches!(service.check(&auth, "", 1).await, Err(RateLimitError::InvalidKey(_))));
}

/// G: when the table is full, the counts that end soonest make way, and strict ones are kept longest.
#[tokio::test]
async fn a_full_table_forgets_what_ends_soonest() {
    let hand = ManualClock::new();
    let service = LocalConcurrencyService::builder().clock(hand.clock()).max_limit_keys(64 * 8).build();
    for _ in 0..5 {
        assert!(service.check(&Quota::auth(), "attacker", 1).await.unwrap().allowed);
    }
    for n in 0..100_000 {
        service.check(&Quota::api(), &n.to_string(), 1).await.unwrap();
    }
    assert!(service.kept() <= 64 * 8);
    assert!(!service.check(&Quota::auth(), "attacker", 1).await.unwrap().allowed);
}

/// H1: members live as long as they beat; one's heartbeat never prolongs another; tenants are apart.
#[tokio::test]
async fn members_live_as_long_as_they_beat() {
    let hand = ManualClock::new();
    let service = on(&hand);
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    service.join(&acme, "c1", &member("ann")).await.unwrap();
    service.join(&acme, "c2", &member("bob")).await.unwrap();
    service.join(&globex, "c1", &member("eve")).await.unwrap();
    hand.advance(Duration::from_secs(119));
    assert!(service.heartbeat(&acme, "c1").await.unwrap());
    assert_eq!(service.count(&acme).await.unwrap(), 2);
    hand.advance(Duration::from_secs(1));
    let living = service.list(&acme).await.unwrap();
    assert_eq!((living.len(), &*living[0].connection, &living[0].member), (1, "c1", &member("ann")));
    assert_eq!(service.count(&globex).await.unwrap(), 0);
    assert!(!service.heartbeat(&acme, "c2").await.unwrap(), "it must join again");
    assert!(!service.heartbeat(&acme, "unknown").await.unwrap());
    assert!(service.leave(&acme, "c1").await.unwrap());
    assert!(!service.leave(&acme, "c1").await.unwrap());
    assert_eq!(service.kept(), 0);
}

/// H1: memory is bounded, a full table says so, and dead members make room.
#[tokio::test]
async fn a_full_table_of_members_says_so() {
    let hand = ManualClock::new();
    let options = PresenceOptions::default().with_ttl(Duration::from_secs(10));
    let service =
        LocalConcurrencyService::builder().clock(hand.clock()).presence(options).max_members(3).build();
    for n in 0..3 {
        service.join(&tenant("a"), &n.to_string(), &member("u")).await.unwrap();
    }
    let full = service.join(&tenant("b"), "x", &member("u")).await.unwrap_err();
    assert!(matches!(full, PresenceError::Full { limit: 3 }), "{full:?}");
    service.join(&tenant("a"), "0", &member("other")).await.unwrap();
    assert!(matches!(
        service.join(&tenant("a"), "\n", &member("u")).await,
        Err(PresenceError::InvalidConnection(_))
    ));
    hand.advance(Duration::from_secs(10));
    service.join(&tenant("b"), "x", &member("u")).await.unwrap();
}

/// H1: those who cannot join do not make everybody wait: a full table is swept now and then, not for each of them.
#[tokio::test]
async fn a_full_table_is_not_swept_for_everybody() {
    let hand = ManualClock::new();
    let options = PresenceOptions::default().with_ttl(Duration::from_millis(500));
    let service =
        LocalConcurrencyService::builder().clock(hand.clock()).presence(options).max_members(2).build();
    hand.advance(Duration::from_secs(10));
    for n in ["1", "2"] {
        service.join(&tenant("a"), n, &member("u")).await.unwrap();
    }
    assert!(service.join(&tenant("a"), "3", &member("u")).await.is_err(), "swept, and all live");
    hand.advance(Duration::from_millis(999));
    assert!(service.join(&tenant("a"), "3", &member("u")).await.is_err(), "not swept again yet");
    hand.advance(Duration::from_millis(1));
    service.join(&tenant("a"), "3", &member("u")).await.unwrap();
}
