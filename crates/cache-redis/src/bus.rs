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
//! | the task that listens and beats | `listener` |
//! | invalidations that failed and are repeated | `pending` |

pub mod message;

mod listener;
mod pending;
mod trust;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cache_core::bus::{BusHealth, Sinks};
use cache_core::{
    BusState, CacheError, Clock, Invalidation, InvalidationBus, InvalidationSink, Subscription, Tick, Trust,
};
use metrics::counter;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::bus::pending::Pending;
use crate::connection::RedisLink;
use crate::error::CallError;
use crate::keyspace::BATCH;
use crate::script;

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

/// The bus of one instance. Listening begins with the first subscription, and ends when the bus is dropped.
#[derive(Debug)]
pub struct RedisBus {
    shared: Arc<Shared>,
    listener: OnceLock<tokio::task::AbortHandle>,
}

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
    sequence_key: String,
    sinks: Sinks,
    trust: Arc<Trust>,
    pending: Mutex<Pending>,
    counts: Counts,
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

    /// A bus.
    #[must_use]
    pub fn with_policy(link: RedisLink, policy: BusPolicy) -> Arc<Self> {
        let instance = Uuid::new_v4().simple().to_string();
        let channel = link.prefixed("cache:invalidate");
        let trust = Trust::none();
        // One server, never demoted: what it holds may be believed whenever it answers.
        trust.extend_far(Tick::NEVER);
        let shared = Shared {
            echo_channel: format!("{channel}:echo:{instance}"),
            sequence_key: format!("{{{channel}}}:seq"),
            link,
            policy,
            clock: Clock::system(),
            instance,
            channel,
            sinks: Sinks::default(),
            trust: Arc::new(trust),
            pending: Mutex::default(),
            counts: Counts::default(),
        };
        Arc::new(Self { shared: Arc::new(shared), listener: OnceLock::new() })
    }

    /// The connections it uses.
    #[must_use]
    pub fn link(&self) -> &RedisLink {
        &self.shared.link
    }

    /// The name of this instance in messages.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }

    /// Removes what `message` names from Redis, if it names keys, and tells every instance; one atomic step
    /// per 1 000 keys. This process's sinks are told also when that fails.
    ///
    /// # Errors
    /// When it is not known to have happened; it is repeated in the background until it has.
    pub(crate) async fn remove_and_publish(&self, message: Invalidation) -> Result<(), CacheError> {
        let sent = self.shared.send(&message).await;
        self.shared.sinks.apply(&message);
        sent.map_err(|error| {
            self.shared.repeat_later(message);
            error.into()
        })
    }

    /// Listens from now on, unless it does already. Needs a runtime; without one the next call tries again.
    fn listen(&self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.listener
                .get_or_init(|| runtime.spawn(listener::run(Arc::downgrade(&self.shared))).abort_handle());
        }
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

#[async_trait]
impl InvalidationBus for RedisBus {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.remove_and_publish(message.clone()).await
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        let subscription = self.shared.sinks.subscribe(sink);
        self.listen();
        subscription
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.shared.trust)
    }

    fn state(&self) -> BusState {
        let counts = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lag = read(&counts.lag_nanos);
        let mut state = BusState::default();
        state.health = match *counts.health.lock() {
            // Trust runs out by itself; the machine notices at its next event.
            BusHealth::Trusted if !self.shared.trust.near(self.shared.clock.now()) => BusHealth::Probing,
            health => health,
        };
        state.published = read(&counts.published);
        state.pending = self.shared.pending.lock().len() as u64;
        state.received = read(&counts.received);
        state.malformed = read(&counts.malformed);
        state.gaps = read(&counts.gaps);
        state.reconnects = read(&counts.reconnects);
        state.flushes = read(&counts.flushes);
        state.lag = (lag > 0).then(|| Duration::from_nanos(lag));
        state
    }
}

impl Shared {
    /// One atomic step per batch: remove, count, publish.
    async fn send(&self, message: &Invalidation) -> Result<(), CallError> {
        match message {
            Invalidation::Keys(keys) => {
                for batch in keys.chunks(BATCH) {
                    self.send_step(batch, &Invalidation::Keys(batch.to_vec())).await?;
                }
                Ok(())
            }
            message => self.send_step(&[], message).await,
        }
    }

    async fn send_step(&self, remove: &[Arc<str>], message: &Invalidation) -> Result<(), CallError> {
        let mut keys = vec![self.sequence_key.clone()];
        keys.extend(remove.iter().map(|key| self.link.prefixed(key)));
        let text = message::write(message, &self.instance);
        let arguments = [self.channel.as_bytes(), text.as_bytes()];
        let _: u64 = script::INVALIDATE.run(&self.link, &keys, &arguments).await?;
        self.counts.published.fetch_add(1, Ordering::Relaxed);
        counter!("cache_bus_published_total").increment(1);
        Ok(())
    }

    /// Remembers a failed announcement, and begins to repeat. Memory is not trusted until it is out: this
    /// process could otherwise fetch the old far value back in.
    fn repeat_later(self: &Arc<Self>, message: Invalidation) {
        counter!("cache_bus_publish_failures_total").increment(1);
        let first = self.pending.lock().add(message);
        self.trust.revoke_near();
        if first && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(pending::repeat(Arc::downgrade(self)));
        }
    }
}
