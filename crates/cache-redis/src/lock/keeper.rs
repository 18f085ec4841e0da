//! Holding a lock: a task renews it, tells the holder when it is lost, and lets go when the guard does.
//!
//! One task per guard, not one per process: a renewal that is slow then delays no other, the task is the one owner
//! of the holding from its beginning to its end, and it ends with it. Renewals are a round trip each either way;
//! a task costs less than that.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::{BackendError, BackendErrorKind, FencingToken, HeldLock, LockError};
use metrics::counter;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::names::{Id, Names};
use super::server::{self, Released};
use super::{Shared, refused};

/// What is held.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) shared: Arc<Shared>,
    pub(super) names: Arc<Names>,
    pub(super) id: Id,
    pub(super) ttl: Duration,
    pub(super) fence: u64,
}

/// What the server granted, and how far it may be relied on here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) fence: u64,
    /// When it was asked for.
    pub(super) sent: Instant,
    /// Until when the lock is surely ours.
    pub(super) until: Instant,
}

/// Until when the lock is surely ours. Once lost it stays so, whatever the server says later.
#[derive(Debug, Clone, Copy)]
struct Validity {
    until: Instant,
    lost: bool,
}

type Reply = oneshot::Sender<Result<(), LockError>>;

/// The guard's side.
#[derive(Debug)]
struct Held {
    names: Arc<Names>,
    fence: FencingToken,
    validity: watch::Receiver<Validity>,
    /// Asks the keeper to let go; it does so, too, when this is dropped.
    letting_go: oneshot::Sender<Reply>,
}

impl Lease {
    pub(super) fn new(fence: u64, sent: Instant, ttl: Duration, left: Duration) -> Self {
        Self { fence, sent, until: surely_ours_until(sent, ttl, left) }
    }
}

impl Validity {
    /// By our own clock as well: in a process that was paused the holder may ask before the keeper runs.
    fn is_over(&self) -> bool {
        self.lost || Instant::now() >= self.until
    }
}

/// Watches over a holding until the guard lets go.
pub(super) fn keep(holding: Holding, lease: Lease) -> impl HeldLock + use<> {
    let (tell, validity) = watch::channel(Validity { until: lease.until, lost: false });
    let (letting_go, let_go) = oneshot::channel();
    let held =
        Held { names: Arc::clone(&holding.names), fence: FencingToken(holding.fence), validity, letting_go };
    tokio::spawn(holding.run(lease.sent, tell, let_go));
    held
}

#[async_trait]
impl HeldLock for Held {
    fn key(&self) -> &str {
        &self.names.key
    }

    fn fence(&self) -> FencingToken {
        self.fence
    }

    async fn lost(&self) {
        let mut validity = self.validity.clone();
        loop {
            let now = *validity.borrow_and_update();
            if now.is_over() {
                return;
            }
            // An error means that the keeper is gone, with its runtime: then nobody renews.
            if let Ok(Err(_)) = tokio::time::timeout_at(now.until, validity.changed()).await {
                tokio::time::sleep_until(now.until).await;
            }
        }
    }

    async fn release(self: Box<Self>) -> Result<(), LockError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.letting_go.send(reply);
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Holding {
    async fn run(
        self,
        sent: Instant,
        validity: watch::Sender<Validity>,
        mut let_go: oneshot::Receiver<Reply>,
    ) {
        let reply = tokio::select! {
            biased;
            reply = &mut let_go => reply,
            () = self.renew_while_ours(sent, &validity) => {
                say_lost(&validity);
                // Not given up before the guard is: its holder may just be finishing.
                let_go.await
            }
        };
        // The holder may have found out before the keeper did.
        let lost = validity.borrow().is_over();
        if lost {
            say_lost(&validity);
        }
        let Ok(reply) = reply else { return self.settle().await };
        let answer = if lost { Err(LockError::Lost) } else { self.release().await };
        let settled = matches!(answer, Ok(()));
        let _ = reply.send(answer);
        if !settled {
            self.settle().await;
        }
    }

    /// Renews at a third of the TTL, and sooner after a failure. Ends when the lock is lost.
    async fn renew_while_ours(&self, sent: Instant, validity: &watch::Sender<Validity>) {
        let mut next = sent + self.ttl / 3;
        loop {
            let until = validity.borrow().until;
            tokio::time::sleep_until(next.min(until)).await;
            let asked = Instant::now();
            let renewing = server::renew(&self.shared.link, &self.names, &self.id, self.ttl);
            let Ok(answer) = tokio::time::timeout_at(until, renewing).await else { return };
            if Instant::now() >= until {
                return;
            }
            match answer {
                Ok(true) => {
                    next = asked + self.ttl / 3;
                    let until = surely_ours_until(asked, self.ttl, self.ttl);
                    validity.send_modify(|validity| validity.until = until);
                }
                Ok(false) => return,
                Err(error) => {
                    tracing::debug!(%error, "a lock could not be renewed; trying again");
                    next = Instant::now() + (self.ttl / 20).min(Duration::from_secs(1));
                }
            }
        }
    }

    async fn release(&self) -> Result<(), LockError> {
        let Shared { link, .. } = &*self.shared;
        match server::release(link, &self.names, &self.id, self.fence).await {
            // The second when the first answer was lost on its way, and the release was sent again.
            Ok(Released::Now | Released::Before) => Ok(()),
            Ok(Released::Lost) => Err(LockError::Lost),
            Err(error) => Err(refused(error)),
        }
    }

    async fn settle(&self) {
        self.shared.settle(&self.names, &self.id, self.ttl).await;
    }
}

/// Says it once.
fn say_lost(validity: &watch::Sender<Validity>) {
    if validity.send_if_modified(|validity| !std::mem::replace(&mut validity.lost, true)) {
        counter!("lock_lost_total").increment(1);
        tracing::warn!("a lock was lost while it was held: not renewed in time, or taken by another");
    }
}

/// Counted from before the question was sent: the server began to count later. Less what the two clocks may differ
/// in speed, and less a round trip.
fn surely_ours_until(sent: Instant, ttl: Duration, left: Duration) -> Instant {
    let margin = ttl / 100 + Duration::from_millis(2) + sent.elapsed();
    sent + left.saturating_sub(margin)
}

fn ended() -> LockError {
    BackendError::new(BackendErrorKind::Closed, "lock_release", "the runtime ended").into()
}
