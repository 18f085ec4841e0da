//! Master keys: which ones there are, which one seals, and the proof that they are those of the database.

use std::collections::BTreeMap;

use org_resolution::secret::Sealed;
use org_resolution::{KeyRing, OrgId};
use secrecy::{ExposeSecret, SecretString};

use crate::orgs::OrgsError;
use crate::store::{Store, StoreError};

/// The name of the record that only the right master key opens.
const CANARY: &str = "master-key-canary";
/// What the record says, and for whom and which field it is sealed: nobody's.
const CANARY_TEXT: &str = "the master key is right";
const CANARY_ORG: &str = "org-server";

/// Organisations at a time.
pub(super) const PAGE: u32 = 200;

/// The secrets under one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// How many there are.
    pub secrets: u64,
    /// One of them: organisation and field.
    pub such_as: String,
}

/// Secrets by the id of the key that sealed them; `None` for those that are no sealed secrets.
pub type HeldByKey = BTreeMap<Option<u32>, Held>;

/// Reads the keys; `current` is the id of the one that seals, by default the highest.
///
/// # Errors
/// [`OrgsError::MasterKey`] when they are none, [`OrgsError::NoSuchKey`] when none of them has the id.
pub fn ring(keys: &SecretString, current: Option<u32>) -> Result<KeyRing, OrgsError> {
    let ring = KeyRing::parse(keys.expose_secret()).map_err(|reason| OrgsError::MasterKey { reason })?;
    match current {
        None => Ok(ring),
        Some(id) => ring.sealing_with(id).ok_or(OrgsError::NoSuchKey { id }),
    }
}

/// Whether a database knows its master key: another one cannot take its place.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancel safety
/// Safe.
pub async fn is_sealed(store: &Store) -> Result<bool, StoreError> {
    Ok(store.fact(CANARY).await?.is_some() || !store.sealed_page(None, 1).await?.is_empty())
}

/// Proves that the ring has the key that the database was sealed with; a new database remembers the one that seals.
pub(super) async fn prove(store: &Store, ring: &KeyRing) -> Result<(), OrgsError> {
    let canary = store.fact_or_insert(CANARY, canary(ring).as_bytes()).await?;
    let opened = ring.open(&nobody(), CANARY, &Sealed::from_bytes(canary));
    opened.map(drop).map_err(|reason| OrgsError::MasterKey { reason })
}

/// From now on the key that seals is the one that is proved.
pub(super) async fn remember(store: &Store, ring: &KeyRing) -> Result<(), StoreError> {
    store.set_fact(CANARY, canary(ring).as_bytes()).await
}

/// Makes sure that there is a key for every secret. One that is damaged otherwise is only said: it keeps nobody else's
/// organisation from being served.
pub(super) async fn check(store: &Store, ring: &KeyRing) -> Result<(), OrgsError> {
    let mut missing = Vec::new();
    for (key, Held { secrets, such_as }) in held(store).await? {
        match key {
            Some(id) if ring.has(id) => {}
            Some(id) => missing.push(format!("master key {id} ({secrets}, such as {such_as})")),
            None => tracing::warn!(secrets, such_as, "secrets are damaged and cannot be opened"),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(OrgsError::MissingKeys { keys: missing.join(", ") }) }
}

/// Counts the secrets by key.
pub(super) async fn held(store: &Store) -> Result<HeldByKey, StoreError> {
    let (mut held, mut after) = (HeldByKey::new(), None::<String>);
    loop {
        let page = store.sealed_page(after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(held) };
        after = Some(last.id.clone());
        for row in &page {
            let Some(secrets) = &row.secrets else {
                count(&mut held, None, &row.slug, ALL_FIELDS);
                continue;
            };
            for (field, sealed) in secrets {
                count(&mut held, sealed.key_id(), &row.slug, field);
            }
        }
    }
}

/// Stands for the fields of a record whose fields cannot be told.
pub(super) const ALL_FIELDS: &str = "*";

fn count(held: &mut HeldByKey, key: Option<u32>, slug: &str, field: &str) {
    let held = held.entry(key).or_default();
    held.secrets += 1;
    if held.such_as.is_empty() {
        held.such_as = format!("{slug}/{field}");
    }
}

fn canary(ring: &KeyRing) -> Sealed {
    ring.seal(&nobody(), CANARY, CANARY_TEXT)
}

fn nobody() -> OrgId {
    OrgId::new(CANARY_ORG).expect("a short text is an id")
}
