//! Presence: who is connected to a tenant now.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{BackendError, KeyError, TenantId, UserId};

/// The connections of each tenant, each with a life of its own. Object safe.
///
/// No member is listed later than [`ttl`](PresenceOptions::ttl) after its last accepted heartbeat, and one
/// member's heartbeat never prolongs another.
///
/// # Errors
/// All methods: [`PresenceError::InvalidConnection`] before anything is sent; [`PresenceError::Backend`] when
/// the store cannot be asked.
///
/// # Cancel safety
/// All methods: a dropped call may have taken effect, and leaves nothing else behind.
#[async_trait]
pub trait Presence: fmt::Debug + Send + Sync {
    /// Adds a connection, or replaces what is known of it, for one TTL.
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError>;

    /// Gives a connection another TTL; `false` when it is not known (any more) and must join again.
    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError>;

    /// Removes a connection; `false` when it was not there. Idempotent.
    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError>;

    /// All living connections of a tenant, by connection id. Complexity: linear in their number.
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
    /// This process holds as many members as it may.
    #[error("no more than {limit} members are kept")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The store behind presence failed.
    #[error("presence backend error: {0}")]
    Backend(#[from] BackendError),
}
