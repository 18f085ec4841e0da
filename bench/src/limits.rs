//! Rate limits in this process, against `governor`.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Result;
use cache_core::{Quota, RateLimits};
use concurrency::LocalConcurrencyService;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, keys, per_operation, runtime, zipf};

const CHECKS: usize = 400_000;
const MINUTE: Duration = Duration::from_secs(60);
/// More than is ever asked for.
const PLENTY: u32 = 50_000_000;

type Governor = governor::DefaultKeyedRateLimiter<String>;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let keys = keys();
    let sequence: Vec<String> =
        zipf(ENTRIES, 0.9, CHECKS / size.less).into_iter().map(|at| keys[at].clone()).collect();
    let plenty = Quota::token_bucket("plenty", PLENTY, MINUTE);
    let row = compare("limit_local", size, &sequence, &plenty, &governor_of(PLENTY));
    report.at_most("limit_local: ours / governor", row.median("ours") / row.median("governor keyed"), 1.5);
    report.finish(row);
    // One in a day: after its first each key is denied.
    let scarce = Quota::token_bucket("scarce", 1, 24 * 60 * MINUTE);
    let governor = governor_of_period(24 * 60 * MINUTE);
    let row = compare("limit_denied", size, &sequence, &scarce, &governor);
    report.at_most("limit_denied: ours in ns", row.median("ours"), 200.0);
    report.finish(row);
    Ok(())
}

fn governor_of(limit: u32) -> Governor {
    let limit = NonZeroU32::new(limit).expect("more than none");
    governor::RateLimiter::keyed(governor::Quota::per_minute(limit))
}

fn governor_of_period(period: Duration) -> Governor {
    governor::RateLimiter::keyed(governor::Quota::with_period(period).expect("more than none"))
}

/// Both count the same keys, which they have counted before.
fn compare(
    name: &'static str,
    size: Size,
    sequence: &[String],
    quota: &Quota,
    governor: &Governor,
) -> Measured {
    let (runtime, local) = (runtime(1), LocalConcurrencyService::new());
    let mut our = || {
        let began = Instant::now();
        runtime.block_on(async {
            for key in sequence {
                let _ = black_box(local.check(quota, key, 1).await.expect("a decision"));
            }
        });
        per_operation(sequence.len(), began)
    };
    let mut their = || {
        let began = Instant::now();
        for key in sequence {
            let _ = black_box(governor.check_key(key));
        }
        per_operation(sequence.len(), began)
    };
    let _ = (our(), their());
    let mut row = Measured::new(name, "ns/op");
    row.measure(size.rounds, &mut [("ours", &mut our), ("governor keyed", &mut their)]);
    row
}
