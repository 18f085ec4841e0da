//! Tokens, known by their digest only.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::changes::{Names, Recorded, record};
use super::orgs::{new_token_generation, org_by_id_in};
use super::{Store, StoreError, now_ms};

/// A token of an organisation's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id, by which it is revoked.
    pub id: String,
    /// The organisation it belongs to.
    pub org_id: String,
    /// The user it acts for.
    pub user: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// SHA-256 of the token's text.
    pub digest: [u8; 32],
    /// Under what the token is cached, to make the caches forget it.
    pub cache_digest: [u8; 32],
    /// When it ends, in milliseconds since 1970.
    pub expires_at: i64,
}

impl Store {
    /// Stores a token's record, and removes those that ended a day ago or more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also when the organisation is gone; [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// A dropped call may have stored the record.
    pub async fn insert_token(&self, token: &TokenRow) -> Result<(), StoreError> {
        const DAY_MS: i64 = 24 * 60 * 60 * 1000;
        let now = now_ms();
        self.limited("store a token", async {
            let mut write = self.write().await?;
            sqlx::query("DELETE FROM tokens WHERE expires_at < $1")
                .bind(now - DAY_MS)
                .execute(&mut *write)
                .await?;
            sqlx::query(
                "INSERT INTO tokens (id, org_id, user_id, scopes, digest, cache_digest, created_at, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(&token.id)
            .bind(&token.org_id)
            .bind(&token.user)
            .bind(serde_json::Value::from(token.scopes.clone()).to_string())
            .bind(token.digest.as_slice())
            .bind(token.cache_digest.as_slice())
            .bind(now)
            .bind(token.expires_at)
            .execute(&mut *write)
            .await?;
            Ok(write.commit().await?)
        })
        .await
    }

    /// The record of a token, whether it has ended or not.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`], [`StoreError::Damaged`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn token_by_digest(&self, digest: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
        let query = sqlx::query(
            "SELECT id, org_id, user_id, scopes, digest, cache_digest, expires_at FROM tokens WHERE digest = $1",
        )
        .bind(digest.as_slice());
        let row =
            self.limited("look a token up", async { Ok(query.fetch_optional(&self.pool).await?) }).await?;
        row.as_ref().map(read).transpose()
    }

    /// The record of a token of an organisation by its id.
    ///
    /// # Errors
    /// As [`token_by_digest`](Self::token_by_digest).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn token(&self, org_id: &str, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let query = sqlx::query(
            "SELECT id, org_id, user_id, scopes, digest, cache_digest, expires_at FROM tokens \
             WHERE id = $1 AND org_id = $2",
        )
        .bind(id)
        .bind(org_id);
        let row =
            self.limited("look a token up", async { Ok(query.fetch_optional(&self.pool).await?) }).await?;
        row.as_ref().map(read).transpose()
    }

    /// Removes a token of an organisation, whose tokens are of a new generation then; answers what it was, or `None` when
    /// there was none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`], [`StoreError::Damaged`].
    ///
    /// # Cancel safety
    /// A dropped call may have removed it.
    pub async fn delete_token(
        &self,
        org_id: &str,
        id: &str,
    ) -> Result<Option<Recorded<TokenRow>>, StoreError> {
        self.limited("remove a token", async {
            let mut write = self.write().await?;
            let removed = sqlx::query(
                "DELETE FROM tokens WHERE id = $1 AND org_id = $2 \
                 RETURNING id, org_id, user_id, scopes, digest, cache_digest, expires_at",
            )
            .bind(id)
            .bind(org_id)
            .fetch_optional(&mut *write)
            .await?;
            let Some(row) = removed.as_ref().map(read).transpose()? else { return Ok(None) };
            // As it was: the generation under which its tokens are cached until it is forgotten.
            let org = org_by_id_in(&mut write, org_id).await?;
            sqlx::query("UPDATE organizations SET token_generation = $1 WHERE id = $2")
                .bind(new_token_generation())
                .bind(org_id)
                .execute(&mut *write)
                .await?;
            let change = record(&mut write, &Names::of_token(&row, org.as_ref())).await?;
            write.commit().await?;
            Ok(Some(Recorded { row, change }))
        })
        .await
    }
}

fn read(row: &SqliteRow) -> Result<TokenRow, StoreError> {
    let digest = |column| -> Result<[u8; 32], StoreError> {
        let bytes: Vec<u8> = row.try_get(column)?;
        bytes.try_into().map_err(|_| StoreError::Damaged { what: "token's digest" })
    };
    let scopes: String = row.try_get("scopes")?;
    Ok(TokenRow {
        id: row.try_get("id")?,
        org_id: row.try_get("org_id")?,
        user: row.try_get("user_id")?,
        scopes: serde_json::from_str(&scopes).map_err(|_| StoreError::Damaged { what: "token's scopes" })?,
        digest: digest("digest")?,
        cache_digest: digest("cache_digest")?,
        expires_at: row.try_get("expires_at")?,
    })
}
