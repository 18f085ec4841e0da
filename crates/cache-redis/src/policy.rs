//! Not calling a server that does not answer: the circuit breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache_core::{Clock, Tick};
use metrics::{counter, gauge};
use parking_lot::Mutex;

/// Failures in a row that open the breaker.
const IN_A_ROW: u32 = 5;
/// Calls looked back on; half of them failed opens the breaker, too.
const WINDOW: u32 = 20;
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// One breaker per server, shared by every service that talks to it.
///
/// ```text
/// Closed ── 5 failures in a row, or half of the last 20 ──► Open(pause 1 s)
/// Open ── pause over, a call comes ──► HalfOpen (that call is the probe, others are refused)
/// HalfOpen ── probe succeeds ──► Closed
/// HalfOpen ── probe fails ──► Open(pause doubled, at most 30 s; jitter ±25 %)
/// HalfOpen ── probe is dropped ──► Open(the next call probes)
/// Open ── a sign of life is asked for ──► HalfOpen (the question is the probe; if it fails, Open as before)
/// ```
#[derive(Debug, Clone)]
pub(crate) struct Breaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Closed and without a failure in the window: a call needs no lock.
    quiet: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// The last outcomes, newest in the lowest bit, 1 for a failure.
    Closed {
        failures: u32,
        in_a_row: u32,
    },
    Open {
        until: Tick,
        pause: Duration,
    },
    HalfOpen {
        pause: Duration,
    },
}

/// Leave to call, to be ended with the outcome. Dropped without one it counts for nothing.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    breaker: &'a Shared,
    /// This call decides whether the breaker closes; when it does not, here is the state to return to.
    probe: Option<Probe>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    /// When the next call may probe if this one is dropped.
    until: Tick,
    pause: Duration,
    /// Before its time: its failure does not make the pause longer.
    early: bool,
}

impl Breaker {
    pub(crate) fn new(clock: Clock) -> Self {
        let state = Mutex::new(State::Closed { failures: 0, in_a_row: 0 });
        Self(Arc::new(Shared { clock, quiet: AtomicBool::new(true), state }))
    }

    /// Leave to call, or how long to wait before asking again.
    pub(crate) fn admit(&self) -> Result<Admission<'_>, Duration> {
        if self.0.quiet.load(Ordering::Acquire) {
            return Ok(self.admission(None));
        }
        let mut state = self.0.state.lock();
        match *state {
            State::Closed { .. } => Ok(self.admission(None)),
            State::Open { until, pause } => {
                let now = self.0.clock.now();
                if now < until {
                    return Err(until.since(now));
                }
                *state = State::HalfOpen { pause };
                Ok(self.admission(Some(Probe { until, pause, early: false })))
            }
            State::HalfOpen { pause } => Err(pause),
        }
    }

    /// Leave to call whatever the state, for callers with a pace of their own that ask for a sign of life:
    /// heartbeats and health checks. They find a server that is back sooner than the pause ends.
    pub(crate) fn admit_anyway(&self) -> Admission<'_> {
        let mut state = self.0.state.lock();
        let State::Open { until, pause } = *state else { return self.admission(None) };
        *state = State::HalfOpen { pause };
        self.admission(Some(Probe { until, pause, early: true }))
    }

    fn admission(&self, probe: Option<Probe>) -> Admission<'_> {
        Admission { breaker: &self.0, probe }
    }

    /// Whether calls are refused or only probed.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(*self.0.state.lock(), State::Closed { .. })
    }
}

impl Admission<'_> {
    pub(crate) fn succeeded(mut self) {
        let (breaker, probe) = (self.breaker, self.probe.take());
        if probe.is_none() && breaker.quiet.load(Ordering::Acquire) {
            return;
        }
        let mut state = breaker.state.lock();
        match &mut *state {
            State::Closed { failures, in_a_row } => {
                *failures = (*failures << 1) & window_mask();
                *in_a_row = 0;
                breaker.quiet.store(*failures == 0, Ordering::Release);
            }
            State::HalfOpen { .. } if probe.is_some() => {
                *state = State::Closed { failures: 0, in_a_row: 0 };
                breaker.quiet.store(true, Ordering::Release);
                changed("closed", 0.0);
            }
            // An answer to a call from before the breaker opened says nothing about now.
            State::HalfOpen { .. } | State::Open { .. } => {}
        }
    }

    pub(crate) fn failed(mut self) {
        let (breaker, probe) = (self.breaker, self.probe.take());
        let mut state = breaker.state.lock();
        match (&mut *state, probe) {
            (State::Closed { failures, in_a_row }, _) => {
                breaker.quiet.store(false, Ordering::Release);
                *failures = ((*failures << 1) | 1) & window_mask();
                *in_a_row += 1;
                if *in_a_row >= IN_A_ROW || failures.count_ones() >= WINDOW / 2 {
                    *state = opened(breaker, MIN_PAUSE);
                    changed("open", 1.0);
                }
            }
            (State::HalfOpen { .. }, Some(Probe { until, pause, early: true })) => {
                *state = State::Open { until, pause };
            }
            (State::HalfOpen { .. }, Some(Probe { pause, .. })) => {
                *state = opened(breaker, (pause * 2).min(MAX_PAUSE));
            }
            (State::HalfOpen { .. } | State::Open { .. }, _) => {}
        }
    }
}

impl Drop for Admission<'_> {
    /// A cancelled probe must not keep the others waiting for it.
    fn drop(&mut self) {
        let Some(Probe { until, pause, .. }) = self.probe else { return };
        let mut state = self.breaker.state.lock();
        if matches!(*state, State::HalfOpen { .. }) {
            *state = State::Open { until, pause };
        }
    }
}

fn window_mask() -> u32 {
    (1 << WINDOW) - 1
}

fn opened(breaker: &Shared, pause: Duration) -> State {
    let pause_with_jitter = pause.mul_f64(0.75 + rand::random::<f64>() / 2.0).min(MAX_PAUSE);
    let until = breaker.clock.now() + pause_with_jitter;
    State::Open { until, pause }
}

fn changed(state: &'static str, open: f64) {
    gauge!("redis_breaker_open").set(open);
    counter!("redis_breaker_changes_total", "state" => state).increment(1);
    tracing::warn!(state, "the circuit breaker of Redis changed its state");
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::ManualClock;

    fn breaker() -> (Breaker, ManualClock) {
        let hand = ManualClock::new();
        (Breaker::new(hand.clock()), hand)
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.admit().expect("admitted").failed();
        }
    }

    /// SC5: five failures in a row open it, and an open one admits nobody.
    #[test]
    fn failures_in_a_row_open_it() {
        let (breaker, _hand) = breaker();
        fail(&breaker, 4);
        breaker.admit().expect("admitted").succeeded();
        fail(&breaker, 4);
        assert!(breaker.admit().is_ok());
        fail(&breaker, 1);
        assert!(breaker.admit().is_err() && breaker.is_open());
    }

    /// SC5: half of the last twenty open it, also when some succeed between.
    #[test]
    fn a_failure_rate_opens_it() {
        let (breaker, _hand) = breaker();
        for _ in 0..9 {
            fail(&breaker, 1);
            breaker.admit().expect("admitted").succeeded();
        }
        assert!(!breaker.is_open());
        fail(&breaker, 1);
        assert!(breaker.is_open());
    }

    /// SC5: after the pause one call probes; its success closes, its failure doubles the pause.
    #[test]
    fn one_probe_decides() {
        let (breaker, hand) = breaker();
        fail(&breaker, 5);
        hand.advance(MIN_PAUSE.mul_f64(1.25));
        let probe = breaker.admit().expect("the probe");
        assert!(breaker.admit().is_err(), "one probe at a time");
        probe.failed();
        hand.advance(MIN_PAUSE.mul_f64(1.25));
        assert!(breaker.admit().is_err(), "the pause has doubled");
        hand.advance(MIN_PAUSE.mul_f64(1.25));
        breaker.admit().expect("the probe").succeeded();
        assert!(!breaker.is_open());
        fail(&breaker, 4);
        assert!(!breaker.is_open(), "the count began anew");
    }

    /// SC5: a probe that is cancelled lets the next call probe.
    #[test]
    fn a_dropped_probe_frees_its_place() {
        let (breaker, hand) = breaker();
        fail(&breaker, 5);
        hand.advance(Duration::from_secs(2));
        drop(breaker.admit().expect("the probe"));
        breaker.admit().expect("the next probe").succeeded();
        assert!(!breaker.is_open());
    }

    /// L3: a sign of life that is asked for before the pause ends closes it; one that does not come leaves
    /// everything as it was.
    #[test]
    fn a_sign_of_life_closes_it_early() {
        let (breaker, hand) = breaker();
        fail(&breaker, 5);
        let wait = breaker.admit().expect_err("open");
        breaker.admit_anyway().failed();
        drop(breaker.admit_anyway());
        assert_eq!(breaker.admit().expect_err("open still"), wait, "the pause is neither longer nor over");
        let asked = breaker.admit_anyway();
        breaker.admit_anyway().succeeded();
        assert!(breaker.is_open(), "only the first of two decides");
        asked.succeeded();
        assert!(!breaker.is_open());
        hand.advance(Duration::from_secs(1));
        assert!(breaker.admit().is_ok());
    }

    /// A late answer to a call from before does not close an open breaker.
    #[test]
    fn a_late_success_does_not_close_it() {
        let (breaker, _hand) = breaker();
        let early = breaker.admit().expect("admitted");
        fail(&breaker, 5);
        early.succeeded();
        assert!(breaker.is_open());
    }
}
