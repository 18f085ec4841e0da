//! What happened, what is in flight, and what was wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::call::Call;

/// Events that are kept, for what came before a violation.
const KEPT: usize = 4_000;
/// Of them shown, of the entry in question.
const SHOWN: usize = 24;

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) seed: u64,
    steps: AtomicU64,
    /// Grows for as long as the runtime lives.
    pub(crate) ticks: AtomicU64,
    in_flight: Mutex<BTreeMap<u64, Call>>,
    events: Mutex<VecDeque<Event>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Event {
    step: u64,
    call: Call,
    what: String,
}

impl Record {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            steps: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            in_flight: Mutex::default(),
            events: Mutex::default(),
            counts: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    pub(crate) fn count(&self, what: &'static str, by: u64) {
        *self.counts.lock().entry(what).or_default() += by;
    }

    pub(crate) fn violate(&self, what: &str) {
        self.violations.lock().push(format!("seed {}: {what}", self.seed));
    }

    pub(crate) fn violated(&self) -> bool {
        !self.violations.lock().is_empty()
    }

    pub(crate) fn take(&self) -> (BTreeMap<&'static str, u64>, Vec<String>) {
        (std::mem::take(&mut self.counts.lock()), std::mem::take(&mut self.violations.lock()))
    }

    /// A call begins: its number.
    pub(crate) fn begin(&self, call: Call) -> u64 {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        self.in_flight.lock().insert(step, call);
        step
    }

    /// A call has ended, or was given up.
    pub(crate) fn end(&self, step: u64) {
        self.in_flight.lock().remove(&step);
    }

    /// Remembers what became of a call.
    pub(crate) fn note(&self, step: u64, call: Call, what: String) {
        let mut events = self.events.lock();
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(Event { step, call, what });
    }

    /// A call was answered wrongly: what came before it, in the same domain.
    pub(crate) fn violate_call(&self, step: u64, call: Call, what: &str) {
        let events = self.events.lock();
        let same = events.iter().rev().filter(|event| event.call.concerns(&call)).take(SHOWN);
        let lines: Vec<_> =
            same.map(|event| format!("  step {}: {:?}: {}", event.step, event.call, event.what)).collect();
        let before = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        drop(events);
        self.violate(&format!("step {step}: {call:?}: {what}\n{before}"));
    }

    /// The calls that have not ended.
    pub(crate) fn in_flight(&self) -> Vec<String> {
        self.in_flight.lock().iter().map(|(step, call)| format!("step {step}: {call:?}")).collect()
    }
}
