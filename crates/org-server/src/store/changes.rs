//! The outbox: what caches must still be made to forget.
//!
//! A row is written in the transaction of the change that it is about, so that there is no change without one, and is
//! removed once all instances were notified. Any server may do that, also several at once: to forget twice does no harm.

use std::collections::BTreeSet;
use std::time::Duration;

use org_resolution::token::TokenDigest;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::{OrgRow, Store, StoreError, TokenRow, now_ms};

/// The number of a row of the outbox.
pub type ChangeId = i64;

/// A record that was changed or removed, and the row of the outbox that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded<T> {
    /// The record.
    pub row: T,
    /// The outbox row; [`settle`](Store::settle) it once the caches have forgotten.
    pub change: ChangeId,
}

/// Names under which something may be cached.
///
/// A row with a field that is not known here cannot be read: half of what it names would be forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// Slugs of organisations.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub slugs: BTreeSet<String>,
    /// Ids of organisations.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ids: BTreeSet<String>,
    /// Hosts of organisations.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub domains: BTreeSet<String>,
    /// Digests under which tokens are cached, in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tokens: BTreeSet<String>,
}

impl Names {
    /// Those of an organisation as it is or was.
    pub(super) fn of(rows: &[&OrgRow]) -> Self {
        let mut names = Self::default();
        rows.iter().for_each(|row| names.add(row));
        names
    }

    pub(super) fn add(&mut self, row: &OrgRow) {
        self.slugs.insert(row.slug.clone());
        self.ids.insert(row.id.clone());
        self.domains.extend(row.custom_domain.clone());
    }

    /// Those of a token, and of its organisation, whose tokens are of another generation without it.
    pub(super) fn of_token(row: &TokenRow, org: Option<&OrgRow>) -> Self {
        let mut names = Self::of(org.as_slice());
        let generation = org.map_or(0, |org| org.token_generation.cast_unsigned());
        names.tokens.insert(TokenDigest::from_bytes(row.cache_digest).under(generation).to_string());
        names
    }

    /// Adds those of another row.
    pub fn extend(&mut self, more: Self) {
        self.slugs.extend(more.slugs);
        self.ids.extend(more.ids);
        self.domains.extend(more.domains);
        self.tokens.extend(more.tokens);
    }

    pub(super) fn len(&self) -> usize {
        self.slugs.len() + self.ids.len() + self.domains.len() + self.tokens.len()
    }
}

/// How much of the outbox is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows to be propagated.
    pub pending: u64,
    /// The age of the oldest of them.
    pub oldest: Duration,
    /// Rows that could not be read.
    pub set_aside: u64,
}

impl Store {
    /// Rows of the outbox that are at least so old, the first ones first: their numbers and what they name, as text.
    /// One from the future, which a clock that was set back leaves, counts as old.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changes(&self, age: Duration, limit: u32) -> Result<Vec<(ChangeId, String)>, StoreError> {
        let now = now_ms();
        let query = sqlx::query(
            "SELECT id, names FROM changes WHERE set_aside = 0 AND (at <= $1 OR at > $2) ORDER BY id LIMIT $3",
        )
        .bind(now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
        .bind(now)
        .bind(limit);
        let rows = self.limited("read changes", async { Ok(query.fetch_all(&self.pool).await?) }).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("names")?))).collect()
    }

    /// Removes rows of the outbox: the caches of all instances have forgotten what they name. One that is gone already
    /// is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`]; the rows then stay, and are propagated again.
    ///
    /// # Cancel safety
    /// A dropped call removes all or none.
    pub async fn settle(&self, changes: &[ChangeId]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.limited("settle changes", async {
            let mut write = self.write().await?;
            for id in changes {
                sqlx::query("DELETE FROM changes WHERE id = $1").bind(id).execute(&mut *write).await?;
            }
            Ok(write.commit().await?)
        })
        .await
    }

    /// Sets a row aside that cannot be read: it is kept for a human, and not looked at again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// A dropped call may have taken effect.
    pub async fn set_aside(&self, change: ChangeId) -> Result<(), StoreError> {
        let query = sqlx::query("UPDATE changes SET set_aside = 1 WHERE id = $1").bind(change);
        self.limited("set a change aside", async { Ok(query.execute(&self.pool).await.map(drop)?) }).await
    }

    /// How much of the outbox is left.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn backlog(&self) -> Result<Backlog, StoreError> {
        let query = sqlx::query(
            "SELECT COUNT(*) AS rows, COALESCE(SUM(set_aside), 0) AS aside, \
             MIN(CASE WHEN set_aside = 0 THEN at END) AS oldest FROM changes",
        );
        let row = self.limited("count changes", async { Ok(query.fetch_one(&self.pool).await?) }).await?;
        let (rows, aside): (i64, i64) = (row.try_get("rows")?, row.try_get("aside")?);
        let oldest: Option<i64> = row.try_get("oldest")?;
        let age = oldest.map_or(0, |at| now_ms().saturating_sub(at));
        Ok(Backlog {
            pending: u64::try_from(rows - aside).unwrap_or(0),
            oldest: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
            set_aside: u64::try_from(aside).unwrap_or(0),
        })
    }
}

/// Writes a row, in the transaction of the change that it is about.
pub(super) async fn record(connection: &mut SqliteConnection, names: &Names) -> Result<ChangeId, StoreError> {
    let names = serde_json::to_string(names).expect("lists of texts have a JSON form");
    let row = sqlx::query("INSERT INTO changes (at, names) VALUES ($1, $2) RETURNING id")
        .bind(now_ms())
        .bind(names)
        .fetch_one(connection)
        .await?;
    Ok(row.try_get("id")?)
}
