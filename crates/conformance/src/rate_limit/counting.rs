//! How much passes.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::task::{Context, Waker};
use std::time::Duration;

use cache_core::{KeyError, Quota, RateLimitError};
use tokio::task::JoinSet;

use super::RateLimitFixture;

const HOUR: Duration = Duration::from_secs(3_600);

/// Of either algorithm, so slow that nothing is refilled during a case.
fn both(limit: u32) -> [Quota; 2] {
    [Quota::token_bucket("slow-bucket", limit, HOUR * limit), Quota::fixed_window("slow-window", limit, HOUR)]
}

/// G1, G2: the limit passes at once, and no more.
pub async fn exactly_the_limit_passes(f: RateLimitFixture) {
    for quota in both(5).into_iter().chain([Quota::auth(), Quota::mfa()]) {
        for left in (0..5).rev() {
            let decision = f.check(&quota, "k", 1).await;
            assert_eq!((decision.allowed, decision.limit, decision.remaining), (true, 5, left), "{quota:?}");
            assert_eq!(decision.retry_after, None);
        }
        let refused = f.check(&quota, "k", 1).await;
        assert_eq!((refused.allowed, refused.limit, refused.remaining), (false, 5, 0), "{quota:?}");
        let error = refused.into_result().unwrap_err();
        assert_eq!(error.decision, refused);
    }
}

/// G1: who is refused is not set back: what is left can still be taken.
pub async fn a_refusal_takes_nothing(f: RateLimitFixture) {
    for quota in both(10) {
        assert!(f.check(&quota, "k", 7).await.allowed);
        for _ in 0..20 {
            let refused = f.check(&quota, "k", 4).await;
            assert_eq!((refused.allowed, refused.remaining), (false, 3), "{quota:?}");
        }
        assert!(f.check(&quota, "k", 3).await.allowed, "{quota:?}");
        assert!(!f.check(&quota, "k", 1).await.allowed, "{quota:?}");
    }
}

/// G1, SH6: a cost of several units takes several; the preset of writes lets twenty pass at once.
pub async fn a_cost_takes_several_units(f: RateLimitFixture) {
    let mutation = Quota::mutation();
    for n in 1..=20 {
        let decision = f.check(&mutation, "k", mutation.cost).await;
        // What is refilled meanwhile shows as a unit or two.
        assert!(decision.allowed && decision.remaining >= 100 - 5 * n, "{decision:?}");
    }
    for quota in both(10) {
        assert_eq!(f.check(&quota, "k", 10).await.remaining, 0, "the whole limit at once");
        assert!(!f.check(&quota, "k", 1).await.allowed);
    }
}

/// G1: a cost of zero asks without taking, also when nothing is left.
pub async fn a_cost_of_zero_only_asks(f: RateLimitFixture) {
    for quota in both(3) {
        for _ in 0..10 {
            let decision = f.check(&quota, "k", 0).await;
            assert_eq!((decision.allowed, decision.remaining), (true, 3), "{quota:?}");
            assert_eq!((decision.reset_after, decision.next_after), Default::default());
        }
        assert!(f.check(&quota, "k", 3).await.allowed);
        let asked = f.check(&quota, "k", 0).await;
        assert_eq!((asked.allowed, asked.remaining), (true, 0), "{quota:?}");
        assert!(asked.reset_after > Duration::ZERO);
    }
}

/// G2: what a decision says fits together.
pub async fn decisions_add_up(f: RateLimitFixture) {
    for quota in both(4).into_iter().chain([Quota::api(), Quota::mutation(), Quota::auth()]) {
        let mut refused = 0;
        for n in 0..30 {
            let decision = f.check(&quota, "k", 1 + n % 3).await;
            assert_eq!(decision.limit, quota.limit);
            assert!(decision.remaining <= quota.limit);
            assert!(decision.next_after <= decision.reset_after && decision.reset_after <= quota.per);
            assert!(decision.next_after > Duration::ZERO, "units are missing");
            assert_eq!(decision.retry_after.is_some(), !decision.allowed);
            if let Some(wait) = decision.retry_after {
                assert!(wait > Duration::ZERO && wait <= decision.reset_after, "{decision:?}");
                refused += 1;
            }
        }
        assert_eq!(refused > 0, quota.limit < 30, "{quota:?}");
    }
}

/// G1, SH6: however many ask at the same time, on whichever instance, the limit passes and no more.
pub async fn parallel_callers_take_exactly_the_limit(f: RateLimitFixture) {
    for quota in both(50) {
        let mut tasks = JoinSet::new();
        for n in 0..200 {
            let limits = if n % 2 == 0 { f.service.clone() } else { f.peer.clone() };
            let (quota, key) = (quota.clone(), f.key("k"));
            tasks.spawn(async move { u32::from(limits.check(&quota, &key, 1).await.unwrap().allowed) });
        }
        assert_eq!(tasks.join_all().await.iter().sum::<u32>(), 50, "{quota:?}");
    }
}

/// G1: what one instance grants is taken for all.
pub async fn instances_share_the_count(f: RateLimitFixture) {
    for quota in both(4) {
        assert!(f.check(&quota, "k", 3).await.allowed);
        let elsewhere = f.peer.check(&quota, &f.key("k"), 1).await.unwrap();
        assert_eq!((elsewhere.allowed, elsewhere.remaining), (true, 0), "{quota:?}");
        assert!(!f.check(&quota, "k", 1).await.allowed);
    }
}

/// G3: every key and every quota has a count of its own, whatever is in their names.
pub async fn keys_and_quotas_are_counted_apart(f: RateLimitFixture) {
    let quota = |name: &str| Quota::token_bucket(name.to_owned(), 1, HOUR);
    let scope = &f.scope;
    let pairs = [
        (format!("{scope}a"), "b:c".to_owned()),
        (format!("{scope}a:b"), "c".to_owned()),
        (format!("{scope}a%3Ab"), "c".to_owned()),
        (format!("{scope}a"), "{b}:c".to_owned()),
        (format!("{scope}a"), "b%3Ac".to_owned()),
        (format!("{scope}a"), "*".to_owned()),
        (format!("{scope}a"), " ".to_owned()),
        (format!("{scope}a"), "é\u{1F980}".to_owned()),
        (format!("{scope}{{a}}"), "b".to_owned()),
    ];
    for (name, key) in &pairs {
        assert!(f.service.check(&quota(name), key, 1).await.unwrap().allowed, "{name} {key}");
    }
    for (name, key) in &pairs {
        assert!(!f.service.check(&quota(name), key, 1).await.unwrap().allowed, "{name} {key}");
    }
    // Of the same name, but another algorithm.
    let window = Quota::fixed_window(format!("{scope}a"), 1, HOUR);
    assert!(f.service.check(&window, "b:c", 1).await.unwrap().allowed);
    // The same quota with another limit is the same count.
    let wider = Quota::token_bucket(format!("{scope}a"), 2, HOUR);
    assert_eq!(f.service.check(&wider, "b:c", 0).await.unwrap().remaining, 0);
}

/// SH6: a cost over the limit, a quota that cannot work and a key that is none are errors that say so, and
/// nothing is counted.
pub async fn what_can_never_pass_is_refused_by_name(f: RateLimitFixture) {
    let quota = Quota::token_bucket("q", 5, HOUR);
    let check = |quota: Quota, key: String, cost| {
        let limits = f.service.clone();
        async move { limits.check(&quota, &key, cost).await.unwrap_err() }
    };
    let error = check(quota.clone(), f.key("k"), 6).await;
    assert!(matches!(error, RateLimitError::CostExceedsLimit { cost: 6, limit: 5 }), "{error:?}");
    for (broken, reason) in [
        (Quota::token_bucket("q", 0, HOUR), "limit"),
        (Quota::token_bucket("q", 2, Duration::from_micros(1)), "microsecond"),
        (Quota::fixed_window("q", 1, Duration::MAX), "366 days"),
    ] {
        let error = check(broken, f.key("k"), 0).await;
        assert!(matches!(error, RateLimitError::InvalidQuota { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    for (key, kind) in [("", KeyError::Empty), ("a\nb", KeyError::ControlCharacter { at: 1 })] {
        let error = check(quota.clone(), key.to_owned(), 1).await;
        assert!(matches!(&error, RateLimitError::InvalidKey(found) if *found == kind), "{error:?}");
    }
    let error = check(Quota::token_bucket("", 1, HOUR), f.key("k"), 1).await;
    assert!(matches!(error, RateLimitError::InvalidKey(KeyError::Empty)), "{error:?}");
    assert_eq!(f.check(&quota, "k", 0).await.remaining, 5);
}

/// A check that is dropped has taken its units or not, and nothing else.
pub async fn a_dropped_check_takes_its_units_at_most(f: RateLimitFixture) {
    let quota = Quota::token_bucket("dropped", 1_000, HOUR * 1_000);
    let key = f.key("k");
    for polls in 0..20 {
        let mut check = Box::pin(f.service.check(&quota, &key, 10));
        for _ in 0..polls {
            if check.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let taken = 1_000 - f.check(&quota, "k", 0).await.remaining;
    assert!(taken <= 200 && taken % 10 == 0, "{taken}");
    assert_eq!(f.check(&quota, "k", 10).await.remaining, 1_000 - taken - 10);
}
