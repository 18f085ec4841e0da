//! Announcing something: remove, count, publish, tell the own sinks, and see to it that a failure is repeated.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cache_core::{FlushReason, Invalidation};
use metrics::counter;

use super::{Shared, message};
use crate::error::CallError;
use crate::keyspace::BATCH;
use crate::{scan, script};

/// Something to announce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) message: Invalidation,
    /// What it names is also to be removed from Redis.
    pub(super) remove: bool,
}

impl Announcement {
    /// Removes, then tells.
    pub(super) fn removing(message: Invalidation) -> Self {
        Self { message, remove: true }
    }

    /// Only tells: Redis holds what it should already.
    pub(super) fn telling(message: Invalidation) -> Self {
        Self { message, remove: false }
    }
}

impl Shared {
    /// Sends an announcement, and tells this process's sinks before it returns: afterwards, since a reader
    /// between the two would fetch the old far value back in. Says how many values a prefix removed.
    ///
    /// When it fails, or is dropped on the way, it is repeated in the background until it succeeded.
    pub(super) async fn announce(self: &Arc<Self>, announcement: Announcement) -> Result<u64, CallError> {
        self.attend();
        let on_the_way = OnTheWay { shared: self, announcement: Some(announcement.clone()) };
        let sent = self.send(&announcement).await;
        on_the_way.ended(sent.is_ok());
        sent
    }

    pub(super) async fn send(&self, announcement: &Announcement) -> Result<u64, CallError> {
        match (&announcement.message, announcement.remove) {
            (Invalidation::Keys(keys), remove) => {
                for batch in keys.chunks(BATCH) {
                    let removed = if remove { batch } else { &[] };
                    self.step(removed, &Invalidation::Keys(batch.to_vec())).await?;
                }
                Ok(0)
            }
            (message @ Invalidation::Prefix(prefix), true) => {
                let removed = scan::unlink_prefix(&self.link, prefix).await;
                // Also after a failure: part of the keys may be gone.
                self.step(&[], message).await?;
                removed
            }
            (message, _) => self.step(&[], message).await.map(|()| 0),
        }
    }

    /// One atomic step: remove, count, publish.
    async fn step(&self, remove: &[Arc<str>], message: &Invalidation) -> Result<(), CallError> {
        let mut keys = vec![self.sequence_key.clone()];
        keys.extend(remove.iter().map(|key| self.link.prefixed(key)));
        let text = message::write(message, &self.instance);
        let arguments = [self.channel.as_bytes(), text.as_bytes()];
        let _: u64 = script::INVALIDATE.with(&keys, &arguments).run(&self.link).await?;
        self.counts.published.fetch_add(1, Ordering::Relaxed);
        counter!("cache_bus_published_total").increment(1);
        Ok(())
    }

    /// Remembers what was not announced, and begins to repeat. Memory is not trusted until it is out: this
    /// process could otherwise fetch the old far value back in.
    fn repeat_later(self: &Arc<Self>, announcement: Announcement) {
        counter!("cache_bus_publish_failures_total").increment(1);
        let added = self.attend_after(|| {
            let added = self.pending.lock().add(announcement);
            self.trust.revoke_near();
            (added, added.first)
        });
        if added.overflowed {
            tracing::warn!("too many invalidations failed to remember each: everything will be announced");
            self.flush(FlushReason::Overflow);
        }
    }
}

/// An announcement whose end is not known yet. One that failed, or whose caller left, is repeated, for Redis may have
/// done its part: the others know then, and this process's memory must, too.
struct OnTheWay<'a> {
    shared: &'a Arc<Shared>,
    announcement: Option<Announcement>,
}

impl OnTheWay<'_> {
    /// Tells the sinks on behalf of the caller, who learns of a panic of theirs.
    fn ended(mut self, arrived: bool) {
        if let Some(message) = self.settle(arrived) {
            self.shared.sinks.apply_own(&message);
        }
    }

    /// The message to tell the sinks of. Trust ends first when it did not arrive: nobody may put the old far value
    /// back in between.
    fn settle(&mut self, arrived: bool) -> Option<Invalidation> {
        let announcement = self.announcement.take()?;
        let message = announcement.message.clone();
        if !arrived {
            self.shared.repeat_later(announcement);
        }
        Some(message)
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        if let Some(message) = self.settle(false) {
            // Nobody is left to learn of a panic.
            self.shared.sinks.apply(&message);
        }
    }
}
