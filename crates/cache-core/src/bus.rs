//! Telling every instance what changed, and knowing how far to trust what is in memory.
//!
//! An instance that invalidates *publishes*; every other instance *applies*. A message that was applied is
//! never published again: the two are different methods of different traits ([`InvalidationBus::publish`],
//! [`InvalidationSink::apply`]).

mod sinks;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

pub use self::sinks::Sinks;
use crate::{CacheError, TenantId, Tick};

/// What is no longer to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Invalidation {
    /// Entries by their full key text (see [`key`](crate::key)).
    Keys(Vec<Arc<str>>),
    /// All entries whose full key text starts with this.
    Prefix(Arc<str>),
    /// Everything of one domain: one tenant's (users included), or every tenant's.
    Domain {
        /// Whose, or `None` for every tenant's and the global ones.
        tenant: Option<TenantId>,
        /// The domain.
        domain: Arc<str>,
    },
    /// Everything that carries a tag: one tenant's, or of global entries.
    Tag {
        /// Whose, or `None` for entries that belong to no tenant.
        tenant: Option<TenantId>,
        /// The tag.
        tag: Arc<str>,
    },
    /// Everything.
    All,
}

impl Invalidation {
    /// One entry.
    pub fn key(key: impl Into<Arc<str>>) -> Self {
        Self::Keys(vec![key.into()])
    }
}

/// Why everything in memory was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushReason {
    /// The subscription was made anew: messages may have been missed between two.
    Resubscribed,
    /// A sequence number was skipped.
    Gap,
    /// Trust had run out and comes back.
    TrustReturned,
    /// Failed invalidations overflowed their queue.
    Overflow,
    /// The sink panicked while it applied a message.
    Panicked,
}

impl FlushReason {
    /// A short stable name for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resubscribed => "resubscribed",
            Self::Gap => "gap",
            Self::TrustReturned => "trust_returned",
            Self::Overflow => "overflow",
            Self::Panicked => "panicked",
        }
    }
}

/// Where invalidations arrive: the near tiers of this process.
///
/// Messages from others arrive in the order in which they were published; those of this process come from
/// whichever task publishes, so the methods may run at the same time. They do not wait: when one returns,
/// the change is visible to every reader that starts afterwards.
///
/// A sink that panics in `apply` is [flushed](Self::flush) and goes on to be told of later messages; see [`Sinks`].
pub trait InvalidationSink: fmt::Debug + Send + Sync {
    /// Drops what the message names. Never publishes, never touches the far tier.
    fn apply(&self, message: &Invalidation);

    /// Drops everything, and refuses what is being loaded from an answer that is already on its way.
    fn flush(&self, reason: FlushReason);
}

/// Carries invalidations to every instance that shares the far tier.
#[async_trait]
pub trait InvalidationBus: fmt::Debug + Send + Sync {
    /// Tells every instance. The far tier must have been changed before: a reader between the two finds the
    /// new state, a reader before is caught by the message.
    ///
    /// The sinks of this process are told before it returns, also when it fails.
    ///
    /// # Panics
    /// When a sink of this process does, after all of them were told. A sink of another process that panics is
    /// nothing that a publisher learns of.
    ///
    /// # Errors
    /// [`CacheError::Backend`] or [`CacheError::Timeout`] when it is not known whether the others were told.
    /// The announcement is repeated in the background; other instances stop trusting their memory within
    /// the staleness bound meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the others untold, exactly as an error would.
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError>;

    /// Lets a sink hear everything that is published from now on, until the guard is dropped.
    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription;

    /// How far memory may be trusted now; read on every near hit.
    ///
    /// Who keeps the answer and finds no trust in it asks again: a bus whose background work ended, with the runtime it
    /// ran on, takes this, as every other call, for a reason to begin it on the caller's.
    fn trust(&self) -> Arc<Trust>;

    /// What the bus has seen, for health and metrics.
    fn state(&self) -> BusState;

    /// For how long after an announcement a process that did not hear it may act as if nothing had happened: the
    /// staleness bound. `None` (the default) for a bus that loses no messages, or does not say.
    fn staleness_bound(&self) -> Option<Duration> {
        None
    }
}

/// Until when what is in memory may be served.
///
/// Extended by whoever hears the bus, compared on every hit: an atomic load each. In one process it is
/// [always](Trust::always) given.
#[derive(Debug)]
pub struct Trust {
    near_until: AtomicU64,
    far_until: AtomicU64,
    server_offset_ms: AtomicI64,
}

impl Trust {
    /// Trust that never ends: there is nobody else to hear from.
    #[must_use]
    pub fn always() -> Self {
        Self::until(Tick::NEVER)
    }

    /// No trust yet.
    #[must_use]
    pub fn none() -> Self {
        Self::until(Tick::ZERO)
    }

    fn until(tick: Tick) -> Self {
        Self {
            near_until: AtomicU64::new(tick.as_nanos()),
            far_until: AtomicU64::new(tick.as_nanos()),
            server_offset_ms: AtomicI64::new(0),
        }
    }

    /// Whether near entries may be served at `now`.
    #[must_use]
    #[inline]
    pub fn near(&self, now: Tick) -> bool {
        now < self.near_until()
    }

    /// Whether values of the far tier may be served at `now`.
    #[must_use]
    #[inline]
    pub fn far(&self, now: Tick) -> bool {
        now.as_nanos() < self.far_until.load(Ordering::Acquire)
    }

    /// Until when near entries may be served.
    #[must_use]
    pub fn near_until(&self) -> Tick {
        Tick::from_nanos(self.near_until.load(Ordering::Acquire))
    }

    /// Prolongs (never shortens) the trust in near entries.
    pub fn extend_near(&self, until: Tick) {
        self.near_until.fetch_max(until.as_nanos(), Ordering::AcqRel);
    }

    /// Prolongs (never shortens) the trust in the far tier.
    pub fn extend_far(&self, until: Tick) {
        self.far_until.fetch_max(until.as_nanos(), Ordering::AcqRel);
    }

    /// Ends the trust in near entries at once; for when missing messages are known, not only possible.
    pub fn revoke_near(&self) {
        self.near_until.store(0, Ordering::Release);
    }

    /// What to add to this machine's wall clock to get the server's, in milliseconds.
    #[must_use]
    pub fn server_offset_ms(&self) -> i64 {
        self.server_offset_ms.load(Ordering::Relaxed)
    }

    /// Records the difference between the server's wall clock and this machine's.
    pub fn set_server_offset_ms(&self, offset: i64) {
        self.server_offset_ms.store(offset, Ordering::Relaxed);
    }
}

/// Health of a bus: whether memory is trusted, and if not, whether that is about to pass.
///
/// ```text
/// Starting ── the first beat came back ──► Trusted ── trust ran out, or the subscription ended ──► Recovering
///     └── the first connection failed, or ended ──► Down, Recovering
/// Recovering ── a beat came back ──► Trusted
/// Recovering ── no subscription could be made, or the listener ended ──► Down
/// Down ── a subscription was made, or the listener was begun again ──► Recovering
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BusHealth {
    /// Nobody listens, and messages are being missed: the last attempt to subscribe failed, the listener ended, it was
    /// shut down, or nobody has subscribed yet. Attempts go on where there is a listener.
    #[default]
    Down,
    /// The first connection since the bus is listened to is being made or proven; nothing has failed. It passes within
    /// a beat, or ends in one of the others.
    Starting,
    /// Memory is not trusted until it is proven again: trust ran out or was taken back (an invalidation that failed), or
    /// the subscription ended and is being made again.
    Recovering,
    /// Memory is trusted.
    Trusted,
}

impl BusHealth {
    /// A short stable name for health answers and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Recovering => "recovering",
            Self::Trusted => "trusted",
        }
    }
}

/// Counters and health of a bus since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusState {
    /// Whether memory may be trusted.
    pub health: BusHealth,
    /// Messages sent.
    pub published: u64,
    /// Announcements that failed and are being repeated, now.
    pub pending: u64,
    /// Messages received from others.
    pub received: u64,
    /// Messages that could not be understood.
    pub malformed: u64,
    /// Skipped sequence numbers.
    pub gaps: u64,
    /// Times the subscription was made anew.
    pub reconnects: u64,
    /// Times everything in memory was dropped.
    pub flushes: u64,
    /// Times a sink panicked while it applied a message; it was flushed each time.
    pub panics: u64,
    /// The last round trip through the bus.
    pub lag: Option<Duration>,
}

/// Ends a subscription when dropped.
#[must_use = "dropping the subscription ends it"]
pub struct Subscription(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Subscription {
    /// Runs `end` when the subscription is dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P2: trust is only ever prolonged, and ends exactly when it says.
    #[test]
    fn trust_ends_when_it_says() {
        let trust = Trust::none();
        assert!(!trust.near(Tick::ZERO));
        trust.extend_near(Tick::from_nanos(10));
        trust.extend_near(Tick::from_nanos(5));
        assert!(trust.near(Tick::from_nanos(9)) && !trust.near(Tick::from_nanos(10)));
        assert!(!trust.far(Tick::ZERO));
        trust.revoke_near();
        assert!(!trust.near(Tick::ZERO));
        assert!(Trust::always().near(Tick::from_nanos(u64::MAX - 1)));
    }
}
