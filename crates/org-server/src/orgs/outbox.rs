//! Propagating changes: what the outbox names is forgotten by every instance, whoever made the change and whatever became
//! of that server.
//!
//! The server that makes a change notifies the others after the commit, and removes the row when that succeeded. What it
//! leaves, because Redis did not answer or because it died, every server propagates: at its start, when an attempt
//! failed, and by a timer. To forget twice does no harm, so that several may do it at once.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache_core::CacheError;
use cache_core::key::{Owner, validate};
use metrics::{counter, gauge};
use org_resolution::token::TokenDigest;
use org_resolution::{OrgId, Slug};
use tenant_cache::Caches;
use tokio::sync::Notify;

use crate::orgs::{Orgs, OrgsError};
use crate::store::{ChangeId, Names};
use crate::telemetry::Seldom;

/// Between two looks into the outbox: so long may a change of a server that died be unknown while Redis answers.
const EVERY: Duration = Duration::from_secs(1);
/// The longest pause after attempts that failed.
const MAX_PAUSE: Duration = Duration::from_secs(3);
/// Younger rows are left to the server that wrote them, which is just notifying.
const GRACE: Duration = Duration::from_secs(1);
/// Rows at a time.
const BATCH: u32 = 100;
/// Between two attempts of a server that is stopping.
const STOPPING_PAUSE: Duration = Duration::from_millis(100);

/// What the tasks that make changes and the one that propagates share.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    failed: Notify,
    leaves: AtomicBool,
    waiting: Seldom,
}

/// What is forgotten, read from a row.
#[derive(Debug, Default)]
struct Forgotten {
    slugs: Vec<Slug>,
    ids: Vec<OrgId>,
    domains: Vec<String>,
    tokens: Vec<TokenDigest>,
}

impl Orgs {
    /// From now on changes are left in the outbox for the servers: for a command that shares no cache with them.
    pub fn leave_changes_to_servers(&self) {
        self.0.outbox.leaves.store(true, Ordering::Relaxed);
    }

    /// Ends a change: with `Ok` its rows are removed, otherwise they are propagated as soon as that works. Answers whether
    /// every instance was notified.
    pub(super) async fn notified(
        &self,
        what: &'static str,
        result: Result<(), CacheError>,
        changes: &[ChangeId],
    ) -> bool {
        if let Err(error) = &result {
            tracing::warn!(%error, what, "not every server could be notified; it is being repeated");
            self.0.outbox.failed.notify_one();
            return false;
        }
        if self.0.outbox.leaves.load(Ordering::Relaxed) {
            return true;
        }
        // A row that stays is propagated again, which does no harm.
        if let Err(error) = self.0.store.settle(changes).await {
            tracing::debug!(%error, what, "a change was propagated and is still noted as not");
        }
        true
    }

    /// Propagates what the outbox holds, until it is dropped.
    ///
    /// # Cancel safety
    /// Safe: what was not removed is propagated again.
    pub async fn propagate_always(&self) -> Infallible {
        // At the start everything: who wrote it may be gone.
        let (mut age, mut pause) = (Duration::ZERO, EVERY);
        loop {
            let result = self.propagate(age).await;
            self.measure().await;
            age = GRACE;
            match result {
                Ok(rows) if rows >= BATCH as usize => continue,
                Ok(_) => pause = EVERY,
                Err(error) => {
                    if let Some(unsaid) = self.0.outbox.waiting.may_say() {
                        tracing::warn!(%error, unsaid, "changes wait to be propagated");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.outbox.failed.notified() => age = Duration::ZERO,
            }
        }
    }

    /// Propagates the rest before the process ends, within a limit, and says how much is left for the other servers and
    /// the next start.
    ///
    /// # Cancel safety
    /// Safe; what is left stays in the outbox.
    pub async fn propagate_rest(&self, limit: Duration) {
        let bus = self.0.caches.bus();
        let unannounced = || bus.state().pending + self.0.caches.pending() as u64;
        let all = async {
            loop {
                match self.propagate(Duration::ZERO).await {
                    Ok(0) if unannounced() == 0 => return true,
                    Ok(0) | Err(OrgsError::Caches(_)) => tokio::time::sleep(STOPPING_PAUSE).await,
                    Ok(_) => {}
                    // Without the database nothing is known of the rest, and nothing of it is lost.
                    Err(_) => return false,
                }
            }
        };
        if tokio::time::timeout(limit, all).await.unwrap_or(false) {
            return;
        }
        let changes = self.0.store.backlog().await.map(|backlog| backlog.pending).ok();
        let unannounced = unannounced();
        tracing::warn!(
            ?changes,
            unannounced,
            "stopping with changes that not every server was notified of: they are propagated by other servers, or at \
             the next start"
        );
    }

    /// One batch; answers how many rows there were.
    async fn propagate(&self, age: Duration) -> Result<usize, OrgsError> {
        let rows = self.0.store.changes(age, BATCH).await?;
        let (mut forgotten, mut done) = (Forgotten::default(), Vec::new());
        for (change, names) in &rows {
            match Forgotten::read(names) {
                Some(more) => {
                    forgotten.extend(more);
                    done.push(*change);
                }
                None => self.set_aside(*change).await?,
            }
        }
        self.forget_all(forgotten).await?;
        self.0.store.settle(&done).await?;
        Ok(rows.len())
    }

    /// Makes every instance forget what is cached under these names.
    pub(super) async fn forget_names(&self, names: Names) -> Result<(), CacheError> {
        match Forgotten::of(names) {
            Some(forgotten) => self.forget_all(forgotten).await,
            None => self.0.caches.invalidate_everything().await,
        }
    }

    async fn forget_all(&self, forgotten: Forgotten) -> Result<(), CacheError> {
        let Forgotten { slugs, ids, domains, tokens } = forgotten;
        Box::pin(self.0.resolver.forget_names(&slugs, &ids, &domains)).await?;
        for token in tokens {
            self.0.tokens.revoke(&token).await?;
        }
        Ok(())
    }

    /// What a row that cannot be read names is not known: everything is forgotten instead.
    async fn set_aside(&self, change: ChangeId) -> Result<(), OrgsError> {
        self.0.caches.invalidate_everything().await?;
        self.0.store.set_aside(change).await?;
        counter!("changes_set_aside_total").increment(1);
        tracing::error!(
            change,
            "a row of the table `changes` cannot be read: all caches were emptied, and it is kept"
        );
        Ok(())
    }

    async fn measure(&self) {
        let Ok(backlog) = self.0.store.backlog().await else { return };
        gauge!("changes_pending").set(backlog.pending as f64);
        gauge!("changes_oldest_seconds").set(backlog.oldest.as_secs_f64());
        gauge!("changes_set_aside").set(backlog.set_aside as f64);
    }
}

impl Forgotten {
    /// `None` when anything of it is not understood, or could be no key.
    fn read(text: &str) -> Option<Self> {
        Self::of(serde_json::from_str(text).ok()?)
    }

    fn of(names: Names) -> Option<Self> {
        let is_key =
            |domain: &String| validate(&Caches::key_text(Owner::Global, "org:domain", domain)).is_ok();
        Some(Self {
            slugs: names.slugs.iter().map(|slug| slug.parse().ok()).collect::<Option<_>>()?,
            ids: names.ids.into_iter().map(|id| OrgId::new(id).ok()).collect::<Option<_>>()?,
            domains: names
                .domains
                .into_iter()
                .map(|domain| is_key(&domain).then_some(domain))
                .collect::<Option<_>>()?,
            tokens: names.tokens.iter().map(|digest| digest.parse().ok()).collect::<Option<_>>()?,
        })
    }

    fn extend(&mut self, more: Self) {
        self.slugs.extend(more.slugs);
        self.ids.extend(more.ids);
        self.domains.extend(more.domains);
        self.tokens.extend(more.tokens);
    }
}
