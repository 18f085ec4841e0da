//! What is measured of checks.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cache_core::{Clock, Decision, Quota, Tick};
use metrics::{Counter, Histogram, counter, histogram};

/// Quotas told apart in metrics; those met later share the name `other`.
const MAX_NAMES: usize = 64;

/// Of so many checks of a thread that asked nobody, one is timed.
const TIMED: u32 = 64;

/// Handles by the quota's name, made when a quota is first met: with them a check costs metrics nearly nothing.
#[derive(Default)]
pub(super) struct Meters(ArcSwap<Vec<Meter>>);

#[derive(Clone)]
struct Meter {
    name: Cow<'static, str>,
    took: Histogram,
    rejections: Counter,
}

impl Meters {
    /// Records a check that asked a store.
    pub(super) fn asked(&self, quota: &Quota, decision: &Decision, took: Duration) {
        self.with(quota, |meter| {
            meter.took.record(took.as_secs_f64());
            meter.count(decision);
        });
    }

    /// Records a check that asked nobody. That takes less time than to read the clock twice and to write it down, so
    /// one in [`TIMED`] is timed.
    pub(super) fn unasked(&self, quota: &Quota, decision: &Decision, clock: &Clock, started: Tick) {
        thread_local!(static CHECKS: Cell<u32> = const { Cell::new(0) });
        let timed = CHECKS.replace(CHECKS.get().wrapping_add(1)).is_multiple_of(TIMED);
        if timed {
            self.asked(quota, decision, clock.now().since(started));
        } else if !decision.allowed {
            self.with(quota, |meter| meter.count(decision));
        }
    }

    /// Counts a check whose store was away.
    pub(super) fn failed(&self, quota: &Quota, outcome: &'static str) {
        let name = self.with(quota, |meter| meter.name.clone());
        counter!("rate_limit_store_failures_total", "name" => name, "outcome" => outcome).increment(1);
    }

    fn with<T>(&self, quota: &Quota, record: impl FnOnce(&Meter) -> T) -> T {
        let meters = self.0.load();
        match find(&meters, &quota.name) {
            Some(meter) => record(meter),
            None => record(&self.meet(quota)),
        }
    }

    #[cold]
    fn meet(&self, quota: &Quota) -> Meter {
        let name = &quota.name;
        self.0.rcu(|meters| {
            let mut meters = Vec::clone(meters);
            if find(&meters, name).is_none() {
                let full = meters.len() >= MAX_NAMES;
                meters.push(Meter::new(if full { OTHER.into() } else { name.clone() }));
            }
            Arc::new(meters)
        });
        find(&self.0.load(), name).cloned().unwrap_or_else(|| Meter::new(name.clone()))
    }
}

const OTHER: &str = "other";

fn find<'a>(meters: &'a [Meter], name: &str) -> Option<&'a Meter> {
    let last = || meters.last().filter(|_| meters.len() > MAX_NAMES);
    meters.iter().find(|meter| meter.name == name).or_else(last)
}

impl Meter {
    fn new(name: Cow<'static, str>) -> Self {
        Self {
            took: histogram!("rate_limit_check_duration_seconds", "name" => name.clone()),
            rejections: counter!("rate_limit_rejections_total", "name" => name.clone()),
            name,
        }
    }

    fn count(&self, decision: &Decision) {
        if !decision.allowed {
            self.rejections.increment(1);
        }
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.load().iter().map(|meter| &meter.name)).finish()
    }
}
