//! One attempt to hold a lock, from before anything is sent until the lock is held or given up.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind, LockError, LockGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::keeper::{self, Holding, Lease};
use super::names::{Id, Names};
use super::server::{self, Answer, PATIENCE};
use super::{Shared, refused};
use crate::error::CallError;

/// An attempt. Whatever it has on the server, a place in the queue or the lock itself, is given up in the
/// background when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// Empty once the lock is held: then the guard's keeper owns all this.
    parts: Option<Parts>,
    woken: Arc<Notify>,
    runtime: Handle,
}

#[derive(Debug)]
struct Parts {
    shared: Arc<Shared>,
    names: Arc<Names>,
    id: Id,
    ttl: Duration,
    /// The server may know the id.
    owed: bool,
}

/// What came of asking.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The lock is ours.
    Held(Lease),
    /// It is not; ask again after this, or when woken.
    Busy { pause: Duration },
}

impl Place {
    pub(super) fn new(shared: Arc<Shared>, names: Arc<Names>, id: Id, ttl: Duration) -> Self {
        let woken = shared.waiters.add(id.number);
        let parts = Some(Parts { shared, names, id, ttl, owed: false });
        Self { parts, woken, runtime: Handle::current() }
    }

    /// Asks for the lock; if that is not to be had, and `enter`, for a place in the queue.
    pub(super) async fn ask(&mut self, enter: bool) -> Result<Attempt, LockError> {
        let Some(parts) = &mut self.parts else { unreachable!("a place that holds is gone") };
        // From here to the answer nobody knows what the server knows.
        let (owed, sent) = (std::mem::replace(&mut parts.owed, true), Instant::now());
        let answer = server::acquire(&parts.shared.link, &parts.names, &parts.id, parts.ttl, enter).await;
        match answer {
            Ok(Answer::Held { fence, left }) => {
                let lease = Lease::new(fence, sent, parts.ttl, left);
                if Instant::now() >= lease.until { Err(too_late()) } else { Ok(Attempt::Held(lease)) }
            }
            Ok(Answer::Busy { next, left }) => {
                parts.owed = enter;
                Ok(Attempt::Busy { pause: pause(next, left) })
            }
            Err(error) => {
                if never_sent(&error) {
                    parts.owed = owed;
                }
                Err(refused(error))
            }
        }
    }

    /// Waits until woken, at the longest until then.
    pub(super) async fn wait(&self, until: Instant) {
        let _ = tokio::time::timeout_at(until, self.woken.notified()).await;
    }

    /// Hands the lock over to a guard.
    pub(super) fn hold(mut self, lease: Lease) -> LockGuard {
        let Some(parts) = self.parts.take() else { unreachable!("a place holds once") };
        parts.shared.waiters.remove(parts.id.number);
        let Parts { shared, names, id, ttl, .. } = parts;
        LockGuard::new(keeper::keep(Holding { shared, names, id, ttl, fence: lease.fence }, lease))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        parts.shared.waiters.remove(parts.id.number);
        if parts.owed {
            self.runtime.spawn(async move { parts.shared.settle(&parts.names, &parts.id, parts.ttl).await });
        }
    }
}

/// Only who is next asks when the holder's time ends: the others would find it in front of them.
fn pause(next: bool, left: Option<Duration>) -> Duration {
    let often = PATIENCE / 2;
    match left {
        Some(left) if next => often.min(left + Duration::from_millis(1)),
        _ => often,
    }
}

fn never_sent(error: &CallError) -> bool {
    matches!(error, CallError::Backend(error) if error.kind == BackendErrorKind::CircuitOpen)
}

fn too_late() -> LockError {
    let detail = "the lock had run out when the answer came";
    BackendError::new(BackendErrorKind::Unavailable, "lock_acquire", detail).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F3: no fixed poll. The next one asks when the holder's time ends, everybody twice in the time after which
    /// a silent waiter is taken for dead.
    #[test]
    fn a_waiter_asks_when_it_must() {
        let ms = Duration::from_millis;
        assert_eq!(pause(true, Some(ms(300))), ms(301));
        assert_eq!(pause(true, Some(ms(30_000))), PATIENCE / 2);
        assert_eq!(pause(false, Some(ms(300))), PATIENCE / 2);
        assert_eq!(pause(true, None), PATIENCE / 2);
    }
}
