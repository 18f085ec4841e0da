//! What can go wrong with the database.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use org_resolution::rejection::{Problem, RETRY_LATER};

/// The error of every store call. No message carries a value of a record or a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// `DATABASE_URL` cannot be used.
    #[error("the database URL cannot be used: {reason}")]
    Url {
        /// Why.
        reason: String,
    },
    /// The folder of the database file cannot be made.
    #[error("the folder {} cannot be made: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tables are not, and could not be made, what this program needs.
    #[error("the database's tables cannot be brought up to date: {source}")]
    Migration {
        /// What the migration said.
        source: sqlx::migrate::MigrateError,
    },
    /// The database cannot be reached, is locked, full or damaged.
    #[error("the database failed: {source}")]
    Unavailable {
        /// What the driver said.
        source: sqlx::Error,
    },
    /// No answer in time. A change may still take effect.
    #[error("the database did not end `{operation}` within {after:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// Another organisation has this slug, custom domain or id.
    #[error("another organisation has the same {what}")]
    Taken {
        /// `slug`, `custom_domain` or `id`.
        what: &'static str,
    },
    /// A record does not hold what it must.
    #[error("the database holds a damaged {what}")]
    Damaged {
        /// Which column.
        what: &'static str,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }
}

impl StoreError {
    /// Whether another writer has the database now.
    pub(super) fn is_busy(&self) -> bool {
        const BUSY: i64 = 5;
        let Self::Unavailable { source } = self else { return false };
        let code = source.as_database_error().and_then(|error| error.code()?.parse::<i64>().ok());
        // The low byte is the code, the others say more of it.
        code.is_some_and(|code| code & 0xff == BUSY)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        let taken = source.as_database_error().filter(|error| error.is_unique_violation());
        match taken.map(|error| taken_column(error.message())) {
            Some(what) => Self::Taken { what },
            None => Self::Unavailable { source },
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Taken { what: "slug" } => {
                Self::new(StatusCode::CONFLICT, "slug_taken", "Another organisation has this slug.")
            }
            StoreError::Taken { what } => {
                let detail = format!("Another organisation has the same `{what}`.");
                Self::new(StatusCode::CONFLICT, "conflict", detail)
            }
            error if error.is_transient() => {
                tracing::warn!(%error, "the database is away");
                Self::unavailable("The database is away.", RETRY_LATER)
            }
            error => {
                tracing::error!(%error, "the database failed");
                Self::internal()
            }
        }
    }
}

/// SQLite names the column in its message: `UNIQUE constraint failed: organizations.slug`.
fn taken_column(message: &str) -> &'static str {
    match message {
        message if message.contains("organizations.slug") => "slug",
        message if message.contains("organizations.custom_domain") => "custom_domain",
        _ => "id",
    }
}
