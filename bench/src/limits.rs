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

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let runtime = runtime(1);
    let keys = keys();
    let sequence: Vec<&str> =
        zipf(ENTRIES, 0.9, CHECKS / size.less).into_iter().map(|at| keys[at].as_str()).collect();
    let local = LocalConcurrencyService::new();
    let plenty = Quota::token_bucket("bench", 1_000_000, Duration::from_secs(1));
    let governor = governor::RateLimiter::<String, _, _>::keyed(governor::Quota::per_second(
        NonZeroU32::new(1_000_000).expect("more than none"),
    ));
    let mut row = Measured::new("limit_local", "ns/op");
    let owned: Vec<String> = sequence.iter().map(|key| (*key).to_owned()).collect();
    let mut our = || {
        let began = Instant::now();
        runtime.block_on(async {
            for key in &sequence {
                black_box(local.check(&plenty, key, 1).await.expect("a decision"));
            }
        });
        per_operation(sequence.len(), began)
    };
    let mut their = || {
        let began = Instant::now();
        for key in &owned {
            let _ = black_box(governor.check_key(key));
        }
        per_operation(sequence.len(), began)
    };
    row.measure(size.rounds, &mut [("ours", &mut our), ("governor keyed", &mut their)]);
    report.at_most("limit_local: ours / governor", row.median("ours") / row.median("governor keyed"), 1.5);
    report.finish(row);
    Ok(())
}
