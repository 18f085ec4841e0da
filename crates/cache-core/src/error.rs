//! What can go wrong, by kind.
//!
//! Errors are `Clone` (sources are shared), because one failed load answers many waiters. No message
//! carries a value, a secret or the credentials of a URL.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::CodecError;

/// A source that several holders of one error share.
pub type SharedSource = Arc<dyn Error + Send + Sync + 'static>;

/// The error of every cache operation.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A value could not be encoded, or stored bytes are not a value of the type asked for.
    #[error("Cache serialization error: {0}")]
    Serialization(#[from] CodecError),
    /// The store behind the cache answered with an error, or could not be reached.
    #[error("Cache backend error: {0}")]
    Backend(#[from] BackendError),
    /// The key (or prefix) is not acceptable; nothing was sent anywhere.
    #[error("invalid cache key: {0}")]
    InvalidKey(#[from] KeyError),
    /// The encoded value is larger than the service accepts; nothing was stored.
    #[error("value of {size} bytes is over the limit of {limit} bytes")]
    ValueTooLarge {
        /// Encoded size in bytes.
        size: usize,
        /// The service's `max_value_bytes`.
        limit: usize,
    },
    /// No answer within the deadline. The operation may still take effect on the server.
    #[error("{operation} did not answer within {after:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// The call needs a tenant and runs in no request context. It never falls back to a shared scope.
    #[error("cache domain `{domain}` is scoped to a tenant, and no tenant is in the request context")]
    NoTenant {
        /// The domain that was asked.
        domain: Cow<'static, str>,
    },
    /// The call is scoped to a user and the request context has none.
    #[error("cache domain `{domain}` is scoped to a user, and no user is in the request context")]
    NoUser {
        /// The domain that was asked.
        domain: Cow<'static, str>,
    },
    /// The loader of a read-through cache failed; the error is that of the load, shared by its callers.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A cache or service was defined in a way that cannot work.
    #[error("invalid configuration of {what}: {reason}")]
    Configuration {
        /// The setting or domain.
        what: Cow<'static, str>,
        /// Why it cannot work.
        reason: Cow<'static, str>,
    },
}

impl CacheError {
    /// Shorthand for [`CacheError::Configuration`].
    pub fn configuration(what: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Configuration { what: what.into(), reason: reason.into() }
    }

    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Backend(error) => error.kind.is_transient(),
            Self::Load(error) => !matches!(
                error,
                LoadError::Reentrant { .. }
                    | LoadError::NoRuntime { .. }
                    | LoadError::ShutDown { .. }
                    | LoadError::Tags { .. }
            ),
            _ => false,
        }
    }
}

/// The kinds of failure a store can have, as a caller must tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// Not reachable: refused, reset, unresolved, closed.
    Unavailable,
    /// The circuit breaker is open: the store was not even asked.
    CircuitOpen,
    /// The store is starting, failing over or has lost its quorum.
    NotReady,
    /// A write went to a replica or a demoted master.
    ReadOnly,
    /// The store refuses writes because its memory is full.
    OutOfMemory,
    /// Credentials or access rights are not sufficient.
    Denied,
    /// The key holds something that is not a value of this cache.
    WrongType,
    /// The answer was not understood.
    Protocol,
    /// This backend cannot do that at all.
    Unsupported,
    /// Too many operations wait for a connection.
    Overloaded,
    /// The service was shut down.
    Closed,
    /// Anything else the store answered.
    Other,
}

impl BackendErrorKind {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub fn is_transient(self) -> bool {
        !matches!(self, Self::Denied | Self::WrongType | Self::Unsupported | Self::Closed)
    }

    /// A short stable name for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::CircuitOpen => "circuit_open",
            Self::NotReady => "not_ready",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::Denied => "denied",
            Self::WrongType => "wrong_type",
            Self::Protocol => "protocol",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }
}

/// A failure of the store behind a contract.
#[derive(Debug, Clone)]
pub struct BackendError {
    /// What kind of failure.
    pub kind: BackendErrorKind,
    /// The operation that failed, e.g. `get`.
    pub operation: &'static str,
    /// What else helps to find the cause; never a value or a credential.
    pub detail: Cow<'static, str>,
    source: Option<SharedSource>,
}

impl BackendError {
    /// A failure of `operation` with its cause in words.
    pub fn new(
        kind: BackendErrorKind,
        operation: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { kind, operation, detail: detail.into(), source: None }
    }

    /// Keeps the error that caused this one. Its text must be free of values and credentials.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed ({})", self.operation, self.kind.as_str())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Why a key or prefix is refused. The key itself is not repeated: it may hold user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing is not a key, and an empty prefix would mean "everything".
    #[error("it is empty")]
    Empty,
    /// Longer than [`MAX_KEY_BYTES`](crate::key::MAX_KEY_BYTES).
    #[error("it has {bytes} bytes, more than the {limit} allowed")]
    TooLong {
        /// Length in bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A control character (C0, DEL or C1).
    #[error("it has a control character at byte {at}")]
    ControlCharacter {
        /// Byte offset.
        at: usize,
    },
    /// A key of what a service keeps beside the cache: a lock, a limit, the number of a group.
    #[error("it begins with `{root}:`, which is reserved")]
    Reserved {
        /// What it begins with.
        root: &'static str,
    },
}

/// How a load of a read-through cache failed. Loader errors are never cached.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The loader answered with an error.
    #[error("loading for cache domain `{domain}` failed: {source}")]
    Failed {
        /// The domain whose loader failed.
        domain: Arc<str>,
        /// The loader's own error, shared by all its waiters.
        source: SharedSource,
    },
    /// The loader panicked, or another function that the cache was given: its fallback, life, tags, codec or hooks, or
    /// the text form of a key. Nothing is poisoned.
    #[error("the loader of cache domain `{domain}`, or another function it was defined with, panicked")]
    Panicked {
        /// The domain whose function panicked.
        domain: Arc<str>,
    },
    /// The loader did not end within its deadline.
    #[error("the loader of cache domain `{domain}` did not end within {after:?}")]
    TimedOut {
        /// The domain whose loader was slow.
        domain: Arc<str>,
        /// The deadline that passed.
        after: Duration,
    },
    /// The loader asked, itself or through other loads, for what waits for its own result.
    #[error("the loader of cache domain `{domain}` asked for the key it is loading")]
    Reentrant {
        /// The domain whose loader would wait for itself.
        domain: Arc<str>,
    },
    /// There is no Tokio runtime here: loads run in tasks of one. Nothing was asked for.
    #[error("a load for cache domain `{domain}` needs a Tokio runtime, and none is running here")]
    NoRuntime {
        /// The domain that was asked.
        domain: Arc<str>,
    },
    /// The caches of the process were shut down.
    #[error("the load for cache domain `{domain}` was ended: the caches are shut down")]
    ShutDown {
        /// The domain whose load was ended.
        domain: Arc<str>,
    },
    /// The loader named groups that its answer cannot belong to: it would have to be stored without them.
    #[error("the loader of cache domain `{domain}` named tags that cannot be: {reason}")]
    Tags {
        /// The domain whose loader it is.
        domain: Arc<str>,
        /// What is wrong with them. No tag is repeated: it may hold user data.
        reason: Cow<'static, str>,
    },
}
