//! What is measured of checks.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cache_core::{Decision, Quota};
use metrics::{Counter, Histogram, counter, histogram};

/// Quotas told apart in metrics; those met later share the name `other`.
const MAX_NAMES: usize = 64;

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
    pub(super) fn record(&self, quota: &Quota, decision: &Decision, took: Duration) {
        let meters = self.0.load();
        match find(&meters, &quota.name) {
            Some(meter) => meter.record(decision, took),
            None => self.meet(quota).record(decision, took),
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

    fn record(&self, decision: &Decision, took: Duration) {
        self.took.record(took.as_secs_f64());
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
