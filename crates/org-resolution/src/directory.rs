//! The port to the database of organisations.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::org::{OrgContext, OrgId, Slug};

/// Where organisations come from. Object safe; you implement it on your database.
///
/// Answers what was asked for: an organisation with another slug, id or host than the one in question is not served.
///
/// # Errors
/// All methods: [`DirectoryError`] when the database cannot answer. "There is no such organisation" is
/// `Ok(None)`, not an error.
///
/// # Cancel safety
/// Calls only read, and may be dropped at any time.
#[async_trait]
pub trait OrgDirectory: fmt::Debug + Send + Sync {
    /// The organisation with this slug, whatever its status.
    async fn org_by_slug(&self, slug: &Slug) -> Result<Option<OrgContext>, DirectoryError>;

    /// The organisation with this id, whatever its status.
    async fn org_by_id(&self, id: &OrgId) -> Result<Option<OrgContext>, DirectoryError>;

    /// The organisation with this host of its own; the host is in lower case, without port or final dot.
    async fn org_by_domain(&self, domain: &str) -> Result<Option<OrgContext>, DirectoryError>;
}

/// The database could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the organisation directory failed: {source}")]
pub struct DirectoryError {
    /// What the database said; for the log, never for a client.
    pub source: Arc<dyn std::error::Error + Send + Sync>,
}

impl DirectoryError {
    /// Wraps the database's own error.
    pub fn new(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Arc::new(source) }
    }
}
