//! When it passes.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::time::{Duration, Instant};

use cache_core::Quota;

use super::RateLimitFixture;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// G2: who waits as long as it is told is let in.
pub async fn the_wait_told_is_enough(f: RateLimitFixture) {
    for quota in [Quota::token_bucket("b", 2, ms(400)), Quota::fixed_window("w", 2, ms(400))] {
        let mut waited = 0;
        while waited < 2 {
            let Some(wait) = f.check(&quota, "k", 2).await.retry_after else { continue };
            assert!(wait <= quota.per);
            tokio::time::sleep(wait).await;
            assert!(f.check(&quota, "k", 2).await.allowed, "{quota:?} after {wait:?}");
            waited += 1;
        }
    }
}

/// G1, SH6: after a burst a bucket lets pass what was refilled, and no more.
pub async fn a_bucket_refills_evenly(f: RateLimitFixture) {
    let quota = Quota::token_bucket("b", 20, ms(2_000));
    let began = Instant::now();
    let mut passed = 0;
    while began.elapsed() < ms(1_500) {
        passed += u32::from(f.check(&quota, "k", 1).await.allowed);
        tokio::time::sleep(ms(5)).await;
    }
    let most = 20 + began.elapsed().as_millis() / 100 + 1;
    assert!(u128::from(passed) <= most, "{passed} passed of {most}");
    assert!(passed >= 20 + 10, "{passed}: one in 100 ms is refilled");
}

/// G1: a window ends a period after its first use, and not after its last.
pub async fn a_window_ends_with_its_first_use(f: RateLimitFixture) {
    let quota = Quota::fixed_window("w", 2, ms(2_000));
    let first = f.check(&quota, "k", 1).await;
    let opened = Instant::now();
    assert_eq!(first.reset_after, quota.per);
    tokio::time::sleep(ms(300)).await;
    let second = f.check(&quota, "k", 1).await;
    assert!(second.reset_after <= quota.per - ms(300), "{second:?}");
    let refused = f.check(&quota, "k", 1).await;
    tokio::time::sleep(refused.retry_after.unwrap()).await;
    let again = f.check(&quota, "k", 1).await;
    assert!(again.allowed && opened.elapsed() >= ms(1_600), "{again:?} after {:?}", opened.elapsed());
    assert_eq!(again.reset_after, quota.per, "a new window");
}

/// SH6: around the edge of two windows at most `2 × limit − 1` pass in a short time, as documented.
pub async fn a_window_edge_lets_two_windows_pass_at_most(f: RateLimitFixture) {
    let quota = Quota::fixed_window("w", 5, ms(400));
    assert!(f.check(&quota, "k", 1).await.allowed);
    tokio::time::sleep(ms(370)).await;
    let (began, mut passed) = (Instant::now(), 0);
    while passed < 4 || began.elapsed() < ms(200) {
        // Slower machines than that have let the first window end.
        if began.elapsed() > ms(380) {
            break;
        }
        passed += u32::from(f.check(&quota, "k", 1).await.allowed);
    }
    assert!(passed < 2 * 5, "{passed} passed");
}

/// G5: who is denied stays denied until the time that was told, on every instance, and then is let in.
pub async fn denied_callers_stay_denied_until_their_time(f: RateLimitFixture) {
    for quota in [Quota::token_bucket("b", 1, ms(800)), Quota::fixed_window("w", 1, ms(800))] {
        let before = Instant::now();
        assert!(f.check(&quota, "k", 1).await.allowed);
        let allowed_by = Instant::now();
        let (key, mut denials) = (f.key("k"), 0);
        let let_in = loop {
            let asked = Instant::now();
            let here = f.check(&quota, "k", 1).await;
            if here.allowed {
                break asked;
            }
            let there = f.peer.check(&quota, &key, 1).await.unwrap();
            if there.allowed {
                break asked;
            }
            denials += 2;
            tokio::time::sleep(ms(2)).await;
        };
        let (early, late) = (before + quota.per, allowed_by + quota.per + ms(2_000));
        assert!(Instant::now() >= early, "{quota:?}: let in too early");
        assert!(let_in <= late, "{quota:?}: denied for too long");
        assert!(denials > 0, "{quota:?}");
    }
}
