//! What was received and not applied yet, within bounds.

use futures_util::{Stream, StreamExt};
use redis::Msg;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Messages that may wait to be applied. A process that is behind further is not told one by one any more: the
/// subscription ends, and memory is emptied with the next one.
pub(super) const MAX_WAITING: usize = 65_536;

/// Takes messages from a subscription, whose own queue has no bound. Dropping it ends the subscription.
pub(super) struct Inbox {
    waiting: mpsc::Receiver<Msg>,
    forwarder: JoinHandle<()>,
}

impl Inbox {
    pub(super) fn of(messages: impl Stream<Item = Msg> + Send + Unpin + 'static) -> Self {
        Self::bounded(messages, MAX_WAITING)
    }

    fn bounded(mut messages: impl Stream<Item = Msg> + Send + Unpin + 'static, bound: usize) -> Self {
        let (queue, waiting) = mpsc::channel(bound);
        let forwarder = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if queue.try_send(message).is_err() {
                    metrics::counter!("cache_bus_overflows_total").increment(1);
                    tracing::warn!("invalidations come faster than they are applied: subscribing anew");
                    return;
                }
            }
        });
        Self { waiting, forwarder }
    }

    /// The next message in order; `None` when the subscription has ended.
    pub(super) async fn next(&mut self) -> Option<Msg> {
        self.waiting.recv().await
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::Value;

    fn message(payload: &str) -> Msg {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        Msg::from_owned_value(Value::Array(vec![bulk("message"), bulk("c"), bulk(payload)]))
            .expect("a message")
    }

    /// SD12: a storm that is not kept up with ends the subscription after what fits, in order and without a
    /// hole.
    #[tokio::test]
    async fn a_storm_ends_the_subscription() {
        let storm = futures_util::stream::iter((0..100).map(|n| message(&n.to_string())));
        let mut inbox = Inbox::bounded(storm, 10);
        while !inbox.forwarder.is_finished() {
            tokio::task::yield_now().await;
        }
        let mut taken = Vec::new();
        while let Some(message) = inbox.next().await {
            taken.push(String::from_utf8(message.get_payload_bytes().to_vec()).expect("text"));
        }
        assert_eq!(taken, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
