//! The invalidation bus on Redis, and how far memory may be trusted.
//!
//! Publishing is one script: remove the keys, count the sequence up, publish. Every instance listens on one
//! connection of its own, to the common channel and to a private one on which it hears its own *beats*. Redis
//! delivers all messages of a connection in the order in which it handled them; so when the echo of a beat that
//! was sent at `b` has been taken from the stream, every invalidation handled before `b` has been applied.
//! Hence `trust_until = b + trust_for`: what is missing can only be younger than `trust_for`. That covers lost
//! connections, half-open sockets, slow subscribers and frozen servers alike.
//!
//! | you look for | module |
//! |---|---|
//! | what a message looks like | [`message`] |
//! | when memory is trusted: the state machine | `trust` |
//! | the task that listens and beats | `listener`; how it is begun, and begun again: `tasks` |
//! | what time it is at the server | `server_time` |
//! | how something is announced, and repeated until it was | `announce`, `pending` |
//! | messages for this instance alone | [`RedisBus::on_wake`] |

pub mod message;

mod announce;
mod inbox;
mod listener;
mod pending;
mod server_time;
mod tasks;
mod trust;
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cache_core::bus::{BusHealth, Sinks};
use cache_core::{
    BusState, CacheError, Clock, Invalidation, InvalidationBus, InvalidationSink, Subscription, Tick, Trust,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::bus::announce::Announcement;
use crate::bus::pending::Pending;
use crate::bus::tasks::Tasks;
use crate::bus::wake::Wakes;
use crate::connection::RedisLink;

/// How the bus proves that nothing was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusPolicy {
    /// Between two beats. Default 1 s.
    pub heartbeat: Duration,
    /// The staleness bound B: memory is trusted for this long after a beat that came back. Default 3 s; at
    /// least two heartbeats and a round trip.
    pub trust_for: Duration,
    /// How far apart two good beats must be before trust returns; for deployments with a failover. Default
    /// zero.
    pub probation: Duration,
}

impl Default for BusPolicy {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            trust_for: Duration::from_secs(3),
            probation: Duration::ZERO,
        }
    }
}

impl BusPolicy {
    /// Sets [`heartbeat`](Self::heartbeat).
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets [`trust_for`](Self::trust_for).
    #[must_use]
    pub fn with_trust_for(mut self, trust_for: Duration) -> Self {
        self.trust_for = trust_for;
        self
    }
}

/// The bus of one instance. Listening begins with the first subscription, and ends when the bus is dropped or
/// [shut down](Self::shutdown).
///
/// It needs a Tokio runtime, and survives it: when the one on which it listens is dropped, the next use on another one
/// (publishing, subscribing, asking for trust or state, a lock, a lookup that memory may not answer) listens there.
#[derive(Debug)]
pub struct RedisBus(Arc<Shared>);

/// What the bus shares with its tasks.
#[derive(Debug)]
pub(crate) struct Shared {
    link: RedisLink,
    policy: BusPolicy,
    clock: Clock,
    /// Names this instance in messages, so that it does not apply its own again.
    instance: String,
    channel: String,
    echo_channel: String,
    wake_channel: String,
    sequence_key: String,
    sinks: Sinks,
    wakes: Wakes,
    trust: Arc<Trust>,
    pending: Mutex<Pending>,
    /// A beat came back while something was pending.
    reachable: Arc<Notify>,
    /// Numbers the beats of all subscriptions: a late echo must not be taken for that of a newer beat.
    beats: AtomicU64,
    /// When the last beat that the server answered was sent; zero for none.
    last_beat: AtomicU64,
    counts: Counts,
    tasks: Mutex<Tasks>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    health: Mutex<BusHealth>,
    published: AtomicU64,
    received: AtomicU64,
    malformed: AtomicU64,
    gaps: AtomicU64,
    reconnects: AtomicU64,
    flushes: AtomicU64,
    lag_nanos: AtomicU64,
}

impl RedisBus {
    /// A bus with default [`BusPolicy`].
    #[must_use]
    pub fn on(link: RedisLink) -> Arc<Self> {
        Self::with_policy(link, BusPolicy::default())
    }

    /// A bus on the machine's own clock.
    #[must_use]
    pub fn with_policy(link: RedisLink, policy: BusPolicy) -> Arc<Self> {
        Self::with_clock(link, policy, Clock::system())
    }

    /// A bus on a clock of the caller's; for tests. The caches on it must be on the same one.
    #[must_use]
    pub fn with_clock(link: RedisLink, policy: BusPolicy, clock: Clock) -> Arc<Self> {
        let instance = Uuid::new_v4().simple().to_string();
        let channel = link.prefixed("cache:invalidate");
        let trust = Trust::none();
        // One server, never demoted: what it holds may be believed whenever it answers.
        trust.extend_far(Tick::NEVER);
        Arc::new(Self(Arc::new(Shared {
            echo_channel: format!("{channel}:echo:{instance}"),
            wake_channel: link.prefixed(&format!("wake:{instance}")),
            sequence_key: format!("{{{channel}}}:seq"),
            link,
            policy,
            clock,
            instance,
            channel,
            sinks: Sinks::default(),
            wakes: Wakes::default(),
            trust: Arc::new(trust),
            pending: Mutex::default(),
            reachable: Arc::default(),
            beats: AtomicU64::new(0),
            last_beat: AtomicU64::new(0),
            counts: Counts::default(),
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
        })))
    }

    /// The connections it uses.
    #[must_use]
    pub fn link(&self) -> &RedisLink {
        &self.0.link
    }

    /// The name of this instance in messages.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// The channel that this instance alone listens to, `<prefix>wake:<instance>`: where another instance
    /// publishes what only this one waits for.
    #[must_use]
    pub fn wake_channel(&self) -> &str {
        &self.0.wake_channel
    }

    /// Calls `handler` with each payload that is published on [`wake_channel`](Self::wake_channel), until the
    /// guard is dropped. It must not wait: it runs in front of the invalidations.
    ///
    /// A payload may be lost like any message: whoever waits for one needs a timer beside it. There is one
    /// subscription for all handlers and all invalidations, so a handler hears the payloads of others, too.
    pub fn on_wake(&self, handler: impl Fn(&[u8]) + Send + Sync + 'static) -> Subscription {
        let subscription = self.0.wakes.add(Arc::new(handler));
        self.0.listen();
        subscription
    }

    /// Ends the subscription and the repetition of what failed, at once and for good. Memory is not trusted
    /// afterwards; publishing still works.
    pub fn shutdown(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.end_tasks();
        self.0.trust.revoke_near();
        *self.0.counts.health.lock() = BusHealth::Down;
    }

    /// Removes keys and tells every instance, in one atomic step per 1 000. This process's sinks are told
    /// also when that fails or is dropped, and then it is repeated in the background.
    pub(crate) async fn remove_keys(&self, keys: Vec<Arc<str>>) -> Result<(), CacheError> {
        self.0.announce(Announcement::removing(Invalidation::Keys(keys))).await?;
        Ok(())
    }

    /// Removes what starts with a prefix, then tells every instance; says how many values there were.
    pub(crate) async fn remove_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        Ok(self.0.announce(Announcement::removing(Invalidation::Prefix(prefix.into()))).await?)
    }

    /// Listens from now on, unless it does already.
    pub(crate) fn listen(&self) {
        self.0.listen();
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.end_tasks();
    }
}

#[async_trait]
impl InvalidationBus for RedisBus {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.0.announce(Announcement::telling(message.clone())).await?;
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        let subscription = self.0.sinks.subscribe(sink);
        self.0.listen();
        subscription
    }

    fn trust(&self) -> Arc<Trust> {
        self.0.attend();
        Arc::clone(&self.0.trust)
    }

    fn staleness_bound(&self) -> Option<Duration> {
        Some(self.0.policy.trust_for)
    }

    fn state(&self) -> BusState {
        self.0.attend();
        let counts = &self.0.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lag = read(&counts.lag_nanos);
        let mut state = BusState::default();
        let listens = self.0.listens();
        state.health = match *counts.health.lock() {
            // A listener that never ran cannot say that it ended.
            _ if !listens => BusHealth::Down,
            // Trust runs out by itself; the machine notices at its next event.
            BusHealth::Trusted if !self.0.trust.near(self.0.clock.now()) => BusHealth::Recovering,
            health => health,
        };
        state.published = read(&counts.published);
        state.pending = self.0.pending.lock().len() as u64;
        state.received = read(&counts.received);
        state.malformed = read(&counts.malformed);
        state.gaps = read(&counts.gaps);
        state.reconnects = read(&counts.reconnects);
        state.flushes = read(&counts.flushes);
        state.panics = self.0.sinks.panics();
        state.lag = (lag > 0).then(|| Duration::from_nanos(lag));
        state
    }
}
