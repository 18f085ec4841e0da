//! The task that listens and beats.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder;
use cache_core::bus::BusHealth;
use cache_core::clock::COARSE_LAG;
use cache_core::{BackendErrorKind, FlushReason, Tick};
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;
use redis::Msg;

use super::inbox::Inbox;
use super::message::{self, Content, Received};
use super::trust::{Machine, Verdict};
use super::{Shared, server_time};
use crate::error::CallError;
use crate::script;

/// Beats whose echo is waited for; older ones say nothing any more.
const MAX_BEATS: usize = 16;

/// The beats of one subscription.
struct Beats {
    /// Those that were sent and not heard: their counter and when.
    sent: VecDeque<(u64, Tick)>,
    /// When the last one was heard, or the subscription began.
    heard: Tick,
}

/// Listens, and keeps the server's time, until the bus is gone. `again` when a task before did.
pub(super) async fn run(bus: Weak<Shared>, again: bool) {
    let _ended = Ended(bus.clone());
    tokio::select! {
        () = listen(bus.clone(), again) => {}
        () = server_time::keep(bus) => {}
    }
}

/// Subscribes, applies and beats, and begins again when that ends.
async fn listen(bus: Weak<Shared>, again: bool) {
    let (mut machine, mut first) = match bus.upgrade() {
        Some(bus) => (Machine::new(bus.trust_for(), bus.policy.probation, !again), !again),
        None => return,
    };
    let pauses = || {
        backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut pause = pauses();
    // Each outage is said once, not once per attempt.
    let mut said = false;
    loop {
        let Some(bus) = bus.upgrade() else { return };
        if !first {
            bus.counts.reconnects.fetch_add(1, Ordering::Relaxed);
            counter!("cache_bus_reconnects_total").increment(1);
        }
        first = false;
        let mut connected = || (pause, said) = (pauses(), false);
        let ended = bus.listen_once(&mut machine, &mut connected).await;
        machine.lost();
        bus.show(machine.health(bus.clock.now()));
        if !std::mem::replace(&mut said, true) {
            bus.say_why(ended.err().as_ref());
        }
        drop(bus);
        tokio::time::sleep(pause.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

/// Says that nobody listens any more when the task ends, however it does: its runtime may have been dropped.
struct Ended(Weak<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(bus) = self.0.upgrade() {
            bus.show(BusHealth::Down);
        }
    }
}

impl Shared {
    /// How long a beat that came back is good for. Hits look at the coarse clock: what it is late must not come on top
    /// of the bound.
    fn trust_for(&self) -> Duration {
        self.policy.trust_for.saturating_sub(COARSE_LAG)
    }

    /// One subscription, from its beginning to its end.
    async fn listen_once(
        &self,
        machine: &mut Machine,
        connected: &mut (dyn FnMut() + Send),
    ) -> Result<(), CallError> {
        const OPERATION: &str = "subscribe";
        let limit = self.link.settings().connect_timeout;
        let mut subscription = self.link.subscriber().await?;
        let channels: [&str; 3] = [&self.channel, &self.echo_channel, &self.wake_channel];
        match tokio::time::timeout(limit, subscription.subscribe(&channels[..])).await {
            Ok(answer) => answer.map_err(|error| CallError::new(OPERATION, &error, limit))?,
            Err(_) => return Err(CallError::Timeout { operation: OPERATION, after: limit }),
        }
        connected();
        self.act(machine.subscribed());
        self.show(machine.health(self.clock.now()));
        tracing::info!(server = self.link.settings().shown(), "listening to invalidations");
        let beats = Mutex::new(Beats { sent: VecDeque::new(), heard: self.clock.now() });
        let mut inbox = Inbox::of(subscription.into_on_message());
        let beating = self.keep_beating(&beats);
        tokio::pin!(beating);
        loop {
            tokio::select! {
                message = inbox.next() => match message {
                    Some(message) => self.take(machine, &beats, &message),
                    None => return Ok(()),
                },
                silent = &mut beating => {
                    let Silent = silent;
                    return Err(CallError::Timeout { operation: "beat", after: self.policy.trust_for });
                }
            }
        }
    }

    /// Tells health and metrics.
    fn show(&self, health: BusHealth) {
        *self.counts.health.lock() = health;
        gauge!("cache_bus_trusted").set(f64::from(u8::from(health == BusHealth::Trusted)));
    }

    fn say_why(&self, error: Option<&CallError>) {
        match error {
            None => tracing::warn!("the subscription to invalidations was closed; subscribing anew"),
            Some(CallError::Backend(error)) if error.kind == BackendErrorKind::Denied => tracing::warn!(
                %error,
                channel = self.channel,
                "not allowed to subscribe: the Redis user needs the channels that begin with this one \
                 (ACL `&<channel>*`) and its own wake-up channel (`&<prefix>wake:*`)"
            ),
            Some(error) => tracing::warn!(%error, "no subscription to invalidations; trying on"),
        }
    }

    /// Applies one message; the next one waits.
    fn take(&self, machine: &mut Machine, beats: &Mutex<Beats>, message: &Msg) {
        let payload = message.get_payload_bytes();
        match message.get_channel_name() {
            channel if channel == self.wake_channel => self.wakes.call(payload, &self.sinks),
            channel if channel == self.echo_channel => {
                if let Received { content: Content::Beat(count), number: Some(number), .. } =
                    message::read(payload)
                {
                    self.take_echo(machine, beats, count, number);
                }
            }
            _ => self.take_invalidation(machine, payload),
        }
    }

    fn take_invalidation(&self, machine: &mut Machine, payload: &[u8]) {
        let received = message::read(payload);
        let own = received.source.as_deref() == Some(self.instance.as_str());
        let understood = matches!(received.content, Content::Invalidation(_));
        match &received.content {
            Content::Invalidation(_) if own => {}
            Content::Invalidation(message) => {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                counter!("cache_bus_received_total").increment(1);
                self.sinks.apply(message);
            }
            Content::Beat(_) | Content::Malformed => {
                self.counts.malformed.fetch_add(1, Ordering::Relaxed);
                counter!("cache_bus_malformed_total").increment(1);
                tracing::debug!(bytes = payload.len(), "a message that is not understood was skipped");
            }
        }
        if let Some(number) = received.number {
            self.act(machine.message(number, understood));
        }
    }

    fn take_echo(&self, machine: &mut Machine, beats: &Mutex<Beats>, count: u64, number: u64) {
        let now = self.clock.now();
        let sent = {
            let mut beats = beats.lock();
            let sent = beats.sent.iter().find(|(other, _)| *other == count).map(|(_, sent)| *sent);
            beats.sent.retain(|(other, _)| *other > count);
            if sent.is_some() {
                beats.heard = now;
            }
            sent
        };
        // Not a beat of this subscription: it proves nothing.
        let Some(sent) = sent else { return };
        let lag = now.since(sent);
        self.counts.lag_nanos.store(lag.as_nanos() as u64, Ordering::Relaxed);
        histogram!("cache_bus_lag_seconds").record(lag.as_secs_f64());
        if self.pending.lock().len() > 0 {
            // What failed to be announced must be out first.
            self.reachable.notify_one();
            machine.revoked();
            return;
        }
        self.act(machine.echo(number, sent, now));
        if self.pending.lock().len() > 0 {
            // It failed just now, and its taking back of trust was undone a line above.
            self.trust.revoke_near();
            machine.revoked();
        }
        self.show(machine.health(now));
    }

    /// Empties first, trusts then.
    fn act(&self, verdict: Verdict) {
        if let Some(reason) = verdict.flush {
            self.flush(reason);
        }
        if let Some(until) = verdict.trust_until {
            self.trust.extend_near(until);
        }
    }

    pub(super) fn flush(&self, reason: FlushReason) {
        if reason == FlushReason::Gap {
            self.counts.gaps.fetch_add(1, Ordering::Relaxed);
            counter!("cache_bus_gaps_total").increment(1);
        }
        self.counts.flushes.fetch_add(1, Ordering::Relaxed);
        counter!("cache_near_flushes_total", "reason" => reason.as_str()).increment(1);
        self.sinks.flush(reason);
    }

    /// Beats on the shared connection for as long as it is polled; ends when no beat came back for so long
    /// that the subscription must be taken for dead.
    async fn keep_beating(&self, beats: &Mutex<Beats>) -> Silent {
        loop {
            let count = self.beats.fetch_add(1, Ordering::Relaxed) + 1;
            let sent = self.clock.now();
            let silent_for = {
                let mut beats = beats.lock();
                if beats.sent.len() == MAX_BEATS {
                    beats.sent.pop_front();
                }
                beats.sent.push_back((count, sent));
                sent.since(beats.heard)
            };
            if silent_for > self.policy.trust_for * 2 {
                return Silent;
            }
            if let Err(error) = self.beat(count, sent).await {
                tracing::debug!(%error, "a beat failed");
            }
            tokio::time::sleep(self.policy.heartbeat.saturating_sub(self.clock.now().since(sent))).await;
        }
    }

    async fn beat(&self, count: u64, sent: Tick) -> Result<(), CallError> {
        let text = message::write_beat(count);
        let arguments = [self.echo_channel.as_bytes(), text.as_bytes()];
        let keys = [&self.sequence_key];
        let invocation = script::BEAT.with(&keys, &arguments);
        let beat = invocation.run_as_sign_of_life(&self.link);
        let heartbeat = self.policy.heartbeat;
        let (_, seconds, micros): (u64, i64, i64) = match tokio::time::timeout(heartbeat, beat).await {
            Ok(answer) => answer?,
            Err(_) => return Err(CallError::Timeout { operation: "beat", after: heartbeat }),
        };
        self.beat_came_back(sent, (seconds, micros));
        Ok(())
    }
}

/// No beat came back for too long.
struct Silent;
