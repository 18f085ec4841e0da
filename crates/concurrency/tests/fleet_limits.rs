//! What a process of a fleet knows by itself: who was denied, and what to do while the store is away.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cache_core::gcra::{self, Count};
use cache_core::{
    BackendError, BackendErrorKind, Decision, KeyError, ManualClock, OnUnavailable, Quota, RateLimitError,
    RateLimits,
};
use concurrency::{FleetRateLimits, LocalConcurrencyService};
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use proptest::prelude::*;

/// A store that counts how often it is asked, and can be away.
#[derive(Debug)]
struct Store {
    hand: ManualClock,
    /// How long an answer is on its way.
    answer_takes: Mutex<Duration>,
    counts: Mutex<HashMap<(String, String), Count>>,
    asked: AtomicUsize,
    away: AtomicBool,
}

#[async_trait]
impl RateLimits for Store {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            let source = BackendError::new(BackendErrorKind::Unavailable, "limit", "gone");
            return Err(RateLimitError::Unavailable { retry_after: Duration::from_secs(1), source });
        }
        let now = self.hand.clock().now().as_nanos() / 1_000;
        let (mut counts, key) = (self.counts.lock(), (quota.name.to_string(), key.to_owned()));
        let (decision, count) = gcra::check(quota, counts.get(&key).copied(), now, cost);
        counts.extend(count.map(|count| (key, count)));
        self.hand.advance(*self.answer_takes.lock());
        Ok(decision)
    }
}

/// An instance of a fleet whose clock is by hand.
struct Fleet {
    hand: ManualClock,
    store: Arc<Store>,
    limits: FleetRateLimits,
}

impl Fleet {
    fn new() -> Self {
        let hand = ManualClock::new();
        let (asked, away) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (answer_takes, counts) = (Mutex::default(), Mutex::default());
        let store = Arc::new(Store { hand: hand.clone(), answer_takes, counts, asked, away });
        let limits = FleetRateLimits::builder(store.clone()).clock(hand.clock()).build();
        Self { hand, store, limits }
    }

    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Decision {
        self.limits.check(quota, key, cost).await.unwrap()
    }

    fn asked(&self) -> usize {
        self.store.asked.load(Ordering::Relaxed)
    }

    fn store_is_away(&self, away: bool) {
        self.store.away.store(away, Ordering::Relaxed);
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// G5: who was denied by a window is denied from memory until it ends, and is told the time that is left.
#[tokio::test]
async fn a_window_denies_from_memory_until_it_ends() {
    let (fleet, auth) = (Fleet::new(), Quota::auth());
    for _ in 0..6 {
        fleet.check(&auth, "ann", 1).await;
    }
    assert_eq!(fleet.asked(), 6);
    for passed in [0, 1, 100, 798] {
        fleet.hand.advance(seconds(passed));
        assert!(!fleet.check(&auth, "ann", 1).await.allowed);
    }
    let last = fleet.check(&auth, "ann", 1).await;
    assert_eq!(last.retry_after, Some(seconds(1)));
    assert_eq!(fleet.asked(), 6, "the store was not asked again");
    assert!(fleet.check(&auth, "bob", 1).await.allowed, "others are not denied");
    assert!(fleet.check(&Quota::mfa(), "ann", 1).await.allowed, "nor is another quota");
    fleet.hand.advance(seconds(1));
    assert!(fleet.check(&auth, "ann", 1).await.allowed, "a new window");
}

/// G5: who was denied by a bucket is denied from memory until enough is refilled, at most 10 s.
#[tokio::test]
async fn a_bucket_denies_from_memory_for_ten_seconds_at_most() {
    let fleet = Fleet::new();
    let slow = Quota::token_bucket("slow", 2, seconds(60));
    assert!(fleet.check(&slow, "ann", 2).await.allowed);
    assert_eq!(fleet.check(&slow, "ann", 1).await.retry_after, Some(seconds(30)));
    let asked = fleet.asked();
    fleet.hand.advance(Duration::from_millis(9_999));
    assert_eq!(fleet.check(&slow, "ann", 1).await.retry_after, Some(Duration::from_millis(20_001)));
    assert_eq!(fleet.asked(), asked);
    fleet.hand.advance(Duration::from_millis(1));
    assert!(!fleet.check(&slow, "ann", 1).await.allowed);
    assert_eq!(fleet.asked(), asked + 1, "after 10 s the store is asked");
    fleet.hand.advance(seconds(5));
    assert!(!fleet.check(&slow, "ann", 1).await.allowed);
    assert_eq!(fleet.asked(), asked + 1, "and is believed again");
}

/// G5: a smaller cost than the one denied is not denied with it.
#[tokio::test]
async fn a_smaller_cost_is_not_denied_with_a_larger() {
    for quota in [Quota::token_bucket("q", 10, seconds(60)), Quota::fixed_window("q", 10, seconds(60))] {
        let fleet = Fleet::new();
        assert!(fleet.check(&quota, "ann", 7).await.allowed);
        assert!(!fleet.check(&quota, "ann", 5).await.allowed);
        let asked = fleet.asked();
        assert!(!fleet.check(&quota, "ann", 4).await.allowed);
        assert_eq!(fleet.asked(), asked, "what was denied for less is denied for more");
        assert!(fleet.check(&quota, "ann", 3).await.allowed, "{quota:?}");
        assert_eq!(fleet.asked(), asked + 1);
    }
}

/// G5: to ask what is left of nothing needs no store either: so a caller is kept out who is only to be looked at.
#[tokio::test]
async fn that_nothing_is_left_is_known_without_asking() {
    for quota in [Quota::token_bucket("q", 5, seconds(60)), Quota::auth()] {
        let fleet = Fleet::new();
        assert!(fleet.check(&quota, "ann", 5).await.allowed);
        assert!(!fleet.check(&quota, "ann", 1).await.allowed);
        let asked = fleet.asked();
        let left = fleet.check(&quota, "ann", 0).await;
        assert_eq!((left.allowed, left.remaining, fleet.asked()), (true, 0, asked), "{quota:?}");
        fleet.hand.advance(quota.per);
        assert_eq!(fleet.check(&quota, "ann", 0).await.remaining, 5);
    }
}

/// G5: nobody is denied from memory for longer than by the store, however long its answer was on its way; nor told to
/// wait for less.
#[tokio::test]
async fn a_late_answer_denies_no_longer() {
    for quota in [Quota::token_bucket("q", 1, seconds(6)), Quota::fixed_window("q", 1, seconds(6))] {
        let fleet = Fleet::new();
        assert!(fleet.check(&quota, "ann", 1).await.allowed);
        *fleet.store.answer_takes.lock() = seconds(2);
        assert!(!fleet.check(&quota, "ann", 1).await.allowed);
        let asked = fleet.asked();
        let told = fleet.check(&quota, "ann", 1).await;
        assert_eq!(told.retry_after, Some(seconds(6)), "the answer was given at some time in two seconds");
        assert_eq!((told.reset_after, told.next_after, fleet.asked()), (seconds(6), seconds(6), asked));
        fleet.hand.advance(seconds(4));
        assert!(fleet.check(&quota, "ann", 1).await.allowed, "{quota:?}");
    }
}

/// G4: without its store a quota that fails closed is an error, the others are counted here; both are counted as
/// such, and none is taken for a denial of the store's.
#[tokio::test]
async fn without_its_store_a_quota_does_what_it_says() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _counting = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
    let fleet = Fleet::new();
    fleet.store_is_away(true);
    for closed in [Quota::auth(), Quota::mfa()] {
        let error = fleet.limits.check(&closed, "ann", 1).await.unwrap_err();
        assert!(matches!(error, RateLimitError::Unavailable { .. }), "{error:?}");
    }
    let open = Quota::token_bucket("open", 2, seconds(60));
    assert_eq!(open.on_unavailable, OnUnavailable::Local);
    let passed = [1, 1, 1].map(|cost| fleet.check(&open, "ann", cost));
    let passed: Vec<bool> = futures_util::future::join_all(passed).await.iter().map(|d| d.allowed).collect();
    assert_eq!(passed, [true, true, false], "this instance grants the limit once");

    fleet.store_is_away(false);
    assert!(fleet.check(&open, "ann", 1).await.allowed, "the store has counted nothing yet");
    assert!(fleet.check(&Quota::auth(), "ann", 1).await.allowed);
    let counted = metrics.render();
    for line in [
        r#"rate_limit_store_failures_total{name="auth",outcome="closed"} 1"#,
        r#"rate_limit_store_failures_total{name="mfa",outcome="closed"} 1"#,
        r#"rate_limit_store_failures_total{name="open",outcome="local"} 3"#,
        r#"rate_limit_rejections_total{name="open"} 1"#,
        // Asked of the store; of those that asked nobody the thread's first is timed.
        r#"rate_limit_check_duration_seconds_count{name="open"} 2"#,
    ] {
        assert!(counted.contains(line), "{line} in {counted}");
    }
}

/// G5: a denial that was heard before the store went away still holds; nothing else is known then.
#[tokio::test]
async fn a_denial_outlives_the_store() {
    let fleet = Fleet::new();
    for _ in 0..6 {
        fleet.check(&Quota::auth(), "ann", 1).await;
    }
    fleet.store_is_away(true);
    assert!(!fleet.check(&Quota::auth(), "ann", 1).await.allowed);
    fleet.limits.check(&Quota::auth(), "bob", 1).await.unwrap_err();
}

/// What is wrong with the question is said before the store is asked.
#[tokio::test]
async fn what_is_wrong_is_said_before_the_store_is_asked() {
    let fleet = Fleet::new();
    fleet.store_is_away(true);
    let error = fleet.limits.check(&Quota::api(), "k", 101).await.unwrap_err();
    assert!(matches!(error, RateLimitError::CostExceedsLimit { .. }), "{error:?}");
    let error = fleet.limits.check(&Quota::api(), "", 1).await.unwrap_err();
    assert!(matches!(error, RateLimitError::InvalidKey(KeyError::Empty)), "{error:?}");
    assert_eq!(fleet.asked(), 0);
}

/// G5: a million denied callers are remembered within bounds, and then forgotten.
#[tokio::test]
async fn a_million_denied_callers_leave_nothing_behind() {
    #[derive(Debug)]
    struct Full;

    #[async_trait]
    impl RateLimits for Full {
        async fn check(&self, quota: &Quota, _: &str, _: u32) -> Result<Decision, RateLimitError> {
            Ok(gcra::window(quota, false, quota.limit, 900_000_000))
        }
    }

    let hand = ManualClock::new();
    let limits = FleetRateLimits::builder(Arc::new(Full)).clock(hand.clock()).build();
    let auth = Quota::auth();
    for n in 0..1_000_000_u32 {
        assert!(!limits.check(&auth, &n.to_string(), 1).await.unwrap().allowed);
    }
    let kept = limits.kept();
    assert!((7_200..=10_048).contains(&kept), "bounded while they are denied: {kept}");
    hand.advance(seconds(900));
    assert_eq!(limits.kept(), 0);
}

/// G5: quotas are told apart in metrics within bounds.
#[tokio::test]
async fn quotas_are_told_apart_within_bounds() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _counting = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
    let service = LocalConcurrencyService::new();
    for _ in ["allowed", "denied"] {
        for n in 0..200 {
            let quota = Quota::fixed_window(format!("q{n}"), 1, seconds(60));
            service.check(&quota, "k", 1).await.unwrap();
        }
    }
    let counted = metrics.render();
    let series = counted.matches("rate_limit_rejections_total{").count();
    assert_eq!(series, 65, "{counted}");
    assert!(counted.contains(r#"rate_limit_rejections_total{name="q9"} 1"#), "{counted}");
    assert!(counted.contains(r#"rate_limit_rejections_total{name="other"} 136"#), "{counted}");
}

proptest! {
    /// G5: what is denied from memory is what the store would have denied, and nothing else: whatever is asked, and
    /// when, the decisions are those of the store, but for fewer questions.
    #[test]
    fn memory_decides_as_the_store_would(
        bucket in any::<bool>(),
        steps in prop::collection::vec((prop_oneof![Just(0), 0_u64..3_000_000], 0_u32..6, 0_usize..2), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let quota = match bucket {
            true => Quota::token_bucket("q", 5, seconds(7)),
            false => Quota::fixed_window("q", 5, seconds(7)),
        };
        let fleet = Fleet::new();
        let alone = LocalConcurrencyService::builder().clock(fleet.hand.clock()).build();
        let mut asked = 0;
        for (pause, cost, key) in steps {
            fleet.hand.advance(Duration::from_micros(pause));
            let (key, cost) = (["a", "b"][key], cost.min(5));
            let expected = runtime.block_on(alone.check(&quota, key, cost)).unwrap();
            let decision = runtime.block_on(fleet.check(&quota, key, cost));
            prop_assert_eq!(decision, expected);
            asked += 1;
        }
        prop_assert!(fleet.asked() <= asked);
    }
}
