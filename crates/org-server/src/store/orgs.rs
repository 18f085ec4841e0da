//! Organisations as the database holds them.

use std::collections::BTreeMap;

use org_resolution::secret::Sealed;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::changes::{ChangeId, Names, Recorded, record};
use super::{Store, StoreError, now_ms};

/// The most organisations that [`Store::org_page`] answers at once.
pub const MAX_PAGE: u32 = 500;

/// Secrets by field name, each sealed by whoever holds the key. `Debug` shows lengths only.
pub type SealedSecrets = BTreeMap<String, Sealed>;

/// An organisation as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct OrgRow {
    /// Never changes, and names the organisation everywhere else.
    pub id: String,
    /// The name in hosts and paths; can change.
    pub slug: String,
    /// The name for humans.
    pub name: String,
    /// What it pays for.
    pub plan: String,
    /// Whether it may be used.
    pub status: String,
    /// What it has set up.
    pub settings: Map<String, Value>,
    /// Its secrets, sealed.
    pub secrets: SealedSecrets,
    /// A host of its own.
    pub custom_domain: Option<String>,
    /// Under which its validated tokens are cached. An update leaves it alone, [`Store::delete_token`] does not.
    pub token_generation: i64,
    /// When it was made, in milliseconds since 1970.
    pub created_at: i64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_at: i64,
}

/// A token generation that no organisation had before.
pub(crate) fn new_token_generation() -> i64 {
    rand::random::<i64>() & i64::MAX
}

/// What [`Store::put_org`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct OrgWrite {
    /// What is stored now.
    pub row: OrgRow,
    /// What was stored before; `None` when it is new.
    pub before: Option<OrgRow>,
    /// The outbox row about it.
    pub change: ChangeId,
}

/// How many names one row of the outbox holds at most, about: those of an import are spread over several.
const NAMES_PER_CHANGE: usize = 500;

/// All columns, in one place, as a macro so that the statements stay constants.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, slug, name, plan, status, settings, secrets, custom_domain, token_generation, \
             created_at, updated_at ",
            "FROM organizations ",
            $rest
        )
    };
}

impl Store {
    /// The organisation with a slug.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`], [`StoreError::Damaged`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn org_by_slug(&self, slug: &str) -> Result<Option<OrgRow>, StoreError> {
        self.org_by(select!("WHERE slug = $1"), slug).await
    }

    /// The organisation with an id. Errors and cancel safety as [`org_by_slug`](Self::org_by_slug).
    ///
    /// # Errors
    /// As there.
    pub async fn org_by_id(&self, id: &str) -> Result<Option<OrgRow>, StoreError> {
        self.org_by(select!("WHERE id = $1"), id).await
    }

    /// The organisation with a host of its own. Errors and cancel safety as
    /// [`org_by_slug`](Self::org_by_slug).
    ///
    /// # Errors
    /// As there.
    pub async fn org_by_domain(&self, domain: &str) -> Result<Option<OrgRow>, StoreError> {
        self.org_by(select!("WHERE custom_domain = $1"), domain).await
    }

    async fn org_by(&self, sql: &'static str, value: &str) -> Result<Option<OrgRow>, StoreError> {
        let query = sqlx::query(sql).bind(value);
        let row = self
            .limited("look an organisation up", async { Ok(query.fetch_optional(&self.pool).await?) })
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// The organisations after a slug in the order of slugs, at most `limit` and at most [`MAX_PAGE`].
    ///
    /// # Errors
    /// As [`org_by_slug`](Self::org_by_slug).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn org_page(&self, after: Option<&str>, limit: u32) -> Result<Vec<OrgRow>, StoreError> {
        let query = sqlx::query(select!("WHERE slug > $1 ORDER BY slug LIMIT $2"))
            .bind(after.unwrap_or_default())
            .bind(limit.min(MAX_PAGE));
        let rows =
            self.limited("list organisations", async { Ok(query.fetch_all(&self.pool).await?) }).await?;
        rows.iter().map(read).collect()
    }

    /// How many organisations there are.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn org_count(&self) -> Result<u64, StoreError> {
        let query = sqlx::query("SELECT COUNT(*) AS count FROM organizations");
        let row = self.limited("count", async { Ok(query.fetch_one(&self.pool).await?) }).await?;
        let count: i64 = row.try_get("count")?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Stores an organisation under its slug. One that is there keeps its id and creation time; `change`
    /// sees it (`None` when there is none) and answers what shall be stored.
    ///
    /// # Errors
    /// [`StoreError::Taken`]; [`StoreError::Unavailable`], [`StoreError::Timeout`], [`StoreError::Damaged`];
    /// what `change` answers. Nothing is changed then, except perhaps after a time-out.
    ///
    /// # Cancel safety
    /// A dropped call has changed the whole record or nothing.
    pub async fn put_org<E: From<StoreError>>(
        &self,
        slug: &str,
        change: impl FnOnce(Option<&OrgRow>) -> Result<OrgRow, E>,
    ) -> Result<OrgWrite, E> {
        let put = async {
            let mut write = self.write().await?;
            let before = fetch(&mut write, slug).await?;
            let mut row = match change(before.as_ref()) {
                Ok(row) => row,
                Err(error) => return Ok(Err(error)),
            };
            row.updated_at = now_ms();
            match &before {
                Some(_) => update(&mut write, &row).await?,
                None => insert(&mut write, &row).await?,
            }
            let both: Vec<&OrgRow> = before.iter().chain([&row]).collect();
            let change = record(&mut write, &Names::of(&both)).await?;
            write.commit().await?;
            Ok(Ok(OrgWrite { row, before, change }))
        };
        self.limited("store an organisation", put).await?
    }

    /// Gives an organisation another slug; `None` when there is none with the old one. Answers the record
    /// after the change.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when another has the new slug; as [`org_by_slug`](Self::org_by_slug).
    ///
    /// # Cancel safety
    /// A dropped call may have taken effect.
    pub async fn rename_org(&self, slug: &str, to: &str) -> Result<Option<Recorded<OrgRow>>, StoreError> {
        self.limited("rename an organisation", async {
            let mut write = self.write().await?;
            let renamed = sqlx::query("UPDATE organizations SET slug = $2, updated_at = $3 WHERE slug = $1")
                .bind(slug)
                .bind(to)
                .bind(now_ms())
                .execute(&mut *write)
                .await?;
            if renamed.rows_affected() == 0 {
                return Ok(None);
            }
            let Some(row) = fetch(&mut write, to).await? else { return Ok(None) };
            let mut names = Names::of(&[&row]);
            names.slugs.insert(slug.to_owned());
            let change = record(&mut write, &names).await?;
            write.commit().await?;
            Ok(Some(Recorded { row, change }))
        })
        .await
    }

    /// Removes an organisation with its tokens; answers what it was, or `None` when there was none.
    ///
    /// # Errors
    /// As [`org_by_slug`](Self::org_by_slug).
    ///
    /// # Cancel safety
    /// A dropped call may have taken effect.
    pub async fn delete_org(&self, slug: &str) -> Result<Option<Recorded<OrgRow>>, StoreError> {
        self.limited("remove an organisation", async {
            let mut write = self.write().await?;
            let Some(row) = fetch(&mut write, slug).await? else { return Ok(None) };
            sqlx::query("DELETE FROM organizations WHERE slug = $1").bind(slug).execute(&mut *write).await?;
            let change = record(&mut write, &Names::of(&[&row])).await?;
            write.commit().await?;
            Ok(Some(Recorded { row, change }))
        })
        .await
    }

    /// Stores an organisation under each of these slugs, all or none. For each `change` sees the slug's position and
    /// what is stored under it now, with the write lock held, and answers what shall be stored. Answers the outbox rows.
    ///
    /// # Errors
    /// The position and [`StoreError::Taken`] when an id or custom domain belongs to another slug, or what `change`
    /// answers; [`StoreError::Unavailable`] or [`StoreError::Timeout`] for the database as a whole.
    ///
    /// # Cancel safety
    /// A dropped call has stored all or none.
    pub async fn import_orgs<'a>(
        &self,
        slugs: impl Iterator<Item = &'a str>,
        mut change: impl FnMut(usize, Option<&OrgRow>) -> Result<OrgRow, StoreError>,
    ) -> Result<Vec<ChangeId>, (usize, StoreError)> {
        let mut at = 0;
        let imported = self
            .bulk("import", async {
                let mut write = self.write().await?;
                let (mut names, mut changes) = (Names::default(), Vec::new());
                for (position, slug) in slugs.enumerate() {
                    at = position;
                    let before = fetch(&mut write, slug).await?;
                    let row = change(position, before.as_ref())?;
                    import(&mut write, before.as_ref(), &row).await?;
                    if before.as_ref() != Some(&row) {
                        before.iter().chain([&row]).for_each(|row| names.add(row));
                    }
                    if names.len() >= NAMES_PER_CHANGE {
                        changes.push(record(&mut write, &std::mem::take(&mut names)).await?);
                    }
                }
                if names.len() > 0 {
                    changes.push(record(&mut write, &names).await?);
                }
                write.commit().await?;
                Ok(changes)
            })
            .await;
        imported.map_err(|error| (at, error))
    }
}

/// The organisation with an id, within a transaction.
pub(super) async fn org_by_id_in(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<OrgRow>, StoreError> {
    let row = sqlx::query(select!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.as_ref().map(read).transpose()
}

async fn fetch(connection: &mut SqliteConnection, slug: &str) -> Result<Option<OrgRow>, StoreError> {
    let row = sqlx::query(select!("WHERE slug = $1")).bind(slug).fetch_optional(connection).await?;
    row.as_ref().map(read).transpose()
}

async fn import(
    connection: &mut SqliteConnection,
    before: Option<&OrgRow>,
    row: &OrgRow,
) -> Result<(), StoreError> {
    match before {
        Some(before) if before.id != row.id => Err(StoreError::Taken { what: "slug" }),
        Some(_) => update(connection, row).await,
        None => insert(connection, row).await,
    }
}

async fn insert(connection: &mut SqliteConnection, row: &OrgRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO organizations \
         (id, slug, name, plan, status, settings, secrets, custom_domain, token_generation, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&row.id)
    .bind(&row.slug)
    .bind(&row.name)
    .bind(&row.plan)
    .bind(&row.status)
    .bind(json(&row.settings))
    .bind(json(&row.secrets))
    .bind(&row.custom_domain)
    .bind(row.token_generation)
    .bind(row.created_at)
    .bind(row.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(connection: &mut SqliteConnection, row: &OrgRow) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE organizations SET name = $2, plan = $3, status = $4, settings = $5, secrets = $6, \
         custom_domain = $7, updated_at = $8 WHERE slug = $1",
    )
    .bind(&row.slug)
    .bind(&row.name)
    .bind(&row.plan)
    .bind(&row.status)
    .bind(json(&row.settings))
    .bind(json(&row.secrets))
    .bind(&row.custom_domain)
    .bind(row.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

fn read(row: &SqliteRow) -> Result<OrgRow, StoreError> {
    let settings: String = row.try_get("settings")?;
    let secrets: String = row.try_get("secrets")?;
    Ok(OrgRow {
        id: row.try_get("id")?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        plan: row.try_get("plan")?,
        status: row.try_get("status")?,
        settings: serde_json::from_str(&settings).map_err(|_| StoreError::Damaged { what: "settings" })?,
        secrets: serde_json::from_str(&secrets).map_err(|_| StoreError::Damaged { what: "secrets" })?,
        custom_domain: row.try_get("custom_domain")?,
        token_generation: row.try_get("token_generation")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

pub(super) fn json(map: &impl Serialize) -> String {
    serde_json::to_string(map).expect("a map with text keys has a JSON form")
}
