//! Gates, and who stands at them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind};
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

/// The methods of a contract that can fail.
pub trait Gated: Copy + 'static {
    /// All of them, in the order in which they are declared.
    const ALL: &'static [Self];

    /// What failures call it.
    fn name(self) -> &'static str;

    /// Where it is among all.
    fn index(self) -> usize;
}

/// A gate before every method of a twin, which counts its calls. All are open at first.
#[derive(Debug)]
pub struct Gates<M: 'static> {
    doors: Box<[Door]>,
    methods: &'static [M],
}

impl<M: Gated> Default for Gates<M> {
    fn default() -> Self {
        Self { doors: M::ALL.iter().map(|_| Door::default()).collect(), methods: M::ALL }
    }
}

impl<M: Gated> Gates<M> {
    /// Says what happens to a method's calls from now on. Those which stand at the gate see it too.
    pub fn set_gate(&self, method: M, gate: Gate) {
        self.door(method).gate.send_replace(gate);
    }

    /// Says what happens to several methods' calls.
    pub fn set_gates(&self, methods: &[M], gate: Gate) {
        for method in methods {
            self.set_gate(*method, gate);
        }
    }

    /// Says what happens to all calls.
    pub fn set_all(&self, gate: Gate) {
        self.set_gates(self.methods, gate);
    }

    /// How often a method was called since the counts were last [taken](Self::take_calls).
    #[must_use]
    pub fn calls(&self, method: M) -> u64 {
        self.door(method).calls.load(Ordering::SeqCst)
    }

    /// The calls of all methods.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        self.methods.iter().map(|method| self.calls(*method)).sum()
    }

    /// Every method that was called, with how often, and begins to count anew.
    pub fn take_calls(&self) -> Vec<(M, u64)> {
        let taken = |method: &M| (*method, self.door(*method).calls.swap(0, Ordering::SeqCst));
        self.methods.iter().map(taken).filter(|(_, calls)| *calls > 0).collect()
    }

    /// How many calls stand at a method's gate now.
    #[must_use]
    pub fn stopped(&self, method: M) -> usize {
        *self.door(method).stopped.borrow()
    }

    /// Waits until at least so many calls stand at a method's gate.
    pub async fn at_gate(&self, method: M, calls: usize) {
        let mut stopped = self.door(method).stopped.subscribe();
        // The sender is in `self`, so it is not closed.
        let _ = stopped.wait_for(|stopped| *stopped >= calls).await;
    }

    /// Makes a call as its method's gate says.
    pub(super) async fn pass<T, E: From<BackendError>>(
        &self,
        method: M,
        call: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let door = self.door(method);
        door.calls.fetch_add(1, Ordering::SeqCst);
        let gate = door.leave(Gate::Hold).await;
        let failed = |kind| Err(BackendError::new(kind, method.name(), "as the test wants it").into());
        match gate {
            Gate::Error(kind) => return failed(kind),
            Gate::Never => {
                let _standing = Standing::at(door);
                return std::future::pending().await;
            }
            Gate::Slow(time) => tokio::time::sleep(time).await,
            Gate::Open | Gate::LostAnswer(_) | Gate::Hold | Gate::HoldAnswer => {}
        }
        let answer = call.await;
        match gate {
            Gate::LostAnswer(kind) => failed(kind),
            Gate::HoldAnswer => {
                door.leave(Gate::HoldAnswer).await;
                answer
            }
            _ => answer,
        }
    }

    fn door(&self, method: M) -> &Door {
        &self.doors[method.index()]
    }
}

#[derive(Debug)]
struct Door {
    gate: watch::Sender<Gate>,
    calls: AtomicU64,
    /// Calls that stand at the gate.
    stopped: watch::Sender<usize>,
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
    async fn leave(&self, closed: Gate) -> Gate {
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
struct Standing<'a>(&'a Door);

impl<'a> Standing<'a> {
    fn at(door: &'a Door) -> Self {
        door.stopped.send_modify(|stopped| *stopped += 1);
        Self(door)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.stopped.send_modify(|stopped| *stopped -= 1);
    }
}
