//! Gates, and who stands at them.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cache_core::BackendErrorKind;
use tokio::sync::watch;

/// What happens to the calls of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They go through.
    Open,
    /// They fail and change nothing.
    Error(BackendErrorKind),
    /// They take effect, and their answer is lost: what a time-out or a cut line looks like to the caller.
    LostAnswer(BackendErrorKind),
    /// They go through after a while.
    Slow(Duration),
    /// They stop before they do anything, until the gate is changed; then they do as it says.
    Hold,
    /// They take effect, and stop before they answer, until the gate is changed to anything else.
    HoldAnswer,
    /// They do nothing and never end, whatever becomes of the gate.
    Never,
}

#[derive(Debug)]
pub(super) struct Door {
    pub(super) gate: watch::Sender<Gate>,
    pub(super) calls: AtomicU64,
    /// Calls that stand at the gate.
    pub(super) stopped: watch::Sender<usize>,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            gate: watch::Sender::new(Gate::Open),
            calls: AtomicU64::new(0),
            stopped: watch::Sender::new(0),
        }
    }
}

impl Door {
    /// Waits while the gate is `closed`, and says what it is then.
    pub(super) async fn leave(&self, closed: Gate) -> Gate {
        let mut gate = self.gate.subscribe();
        if *gate.borrow() != closed {
            return *gate.borrow();
        }
        let _standing = Standing::at(self);
        // The sender is in `self`, so it is not closed.
        gate.wait_for(|gate| *gate != closed).await.map_or(Gate::Open, |gate| *gate)
    }
}

/// A call that stands at a gate, until it goes on or is dropped.
pub(super) struct Standing<'a>(&'a Door);

impl<'a> Standing<'a> {
    pub(super) fn at(door: &'a Door) -> Self {
        door.stopped.send_modify(|stopped| *stopped += 1);
        Self(door)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.stopped.send_modify(|stopped| *stopped -= 1);
    }
}
