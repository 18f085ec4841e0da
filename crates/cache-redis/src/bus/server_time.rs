//! The server's clock: what entries are dated by, on every instance.
//!
//! Each beat brings it. Where no beat comes back (the Redis user may not subscribe, or may not run the script) values
//! are read and stored all the same, so it is asked for by itself.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use cache_core::Tick;
use redis::cmd;

use super::Shared;
use crate::error::CallError;

/// Asks for the time at the pace of the beats while none comes back; ends with the bus. It begins by asking, so that
/// what is read before the first beat is judged by the right clock, too.
pub(super) async fn keep(bus: Weak<Shared>) {
    loop {
        let Some(bus) = bus.upgrade() else { return };
        let (asked, heartbeat) = (bus.clock.now(), bus.policy.heartbeat);
        if !bus.is_told_by_beats(asked)
            && let Err(error) = bus.ask_for_the_time(asked).await
        {
            tracing::debug!(%error, "the server does not say what time it is");
        }
        let pause = heartbeat.saturating_sub(bus.clock.now().since(asked));
        drop(bus);
        tokio::time::sleep(pause).await;
    }
}

impl Shared {
    /// A beat brought the time: it was sent at `sent`, and the server answered with its clock.
    pub(super) fn beat_came_back(&self, sent: Tick, time: (i64, i64)) {
        self.last_beat.store(sent.as_nanos(), Ordering::Relaxed);
        self.keep_offset(sent, time);
    }

    fn is_told_by_beats(&self, now: Tick) -> bool {
        let last = self.last_beat.load(Ordering::Relaxed);
        last > 0 && now.since(Tick::from_nanos(last)) <= self.policy.heartbeat * 2
    }

    async fn ask_for_the_time(&self, sent: Tick) -> Result<(), CallError> {
        const OPERATION: &str = "time";
        let (time, heartbeat) = (cmd("TIME"), self.policy.heartbeat);
        let asking = self.link.sign_of_life(OPERATION, &time);
        match tokio::time::timeout(heartbeat, asking).await {
            Ok(answer) => self.keep_offset(sent, answer?),
            Err(_) => return Err(CallError::Timeout { operation: OPERATION, after: heartbeat }),
        }
        Ok(())
    }

    /// The server read its clock, in seconds and microseconds, about half a round trip ago.
    fn keep_offset(&self, sent: Tick, (seconds, micros): (i64, i64)) {
        let half_way = self.clock.now().since(sent).as_millis() as i64 / 2;
        let server = seconds * 1_000 + micros / 1_000 + half_way;
        let offset = server - i64::try_from(self.clock.unix_ms()).unwrap_or(i64::MAX);
        self.trust.set_server_offset_ms(offset);
    }
}
