//! Rate limits: in this process and denied from memory against `governor`, in Redis against the bare script.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cache_core::{Quota, RateLimits, gcra};
use cache_redis::{RedisLink, RedisRateLimits, RedisSettings};
use concurrency::{FleetRateLimits, LocalConcurrencyService};
use conformance::redis_server::RedisServer;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, HOUR, keys, per_operation, runtime, zipf};

const CHECKS: usize = 400_000;
const ROUND_TRIPS: usize = 20_000;
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// More in an hour than is ever asked for; a unit comes back in 3.6 ms, so that counts live as they do in use.
const PLENTY: u32 = 1_000_000;

type Governor = governor::DefaultKeyedRateLimiter<String>;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let keys = keys();
    let sequence: Vec<String> =
        zipf(ENTRIES, 0.9, CHECKS / size.less).into_iter().map(|at| keys[at].clone()).collect();
    let (server, runtime) = (RedisServer::start(), runtime(1));
    let redis = runtime.block_on(async {
        let link = RedisLink::lazy(RedisSettings::from_url(&server.url())?)?;
        anyhow::Ok(FleetRateLimits::new(Arc::new(RedisRateLimits::on(link))))
    })?;
    in_this_process(size, report, &runtime, &sequence);
    denied(size, report, &runtime, &sequence, &redis);
    let bare = runtime.block_on(async {
        redis::Client::open(server.url())?.get_multiplexed_async_connection().await.context("a connection")
    })?;
    in_redis(size, report, &runtime, &sequence[..ROUND_TRIPS / size.less], &redis, &bare);
    Ok(())
}

fn in_this_process(size: Size, report: &mut Report, runtime: &Runtime, sequence: &[String]) {
    let plenty = Quota::token_bucket("plenty", PLENTY, HOUR);
    let (local, governor) = (LocalConcurrencyService::new(), plenty_of_governor());
    let mut contract = || checks(runtime, &local, &plenty, sequence, true);
    // As governor is called: directly, and without a future.
    let mut our = || {
        let began = Instant::now();
        for key in sequence {
            black_box(local.check_now(&plenty, key, 1).expect("a decision"));
        }
        per_operation(sequence.len(), began)
    };
    let mut their = || of_governor(&governor, sequence);
    let _ = (our(), their());
    let mut row = Measured::new("limit_local", "ns/op");
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut our),
            ("ours, through the contract", &mut contract),
            ("governor keyed", &mut their),
        ],
    );
    report.at_most("limit_local: ours / governor", row.median("ours") / row.median("governor keyed"), 1.5);
    report.finish(row);
}

/// Denied by Redis once, and from memory since; against a limiter that has nobody to ask.
fn denied(size: Size, report: &mut Report, runtime: &Runtime, sequence: &[String], redis: &FleetRateLimits) {
    // One in a day, of a fixed window: a denial holds until its end.
    let scarce = Quota::fixed_window("scarce", 1, DAY);
    // As many callers as are remembered.
    let callers: Vec<String> = sequence.iter().filter(|key| key.as_str() < "org-05000").cloned().collect();
    for _ in 0..2 {
        runtime.block_on(async {
            for key in keys().iter().filter(|key| key.as_str() < "org-05000") {
                redis.check(&scarce, key, 1).await.expect("a decision");
            }
        });
    }
    let governor = governor_of_period(DAY);
    let mut our = || checks(runtime, redis, &scarce, &callers, false);
    let mut their = || of_governor(&governor, &callers);
    let _ = (our(), their());
    let mut row = Measured::new("limit_denied", "ns/op");
    row.measure(size.rounds, &mut [("ours", &mut our), ("governor keyed", &mut their)]);
    report.at_most("limit_denied: ours in ns", row.median("ours"), 200.0);
    report.finish(row);
}

/// One caller, check after check: what a check costs beyond the call of its script.
fn in_redis(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    sequence: &[String],
    redis: &FleetRateLimits,
    bare: &MultiplexedConnection,
) {
    let plenty = Quota::token_bucket("plenty", PLENTY, HOUR);
    let script = redis::Script::new(include_str!("../../crates/cache-redis/src/lua/limit_bucket.lua"));
    let (price, per) = (gcra::price(&plenty, 1), gcra::micros(HOUR));
    let mut our = || checks(runtime, redis, &plenty, sequence, true);
    let mut their = || {
        let (began, mut bare) = (Instant::now(), bare.clone());
        runtime.block_on(async {
            for key in sequence {
                let mut call = script.key(format!("limit:bare:{key}"));
                let answer: (u8, u64) =
                    call.arg(price).arg(per).invoke_async(&mut bare).await.expect("an answer");
                black_box(answer);
            }
        });
        per_operation(sequence.len(), began)
    };
    let _ = (our(), their());
    let mut row = Measured::new("limit_redis", "ns/op");
    row.measure(size.rounds, &mut [("ours", &mut our), ("bare script call", &mut their)]);
    report.at_most("limit_redis: ours / bare", row.median("ours") / row.median("bare script call"), 1.2);
    report.finish(row);
}

fn plenty_of_governor() -> Governor {
    let limit = NonZeroU32::new(PLENTY).expect("more than none");
    let quota = governor::Quota::with_period(HOUR / PLENTY).expect("more than none");
    governor::RateLimiter::keyed(quota.allow_burst(limit))
}

fn governor_of_period(period: Duration) -> Governor {
    governor::RateLimiter::keyed(governor::Quota::with_period(period).expect("more than none"))
}

/// Nanoseconds per check; each must be answered as expected.
fn checks(
    runtime: &Runtime,
    limits: &dyn RateLimits,
    quota: &Quota,
    sequence: &[String],
    allowed: bool,
) -> f64 {
    let began = Instant::now();
    runtime.block_on(async {
        for key in sequence {
            let decision = limits.check(quota, key, 1).await.expect("a decision");
            assert_eq!(black_box(decision).allowed, allowed);
        }
    });
    per_operation(sequence.len(), began)
}

fn of_governor(governor: &Governor, sequence: &[String]) -> f64 {
    let began = Instant::now();
    for key in sequence {
        let _ = black_box(governor.check_key(key));
    }
    per_operation(sequence.len(), began)
}
