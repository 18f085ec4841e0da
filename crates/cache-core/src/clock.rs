//! Time as a dependency.
//!
//! [`Clock`] reads the kernel's monotonic clock, or a [`ManualClock`] in tests. It is a concrete type
//! and not a trait, because a near-tier hit reads it and must stay in the low nanoseconds.
//!
//! Why no user-space ticker ("recent" clocks): it stands still exactly when the process does, and a
//! cache that trusts it would serve stale values after a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far [`Clock::coarse`] may lag behind [`Clock::now`] on the platforms known (one kernel tick).
pub const COARSE_LAG: Duration = Duration::from_millis(4);

/// A point on a [`Clock`], in nanoseconds. Points of different clocks must not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After everything.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this point; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Tick {
    type Output = Self;

    /// Saturates at [`Tick::NEVER`].
    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A monotonic clock with a wall clock beside it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    System,
    Skewed(i64),
    Manual(ManualClock),
}

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// The machine's own clock with a wall clock that is `ahead_ms` milliseconds ahead, or behind when negative; for
    /// tests of machines that disagree about the time. Points of it may be compared with those of
    /// [`system`](Self::system).
    #[must_use]
    pub const fn skewed(ahead_ms: i64) -> Self {
        Self(Source::Skewed(ahead_ms))
    }

    /// Now, exactly (about 20 ns).
    #[must_use]
    pub fn now(&self) -> Tick {
        match &self.0 {
            Source::System | Source::Skewed(_) => system::now(),
            Source::Manual(clock) => clock.now(),
        }
    }

    /// Now, at most [`COARSE_LAG`] late (about 3 ns on Linux; as [`Clock::now`] elsewhere).
    #[must_use]
    #[inline]
    pub fn coarse(&self) -> Tick {
        match &self.0 {
            Source::System | Source::Skewed(_) => system::coarse(),
            Source::Manual(clock) => clock.now(),
        }
    }

    /// Milliseconds since 1970 by this machine's wall clock. Not monotonic: for what travels to others.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        match &self.0 {
            Source::System => unix_ms(),
            Source::Skewed(ahead_ms) => unix_ms().saturating_add_signed(*ahead_ms),
            Source::Manual(clock) => clock.unix_ms(),
        }
    }
}

/// A clock that stands until it is told to move. Clones share the time.
///
/// ```
/// use std::time::Duration;
/// use cache_core::ManualClock;
///
/// let hand = ManualClock::new();
/// let clock = hand.clock();
/// let before = clock.now();
/// hand.advance(Duration::from_secs(3));
/// assert_eq!(clock.now().since(before), Duration::from_secs(3));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    nanos: Arc<AtomicU64>,
    started_unix_ms: u64,
}

impl ManualClock {
    const START: u64 = 1_000_000_000;

    /// A clock that stands at an arbitrary point.
    #[must_use]
    pub fn new() -> Self {
        Self { nanos: Arc::new(AtomicU64::new(Self::START)), started_unix_ms: unix_ms() }
    }

    /// The [`Clock`] to hand to the service under test.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.clone()))
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // A closure that always answers `Some` cannot fail.
        let _ = self
            .nanos
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |nanos| Some(nanos.saturating_add(by)));
    }

    fn now(&self) -> Tick {
        Tick(self.nanos.load(Ordering::SeqCst))
    }

    fn unix_ms(&self) -> u64 {
        self.started_unix_ms + (self.now().0 - Self::START) / 1_000_000
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(unix)]
mod system {
    use super::Tick;
    use rustix::time::{ClockId, Timespec, clock_gettime};

    pub(super) fn now() -> Tick {
        tick(clock_gettime(ClockId::Monotonic))
    }

    #[inline]
    pub(super) fn coarse() -> Tick {
        #[cfg(target_os = "linux")]
        return tick(clock_gettime(ClockId::MonotonicCoarse));
        #[cfg(not(target_os = "linux"))]
        return now();
    }

    #[inline]
    fn tick(time: Timespec) -> Tick {
        Tick((time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64))
    }
}

#[cfg(not(unix))]
mod system {
    use super::Tick;
    use std::sync::OnceLock;
    use std::time::Instant;

    pub(super) fn now() -> Tick {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        Tick(ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64)
    }

    pub(super) fn coarse() -> Tick {
        now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The coarse clock never runs ahead of the exact one, so a trust that ended is never prolonged by it
    /// by more than its lag.
    #[test]
    fn coarse_never_runs_ahead() {
        let clock = Clock::system();
        for _ in 0..10_000 {
            let coarse = clock.coarse();
            assert!(coarse <= clock.now());
        }
    }

    /// Only the wall clock of a skewed clock differs, by what was asked.
    #[test]
    fn a_skewed_clock_differs_by_its_wall_clock_only() {
        let hour = 3_600_000;
        for ahead in [2 * hour, -2 * hour] {
            let (before, skewed, after) =
                (Clock::system().unix_ms(), Clock::skewed(ahead).unix_ms(), Clock::system().unix_ms());
            let true_time = skewed.saturating_add_signed(-ahead);
            assert!((before..=after).contains(&true_time), "{before} {skewed} {after}");
        }
        let (before, between) = (Clock::system().now(), Clock::skewed(hour).now());
        assert!(before <= between && between <= Clock::system().now());
    }

    #[test]
    fn adding_saturates() {
        assert_eq!(Tick::ZERO + Duration::MAX, Tick::NEVER);
        assert_eq!(Tick::ZERO.since(Tick::NEVER), Duration::ZERO);
    }
}
