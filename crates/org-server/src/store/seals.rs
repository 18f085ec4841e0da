//! Sealed secrets as a whole: under which keys they are, and putting others in their place.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::changes::{ChangeId, Names, record};
use super::orgs::{SealedSecrets, json};
use super::{Store, StoreError};

/// The sealed secrets of an organisation.
#[derive(Debug, Clone)]
pub struct SealedRow {
    /// Its id.
    pub id: String,
    /// Its slug.
    pub slug: String,
    /// Its secrets; `None` when what is stored is no list of sealed secrets.
    pub secrets: Option<SealedSecrets>,
    stored: String,
}

/// What [`Store::reseal`] did.
#[derive(Debug, Clone, Default)]
pub struct Resealed {
    /// The outbox row about it, and under what the changed organisations are cached; `None` when nothing was changed.
    pub change: Option<(ChangeId, Names)>,
    /// Ids of organisations whose secrets are no longer those that were read.
    pub changed_meanwhile: Vec<String>,
}

impl Store {
    /// Organisations with secrets after an id, in the order of ids: one that is renamed meanwhile is not passed over.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn sealed_page(&self, after: Option<&str>, limit: u32) -> Result<Vec<SealedRow>, StoreError> {
        let query = sqlx::query(
            "SELECT id, slug, secrets FROM organizations WHERE id > $1 AND secrets <> '{}' ORDER BY id LIMIT $2",
        )
        .bind(after.unwrap_or_default())
        .bind(limit);
        let rows = self.limited("list secrets", async { Ok(query.fetch_all(&self.pool).await?) }).await?;
        rows.iter().map(read).collect()
    }

    /// The sealed secrets of one organisation; `None` when it is gone.
    ///
    /// # Errors
    /// As [`sealed_page`](Self::sealed_page).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn sealed(&self, id: &str) -> Result<Option<SealedRow>, StoreError> {
        let query = sqlx::query("SELECT id, slug, secrets FROM organizations WHERE id = $1").bind(id);
        let row = self.limited("read secrets", async { Ok(query.fetch_optional(&self.pool).await?) }).await?;
        row.as_ref().map(read).transpose()
    }

    /// Puts these secrets in the place of those that were read, where they are still the same. An organisation that was
    /// removed meanwhile stays removed, and one whose secrets were changed keeps them.
    ///
    /// # Errors
    /// As [`sealed_page`](Self::sealed_page).
    ///
    /// # Cancel safety
    /// A dropped call may have taken effect.
    pub async fn reseal(&self, rows: &[(SealedRow, SealedSecrets)]) -> Result<Resealed, StoreError> {
        self.limited("seal secrets again", async {
            let (mut names, mut done) = (Names::default(), Resealed::default());
            let mut write = self.write().await?;
            for (row, secrets) in rows {
                let query = sqlx::query(
                    "UPDATE organizations SET secrets = $3 WHERE id = $1 AND secrets = $2 \
                     RETURNING slug, custom_domain",
                );
                let query = query.bind(&row.id).bind(&row.stored).bind(json(secrets));
                match query.fetch_optional(&mut *write).await? {
                    Some(now) => {
                        names.ids.insert(row.id.clone());
                        names.slugs.insert(now.try_get("slug")?);
                        names.domains.extend(now.try_get::<Option<String>, _>("custom_domain")?);
                    }
                    None => done.changed_meanwhile.push(row.id.clone()),
                }
            }
            if names.len() > 0 {
                done.change = Some((record(&mut write, &names).await?, names));
            }
            write.commit().await?;
            Ok(done)
        })
        .await
    }
}

fn read(row: &SqliteRow) -> Result<SealedRow, StoreError> {
    let stored: String = row.try_get("secrets")?;
    let secrets = serde_json::from_str(&stored).ok();
    Ok(SealedRow { id: row.try_get("id")?, slug: row.try_get("slug")?, secrets, stored })
}
