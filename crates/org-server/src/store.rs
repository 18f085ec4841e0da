//! The database: organisations, tokens, and a few facts of the server's own.
//!
//! | you look for | module |
//! |---|---|
//! | opening, limits, deadlines | here |
//! | organisations | [`orgs`] |
//! | tokens, as digests | [`tokens`] |
//! | what caches must still be made to forget | [`changes`] |
//! | secrets as a whole, for another master key | [`seals`] |
//! | the record that proves the master key | [`facts`] |
//! | what can go wrong | [`error`] |
//!
//! The store never sees a secret: what is sealed comes sealed, tokens come as digests. Every call has a
//! deadline, waiting for a connection included. SQLite is the only kind so far; SQL and types keep to what
//! PostgreSQL has too.

pub mod changes;
pub mod error;
pub mod facts;
pub mod orgs;
pub mod seals;
pub mod tokens;

use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub use changes::{Backlog, ChangeId, Names, Recorded};
pub use error::StoreError;
pub use orgs::{OrgRow, OrgWrite, SealedSecrets};
pub use seals::{Resealed, SealedRow};
pub use tokens::TokenRow;

/// How the database is used: plain data with reasoned defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorePolicy {
    /// The longest a call may take, waiting for a connection included. Default 2 s: a request that waits
    /// longer is better answered "try again".
    pub deadline: Duration,
    /// The longest a call that touches many records may take: migrations, imports. Default 30 s.
    pub bulk_deadline: Duration,
    /// Open connections. Default 8: SQLite has one writer at a time, so more only helps readers.
    pub connections: u32,
}

impl Default for StorePolicy {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(2), bulk_deadline: Duration::from_secs(30), connections: 8 }
    }
}

/// The database. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    policy: StorePolicy,
}

impl Store {
    /// Opens the database that a URL such as `sqlite://data/orgs.db?mode=rwc` names, makes the folder of a
    /// file that may be created, and brings the tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Url`] when the URL is not understood or names a kind that is not built in;
    /// [`StoreError::Unavailable`] when the file cannot be opened; [`StoreError::Migration`] when its tables
    /// are not of this program. None shows the URL's credentials.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened; a migration is applied as a whole or not.
    pub async fn open(url: &str, policy: StorePolicy) -> Result<Self, StoreError> {
        let options = connect_options(url, policy)?;
        if url.contains("mode=rwc") {
            make_folder(options.get_filename()).await?;
        }
        let pool = SqlitePoolOptions::new().acquire_timeout(policy.deadline);
        // A database in memory is that of one connection, and ends with it.
        let pool = match url.contains(":memory:") || url.contains("mode=memory") {
            true => pool.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None),
            false => pool.max_connections(policy.connections.max(1)),
        };
        let pool = pool.connect_lazy_with(options);
        let store = Self { pool, policy };
        store.bulk("open", store.migrated()).await?;
        Ok(store)
    }

    /// Brings the tables up to date, one server after the other: of several that start at once on a new database the
    /// first makes the tables, and the others find them.
    async fn migrated(&self) -> Result<(), StoreError> {
        loop {
            match self.migrate().await {
                // Another server makes the file, or changes its tables. The caller's deadline bounds this.
                Err(error) if error.is_busy() => tokio::time::sleep(BUSY).await,
                done => return done,
            }
        }
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        // The write lock, taken before it is looked which tables there are: SQLite has no lock for migrations.
        let mut write = self.write().await?;
        let failed = |source| StoreError::Migration { source };
        MIGRATIONS.run(&mut *write).await.map_err(failed)?;
        Ok(write.commit().await?)
    }

    /// Asks the database for a sign of life and says how long the answer took.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        let started = Instant::now();
        // A table, not a constant: a file that was truncated or replaced is noticed.
        let query = sqlx::query("SELECT name FROM facts LIMIT 1").fetch_optional(&self.pool);
        self.limited("ping", async { Ok(query.await?) }).await?;
        Ok(started.elapsed())
    }

    /// Closes the connections, after what runs on them; later calls fail.
    ///
    /// # Cancel safety
    /// Safe; the closing goes on with the next call.
    pub async fn close(&self) {
        // A connection that does not come back in time is left to the end of the process.
        let _ = tokio::time::timeout(self.policy.deadline, self.pool.close()).await;
    }

    async fn limited<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        within(operation, self.policy.deadline, work).await
    }

    async fn bulk<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        within(operation, self.policy.bulk_deadline, work).await
    }

    /// A transaction that has the write lock from its first statement: two writers queue, and neither finds
    /// out at its end that it read too early.
    async fn write(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Pause before a database is asked again that another server is just making.
const BUSY: Duration = Duration::from_millis(20);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

async fn within<T>(
    operation: &'static str,
    after: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(after, work).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Timeout { operation, after }),
    }
}

fn connect_options(url: &str, policy: StorePolicy) -> Result<SqliteConnectOptions, StoreError> {
    let scheme = url.split(':').next().unwrap_or_default();
    match scheme {
        "sqlite" => {}
        "postgres" | "postgresql" => {
            return Err(StoreError::Url {
                reason: "PostgreSQL is not supported yet: use sqlite://…".into()
            });
        }
        _ => {
            let reason = "it does not begin with sqlite://, the only kind supported now";
            return Err(StoreError::Url { reason: reason.into() });
        }
    }
    // What the driver says is left out: it repeats parts of the URL.
    let options = SqliteConnectOptions::from_str(url).map_err(|_| StoreError::Url {
        reason: "it is not understood: expected sqlite://FILE?mode=rwc, or another mode that SQLite has"
            .into(),
    })?;
    Ok(options
        .journal_mode(SqliteJournalMode::Wal)
        // With a write-ahead log this loses no committed data when the process dies.
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(policy.deadline))
}

async fn make_folder(file: &std::path::Path) -> Result<(), StoreError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Some(folder) = folder else { return Ok(()) };
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|source| StoreError::Folder { folder: folder.to_owned(), source })
}

/// This machine's wall clock in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
