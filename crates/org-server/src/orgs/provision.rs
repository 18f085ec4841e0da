//! Creating, changing, renaming and removing organisations, coherently.
//!
//! Caches are made to forget before the commit and after it (K3). The one after it is what coherence rests on;
//! the one before it makes readers of a server that dies in between load anew a little earlier.

use std::time::Duration;

use cache_core::CacheError;
use http::StatusCode;
use org_resolution::resolver::ORG_TTL;
use org_resolution::{OrgContext, OrgId, Problem, Slug};
use secrecy::ExposeSecret;

use crate::draft::OrgDraft;
use crate::import::{self, ImportError, Position, Record};
use crate::orgs::{Orgs, context, org_id};
use crate::store::orgs::new_token_generation;
use crate::store::{ChangeId, OrgRow, SealedSecrets, StoreError, now_ms};

/// The longest that a server which could not be notified goes on with what was changed: the life of what it cached.
pub const UNNOTIFIED_BOUND: Duration = ORG_TTL;

/// How many organisations one call makes the caches forget.
const FORGET_AT_ONCE: usize = 256;

/// What a change did.
#[derive(Debug)]
pub struct Changed {
    /// The organisation as it is now; as it was, when it was removed.
    pub org: OrgContext,
    /// Whether it is new.
    pub is_new: bool,
    /// Whether every server was notified. If not, they are as soon as any server reaches them, and until then go on with
    /// what they have cached, for at most [`UNNOTIFIED_BOUND`].
    pub told: bool,
}

impl Orgs {
    /// Creates or changes an organisation.
    ///
    /// # Errors
    /// `invalid_body`, `conflict`, `store_unavailable`.
    ///
    /// # Cancel safety
    /// Not safe between the commit and the caches: run it to its end.
    pub async fn put(&self, slug: &Slug, draft: OrgDraft) -> Result<Changed, Problem> {
        let before = self.0.store.org_by_slug(slug.as_str()).await?;
        check(&draft, before.is_none())?;
        let intended = context(self.merge(before.as_ref(), None, slug, &draft)?)?;
        let mut states = vec![intended];
        states.extend(before.map(context).transpose()?);
        // The record may have changed since it was read: what counts is what the transaction finds.
        let commit = self.0.store.put_org(slug.as_str(), |before| {
            check(&draft, before.is_none())?;
            Ok::<_, Problem>(self.merge(before, None, slug, &draft)?)
        });
        let commit = async {
            // Boxed: the statements of a transaction are a large future.
            let written = Box::pin(commit).await?;
            let both = (context(written.row)?, written.before.map(context).transpose()?);
            Ok((both, written.change))
        };
        let ((org, before), told) = self
            .around(states, commit, |(org, before)| before.iter().chain([org]).cloned().collect())
            .await?;
        Ok(Changed { org, is_new: before.is_none(), told })
    }

    /// Gives an organisation another slug.
    ///
    /// # Errors
    /// `org_not_found`, `slug_taken`, `store_unavailable`.
    ///
    /// # Cancel safety
    /// As [`put`](Self::put).
    pub async fn rename(&self, slug: &Slug, to: &Slug) -> Result<Changed, Problem> {
        let before = self.0.store.org_by_slug(slug.as_str()).await?.ok_or_else(Problem::org_not_found)?;
        let before = context(before)?;
        let intended = OrgContext { slug: to.clone(), ..before.clone() };
        let commit = async {
            let renamed = self.0.store.rename_org(slug.as_str(), to.as_str()).await?;
            let renamed = renamed.ok_or_else(Problem::org_not_found)?;
            Ok((context(renamed.row)?, renamed.change))
        };
        let (org, told) = self.around(vec![before, intended], commit, |org| vec![org.clone()]).await?;
        Ok(Changed { org, is_new: false, told })
    }

    /// Removes an organisation with its tokens.
    ///
    /// # Errors
    /// `org_not_found`, `store_unavailable`.
    ///
    /// # Cancel safety
    /// As [`put`](Self::put).
    pub async fn remove(&self, slug: &Slug) -> Result<Changed, Problem> {
        let before = self.0.store.org_by_slug(slug.as_str()).await?.ok_or_else(Problem::org_not_found)?;
        let commit = async {
            let removed = self.0.store.delete_org(slug.as_str()).await?;
            let removed = removed.ok_or_else(Problem::org_not_found)?;
            Ok((context(removed.row)?, removed.change))
        };
        let (org, told) = self.around(vec![context(before)?], commit, |org| vec![org.clone()]).await?;
        Ok(Changed { org, is_new: false, told })
    }

    /// The organisations after a slug, in their order, whatever their status.
    ///
    /// # Errors
    /// `store_unavailable`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn page(&self, after: Option<&str>, limit: u32) -> Result<Vec<OrgContext>, Problem> {
        let rows = self.0.store.org_page(after, limit).await?;
        Ok(rows.into_iter().map(context).collect::<Result<_, _>>()?)
    }

    /// Stores the organisations of a JSON text, all or none, and says how many. One that is there by slug is
    /// changed as [`put`](Self::put) would.
    ///
    /// # Errors
    /// [`ImportError`], with positions.
    ///
    /// # Cancel safety
    /// A dropped call has stored all or none; in the first case caches may not have been told.
    pub async fn import(&self, text: &str) -> Result<usize, ImportError> {
        self.import_over(text, true).await
    }

    /// As [`import`](Self::import); organisations that are there by slug stay as they are. For the sample: another
    /// server may have imported it a moment ago, and an operator changed it.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn import_new(&self, text: &str) -> Result<usize, ImportError> {
        self.import_over(text, false).await
    }

    async fn import_over(&self, text: &str, replaces: bool) -> Result<usize, ImportError> {
        let records = import::parse(text)?;
        let mut states = Vec::new();
        let slugs = records.iter().map(|(_, record)| record.slug.as_str());
        // What counts is what the transaction finds: an organisation may have changed since the file was written.
        let change = |at: usize, before: Option<&OrgRow>| {
            let Record { id, slug, draft } = &records[at].1;
            if let Some(before) = before.filter(|_| !replaces) {
                return Ok(before.clone());
            }
            let row = self.merge(before, id.as_deref(), slug, draft)?;
            states.extend(before.cloned().map(context).transpose()?);
            states.push(context(row.clone())?);
            Ok(row)
        };
        let imported = self.0.store.import_orgs(slugs, change).await;
        // Also when it failed: a commit whose answer was lost may have taken place.
        let mut forgotten = Ok(());
        for states in states.chunks(FORGET_AT_ONCE) {
            forgotten = forgotten.and(self.forget(states).await);
        }
        let changes = imported.as_ref().map_or(&[][..], Vec::as_slice);
        self.notified("imported organisations", forgotten, changes).await;
        imported.map_err(|(at, source)| {
            let position = records.get(at).map_or(Position { index: at, line: 0 }, |(position, _)| *position);
            ImportError::Store { position, source }
        })?;
        Ok(records.len())
    }

    /// What shall be stored: the draft over what is there. Secrets are sealed for the organisation's id.
    fn merge(
        &self,
        before: Option<&OrgRow>,
        id: Option<&str>,
        slug: &Slug,
        draft: &OrgDraft,
    ) -> Result<OrgRow, StoreError> {
        let mut row = before.cloned().unwrap_or_else(|| new_row(slug));
        if let Some(id) = id {
            row.id = id.to_owned();
        }
        let text = |slot: &mut String, new: &Option<String>| {
            if let Some(new) = new {
                slot.clone_from(new);
            }
        };
        text(&mut row.name, &draft.name);
        text(&mut row.plan, &draft.plan);
        text(&mut row.status, &draft.status);
        if let Some(settings) = &draft.settings {
            row.settings.clone_from(settings);
        }
        if let Some(domain) = &draft.custom_domain {
            row.custom_domain = Some(domain.clone()).filter(|domain| !domain.is_empty());
        }
        row.updated_at = now_ms();
        let id = org_id(&row)?;
        self.seal(&id, &mut row.secrets, draft);
        Ok(row)
    }

    fn seal(&self, id: &OrgId, secrets: &mut SealedSecrets, draft: &OrgDraft) {
        for (field, change) in &draft.secrets {
            match change {
                Some(secret) => {
                    secrets.insert(field.clone(), self.0.ring.seal(id, field, secret.expose_secret()));
                }
                None => {
                    secrets.remove(field);
                }
            }
        }
    }

    /// Runs a change between two invalidations. What it was and shall be is forgotten before the commit; after it
    /// also what the commit found and left (`found`), and all of it too when the commit failed, since one whose
    /// answer was lost may have taken place. Answers with the change whether every server was notified.
    async fn around<T>(
        &self,
        mut states: Vec<OrgContext>,
        commit: impl Future<Output = Result<(T, ChangeId), Problem>>,
        found: impl FnOnce(&T) -> Vec<OrgContext>,
    ) -> Result<(T, bool), Problem> {
        if let Err(error) = self.forget(&states).await {
            tracing::warn!(%error, "an organisation about to change was not forgotten everywhere");
        }
        let committed = commit.await;
        states.extend(committed.as_ref().map(|(done, _)| found(done)).unwrap_or_default());
        let forgotten = self.forget(&states).await;
        let change = committed.as_ref().map(|(_, change)| *change).ok();
        let told = self.notified("a changed organisation", forgotten, change.as_slice()).await;
        Ok((committed?.0, told))
    }

    pub(super) async fn forget(&self, states: &[OrgContext]) -> Result<(), CacheError> {
        let states: Vec<&OrgContext> = states.iter().collect();
        // Boxed: three invalidations at once are a large future, held by every change twice.
        Box::pin(self.0.resolver.forget(&states)).await
    }
}

fn check(draft: &OrgDraft, is_new: bool) -> Result<(), Problem> {
    let problems = draft.problems(is_new);
    if problems.is_empty() { Ok(()) } else { Err(Problem::invalid_body(problems)) }
}

fn new_row(slug: &Slug) -> OrgRow {
    let now = now_ms();
    OrgRow {
        id: uuid::Uuid::new_v4().to_string(),
        slug: slug.to_string(),
        name: String::new(),
        plan: "free".to_owned(),
        status: "active".to_owned(),
        settings: serde_json::Map::new(),
        secrets: SealedSecrets::new(),
        custom_domain: None,
        token_generation: new_token_generation(),
        created_at: now,
        updated_at: now,
    }
}

/// The slug of a path, checked before anything is looked up.
///
/// # Errors
/// `slug_reserved` for one nobody can have, `invalid_slug` for what is no slug.
pub fn slug(text: &str) -> Result<Slug, Problem> {
    text.parse().map_err(|error| match error {
        org_resolution::SlugError::Reserved => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "slug_reserved", "This slug is reserved.")
        }
        _ => Problem::invalid_slug(false),
    })
}
