//! Presence: who is connected to a tenant now.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{BackendError, KeyError, TenantId, UserId};

/// The connections of each tenant, each with a life of its own. Object safe.
///
/// No member is listed or counted later than [`ttl`](PresenceOptions::ttl) after its last join or accepted heartbeat,
/// by the clock of the store that all instances share; and one member's join or heartbeat never prolongs another.
///
/// # Errors
/// All methods that take one: [`PresenceError::InvalidConnection`] before anything is sent. All methods:
/// [`PresenceError::Backend`] when the store cannot be asked. A store that is away is never replaced by what this
/// process knows.
///
/// # Cancel safety
/// All methods: a dropped call may have taken effect, and leaves nothing else behind.
#[async_trait]
pub trait Presence: fmt::Debug + Send + Sync {
    /// Adds a connection, or replaces what is known of it, for one TTL.
    ///
    /// # Errors
    /// [`PresenceError::Full`] when it is not there, and as many are as may be.
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError>;

    /// Gives a connection another TTL; `false` when it is not known (any more): then nothing changes, and it must
    /// join again.
    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError>;

    /// Removes a connection; `false` when it was not there, or had ended. Idempotent, so a remote store may be asked
    /// twice when an answer was lost: then it is `false` for what this call itself removed.
    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError>;

    /// All living connections of a tenant, in the order of their ids' bytes. Who is there all the while is in it,
    /// once; who comes or goes meanwhile may be. Complexity: linear in their number.
    async fn list(&self, tenant: &TenantId) -> Result<Vec<Present>, PresenceError>;

    /// How many living connections a tenant has.
    async fn count(&self, tenant: &TenantId) -> Result<u64, PresenceError>;
}

/// How long a member lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceOptions {
    /// Life after a join or heartbeat. Default 120 s: a client that beats every 30 s may miss three.
    pub ttl: Duration,
}

impl Default for PresenceOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(120) }
    }
}

impl PresenceOptions {
    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// What is known of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Whose connection it is.
    pub user_id: UserId,
    /// When it was made, in milliseconds since 1970.
    pub connected_at: u64,
}

/// A living connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// Its id.
    pub connection: Arc<str>,
    /// What is known of it.
    #[serde(flatten)]
    pub member: Member,
}

/// Why presence could not be told.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The connection id is not acceptable; the rules are those of keys.
    #[error("invalid connection id: {0}")]
    InvalidConnection(#[from] KeyError),
    /// As many members are there as may be: of all tenants in process, of this tenant in a shared store.
    #[error("no more than {limit} members are kept")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The store behind presence failed.
    #[error("presence backend error: {0}")]
    Backend(#[from] BackendError),
}
