//! Locks: one holder per key, with a fencing token.
//!
//! # What it is and what it is not
//! Mutual exclusion while the store answers and clocks run. A holder that was paused past its TTL does not
//! know yet that it lost the lock, and after a failover two holders are possible for a moment. Hence the
//! [`FencingToken`]: the resource that the lock protects must refuse a write with a lower token than it has
//! seen (`UPDATE … SET fence = $f WHERE id = $1 AND fence <= $f`; no row changed = you lost). See Kleppmann,
//! *How to do distributed locking* (2016); Gray and Cheriton, *Leases* (SOSP 1989).

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::{BackendError, KeyError};

/// Exclusive locks by key. Object safe.
#[async_trait]
pub trait Locks: fmt::Debug + Send + Sync {
    /// Waits for the lock and takes it. Waiters are served in the order of their arrival and woken by the
    /// release, not by polling.
    ///
    /// # Errors
    /// [`LockError::Timeout`] after `options.wait`; [`LockError::InvalidKey`]; [`LockError::InvalidOptions`];
    /// [`LockError::Backend`] when the store cannot be asked. A lock never falls back to a weaker one.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in the queue up, and the lock too if it had just been taken.
    async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError>;

    /// Takes the lock if it is free and nobody waits for it; `None` otherwise. Does not wait.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), but never [`LockError::Timeout`].
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    async fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, LockError>;
}

/// How a lock is held and waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockOptions {
    /// How long the lock outlives a holder that no longer renews it. Renewed while held. Default 30 s.
    pub ttl: Duration,
    /// How long to wait for it. Default 10 s.
    pub wait: Duration,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30), wait: Duration::from_secs(10) }
    }
}

impl LockOptions {
    /// The shortest TTL a backend accepts: below it a renewal could not be on time.
    pub const MIN_TTL: Duration = Duration::from_millis(50);

    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets [`wait`](Self::wait).
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Checks the options; for backends.
    ///
    /// # Errors
    /// [`LockError::InvalidOptions`] when the TTL is under [`LockOptions::MIN_TTL`].
    pub fn validate(&self) -> Result<(), LockError> {
        if self.ttl < Self::MIN_TTL {
            return Err(LockError::InvalidOptions { reason: "the TTL is under 50 ms" });
        }
        Ok(())
    }
}

/// A number that only grows per key, one for each time the lock was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lock that is held, as a backend implements it.
///
/// Dropping it releases the lock in the background.
#[async_trait]
pub trait HeldLock: fmt::Debug + Send + Sync {
    /// The key it was taken for.
    fn key(&self) -> &str;

    /// The token of this holding.
    fn fence(&self) -> FencingToken;

    /// Completes when the lock is lost: it could not be renewed in time, or another holds it. Cancel safe.
    async fn lost(&self);

    /// Releases the lock and says how that went.
    async fn release(self: Box<Self>) -> Result<(), LockError>;
}

/// Holds a lock until it is released or dropped.
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct LockGuard(Box<dyn HeldLock>);

impl LockGuard {
    /// Wraps a backend's own lock.
    pub fn new(held: impl HeldLock + 'static) -> Self {
        Self(Box::new(held))
    }

    /// The key it was taken for.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key()
    }

    /// The token to send with every write the lock protects.
    #[must_use]
    pub fn fence(&self) -> FencingToken {
        self.0.fence()
    }

    /// Completes when the lock is lost, and never while it is held. Cancel safe.
    pub async fn lost(&self) {
        self.0.lost().await;
    }

    /// Releases the lock, and waits until the store has said so.
    ///
    /// # Errors
    /// [`LockError::Lost`] when it was not ours any more; [`LockError::Backend`] when the store could not be
    /// told, in which case the lock ends by its TTL.
    ///
    /// # Cancel safety
    /// When dropped, the release goes on in the background.
    pub async fn release(self) -> Result<(), LockError> {
        self.0.release().await
    }
}

/// Work under a lock, on every [`Locks`] and on `dyn Locks`.
pub trait LocksExt: Locks {
    /// Runs `work` while holding the lock, with default [`LockOptions`], and answers what it answers.
    ///
    /// # Errors
    /// As [`Locks::acquire`]; [`LockError::Lost`] when the lock was lost before the work ended, and then the
    /// work was dropped. A release that fails is no error: the lock ends by its TTL.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and releases the lock.
    fn with_lock<F>(&self, key: &str, work: F) -> impl Future<Output = Result<F::Output, LockError>> + Send
    where
        F: Future<Output: Send> + Send,
    {
        async move { run_locked(self, key, &LockOptions::default(), work).await }
    }

    /// [`with_lock`](Self::with_lock) with options.
    ///
    /// # Errors
    /// As [`with_lock`](Self::with_lock).
    fn with_lock_options<F>(
        &self,
        key: &str,
        options: &LockOptions,
        work: F,
    ) -> impl Future<Output = Result<F::Output, LockError>> + Send
    where
        F: Future<Output: Send> + Send,
    {
        run_locked(self, key, options, work)
    }
}

impl<L: Locks + ?Sized> LocksExt for L {}

async fn run_locked<L: Locks + ?Sized, F: Future<Output: Send> + Send>(
    locks: &L,
    key: &str,
    options: &LockOptions,
    work: F,
) -> Result<F::Output, LockError> {
    let guard = locks.acquire(key, options).await?;
    let answer = tokio::select! {
        // The loss first: work that is ready in the same moment was not protected to its end.
        biased;
        () = guard.lost() => return Err(LockError::Lost),
        answer = work => answer,
    };
    let _ = guard.release().await;
    Ok(answer)
}

/// Why a lock was not taken, or not kept.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another held it all the time.
    #[error("the lock was not free within {waited:?}")]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// It was held, and is not any more.
    #[error("the lock was lost: it was not renewed in time, or another took it")]
    Lost,
    /// The key is not acceptable.
    #[error("invalid lock key: {0}")]
    InvalidKey(#[from] KeyError),
    /// The options cannot work.
    #[error("invalid lock options: {reason}")]
    InvalidOptions {
        /// Why.
        reason: &'static str,
    },
    /// The store behind the locks failed.
    #[error("lock backend error: {0}")]
    Backend(#[from] BackendError),
}
