//! What the server remembers about itself, by name.

use sqlx::Row as _;

use super::{Store, StoreError};

impl Store {
    /// A fact, if it was ever stored.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT value FROM facts WHERE name = $1").bind(name);
        let row = self.limited("fact", async { Ok(query.fetch_optional(&self.pool).await?) }).await?;
        Ok(row.map(|row| row.try_get("value")).transpose()?)
    }

    /// Stores a fact unless one of this name is there, and says what is there now: of several servers that
    /// start at once on a new database, all go on with the first one's.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// A dropped call may have stored the fact.
    pub async fn fact_or_insert(&self, name: &str, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.limited("store a fact", async {
            sqlx::query("INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                .bind(name)
                .bind(value)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await?;
        self.fact(name).await?.ok_or(StoreError::Damaged { what: "fact" })
    }

    /// Stores a fact over what was there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// A dropped call may have stored the fact.
    pub async fn set_fact(&self, name: &str, value: &[u8]) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
        )
        .bind(name)
        .bind(value);
        self.limited("store a fact", async { Ok(query.execute(&self.pool).await.map(drop)?) }).await
    }
}
