//! The task that listens and beats.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder;
use cache_core::bus::BusHealth;
use cache_core::{FlushReason, Tick};
use futures_util::StreamExt;
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;

use super::Shared;
use super::message::{self, Content};
use super::trust::{Machine, Verdict};
use crate::error::CallError;
use crate::script;

/// Beats whose echo is waited for; older ones say nothing any more.
const MAX_BEATS: usize = 16;

/// Beats that were sent: their counter and when.
type Beats = Mutex<VecDeque<(u64, Tick)>>;

/// Listens until the bus is gone: subscribes, applies and beats, and begins again when that ends.
pub(super) async fn run(bus: Weak<Shared>) {
    let (mut machine, mut first) = match bus.upgrade() {
        Some(bus) => (Machine::new(bus.policy.trust_for, bus.policy.probation), true),
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
    loop {
        let Some(bus) = bus.upgrade() else { return };
        if !first {
            bus.counts.reconnects.fetch_add(1, Ordering::Relaxed);
            counter!("cache_bus_reconnects_total").increment(1);
        }
        first = false;
        match bus.listen_once(&mut machine, &mut || pause = pauses()).await {
            Ok(()) => tracing::info!("the subscription to invalidations ended"),
            Err(error) => tracing::info!(%error, "no subscription to invalidations"),
        }
        machine.lost();
        *bus.counts.health.lock() = BusHealth::Down;
        drop(bus);
        tokio::time::sleep(pause.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

impl Shared {
    /// One subscription, from its beginning to its end.
    async fn listen_once(
        &self,
        machine: &mut Machine,
        connected: &mut (dyn FnMut() + Send),
    ) -> Result<(), CallError> {
        let limit = self.link.settings().connect_timeout;
        let mut subscription = self.link.subscriber().await?;
        for channel in [&self.channel, &self.echo_channel] {
            match tokio::time::timeout(limit, subscription.subscribe(channel)).await {
                Ok(answer) => answer.map_err(|error| CallError::new("subscribe", &error, limit))?,
                Err(_) => return Err(CallError::Timeout { operation: "subscribe", after: limit }),
            }
        }
        connected();
        self.act(machine.subscribed());
        *self.counts.health.lock() = BusHealth::Probing;
        let beats = Beats::default();
        let mut messages = subscription.on_message();
        let beating = self.keep_beating(&beats);
        tokio::pin!(beating);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.take(machine, &beats, message.get_payload_bytes()),
                    None => return Ok(()),
                },
                silent = &mut beating => {
                    let Silent = silent;
                    return Err(CallError::Timeout { operation: "beat", after: self.policy.trust_for });
                }
            }
        }
    }

    /// Applies one message; the next one waits.
    fn take(&self, machine: &mut Machine, beats: &Beats, payload: &[u8]) {
        let received = message::read(payload);
        if let Content::Beat(count) = received.content {
            self.take_echo(machine, beats, count, received.number.unwrap_or(0));
            return;
        }
        let own = received.source.as_deref() == Some(self.instance.as_str());
        match &received.content {
            Content::Invalidation(message) if !own => {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                counter!("cache_bus_received_total").increment(1);
                self.sinks.apply(message);
            }
            Content::Malformed => {
                self.counts.malformed.fetch_add(1, Ordering::Relaxed);
                counter!("cache_bus_malformed_total").increment(1);
                tracing::debug!(bytes = payload.len(), "a message that is not understood was skipped");
            }
            _ => {}
        }
        if let Some(number) = received.number {
            self.act(machine.message(number));
        }
    }

    fn take_echo(&self, machine: &mut Machine, beats: &Beats, count: u64, number: u64) {
        let sent = {
            let mut beats = beats.lock();
            let sent = beats.iter().find(|(other, _)| *other == count).map(|(_, sent)| *sent);
            beats.retain(|(other, _)| *other > count);
            sent
        };
        // Not a beat of this subscription: it proves nothing.
        let Some(sent) = sent else { return };
        let now = self.clock.now();
        let lag = now.since(sent);
        self.counts.lag_nanos.store(lag.as_nanos() as u64, Ordering::Relaxed);
        histogram!("cache_bus_lag_seconds").record(lag.as_secs_f64());
        if self.pending.lock().len() > 0 {
            // What failed to be announced must be out first.
            machine.revoked();
            return;
        }
        self.act(machine.echo(number, sent, now));
        let health = machine.health(now);
        *self.counts.health.lock() = health;
        gauge!("cache_bus_trusted").set(f64::from(u8::from(health == BusHealth::Trusted)));
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

    fn flush(&self, reason: FlushReason) {
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
    async fn keep_beating(&self, beats: &Beats) -> Silent {
        let mut count = 0;
        loop {
            count += 1;
            let sent = self.clock.now();
            let unanswered = {
                let mut beats = beats.lock();
                if beats.len() == MAX_BEATS {
                    beats.pop_front();
                }
                beats.push_back((count, sent));
                beats.front().map_or(Duration::ZERO, |(_, oldest)| sent.since(*oldest))
            };
            if unanswered > self.policy.trust_for * 2 {
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
        let beat = script::BEAT.run(&self.link, &keys, &arguments);
        let heartbeat = self.policy.heartbeat;
        let (_, seconds, micros): (u64, i64, i64) = match tokio::time::timeout(heartbeat, beat).await {
            Ok(answer) => answer?,
            Err(_) => return Err(CallError::Timeout { operation: "beat", after: heartbeat }),
        };
        // The server read its clock about half a round trip ago.
        let half_way = self.clock.now().since(sent).as_millis() as i64 / 2;
        let server = seconds * 1_000 + micros / 1_000 + half_way;
        let offset = server - i64::try_from(self.clock.unix_ms()).unwrap_or(i64::MAX);
        self.trust.set_server_offset_ms(offset);
        Ok(())
    }
}

/// No beat came back for too long.
struct Silent;
