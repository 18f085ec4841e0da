//! Sealing every secret again with the current master key, beside servers that run.
//!
//! What is written meanwhile wins: secrets are replaced only where they are still those that were read, and nothing is
//! inserted. It can be stopped and started again at any time.

use std::collections::BTreeMap;

use org_resolution::{OrgId, SealError};
use secrecy::ExposeSecret;

use crate::orgs::keys::{self, ALL_FIELDS, HeldByKey, PAGE};
use crate::orgs::{Orgs, OrgsError};
use crate::store::{SealedRow, SealedSecrets};

/// How often an organisation is tried whose secrets change all the time.
const ATTEMPTS: usize = 5;

/// What a rotation did.
#[derive(Debug, Default)]
pub struct Rotation {
    /// What does not open and was left as it is, by organisation id and field.
    pub unopened: BTreeMap<(String, String), Unopened>,
    /// All secrets by their key, counted at the end.
    pub held: HeldByKey,
    /// The id of the key that seals.
    pub current: u32,
}

/// A secret that does not open.
#[derive(Debug)]
pub struct Unopened {
    /// The slug of its organisation.
    pub slug: String,
    /// Why.
    pub reason: SealError,
}

impl Rotation {
    /// How many secrets are not under the current key.
    #[must_use]
    pub fn left(&self) -> u64 {
        let others = self.held.iter().filter(|(key, _)| **key != Some(self.current));
        others.map(|(_, held)| held.secrets).sum()
    }

    /// Whether every secret is under the current key: the others can be dropped from the ring.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unopened.is_empty() && self.left() == 0
    }
}

impl Orgs {
    /// Seals every secret that is under another key again with the current one, page by page, and makes the caches forget
    /// what they hold of the old. What does not open is left as it is and named.
    ///
    /// # Errors
    /// [`OrgsError::Store`].
    ///
    /// # Cancel safety
    /// What was sealed again stays so; the next call goes on.
    pub async fn rotate(&self) -> Result<Rotation, OrgsError> {
        let mut rotation = Rotation { current: self.0.ring.current(), ..Rotation::default() };
        let mut after: Option<String> = None;
        loop {
            let page = self.0.store.sealed_page(after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            self.rotate_page(page, &mut rotation).await?;
        }
        rotation.held = keys::held(&self.0.store).await?;
        if rotation.is_complete() {
            keys::remember(&self.0.store, &self.0.ring).await?;
        }
        Ok(rotation)
    }

    async fn rotate_page(&self, mut rows: Vec<SealedRow>, rotation: &mut Rotation) -> Result<(), OrgsError> {
        for _ in 0..ATTEMPTS {
            let mut replaced = Vec::new();
            for row in rows {
                if let Some(secrets) = self.sealed_again(&row, rotation) {
                    replaced.push((row, secrets));
                }
            }
            if replaced.is_empty() {
                return Ok(());
            }
            let resealed = self.0.store.reseal(&replaced).await?;
            if let Some((change, names)) = resealed.change {
                let forgotten = self.forget_names(names).await;
                self.notified("secrets under another key", forgotten, &[change]).await;
            }
            rows = Vec::new();
            for id in resealed.changed_meanwhile {
                rotation.unopened.retain(|(org, _), _| *org != id);
                rows.extend(self.0.store.sealed(&id).await?);
            }
        }
        Ok(())
    }

    /// `None` when there is nothing to change.
    fn sealed_again(&self, row: &SealedRow, rotation: &mut Rotation) -> Option<SealedSecrets> {
        let mut unopened = |field: &str, reason| {
            let named = Unopened { slug: row.slug.clone(), reason };
            rotation.unopened.insert((row.id.clone(), field.to_owned()), named);
        };
        let (Some(secrets), Ok(id)) = (&row.secrets, OrgId::new(row.id.as_str())) else {
            unopened(ALL_FIELDS, SealError::Malformed);
            return None;
        };
        let (mut secrets, ring, mut changed) = (secrets.clone(), &self.0.ring, false);
        for (field, sealed) in &mut secrets {
            match ring.open(&id, field, sealed) {
                Err(reason) => unopened(field, reason),
                Ok(_) if ring.is_current(sealed) => {}
                Ok(secret) => {
                    *sealed = ring.seal(&id, field, secret.expose_secret());
                    changed = true;
                }
            }
        }
        changed.then_some(secrets)
    }
}
