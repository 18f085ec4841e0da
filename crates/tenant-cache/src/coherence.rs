//! What a message from the bus does here: near tiers and remembered generations only, never the far tier, and
//! never a publish.

use std::any::Any;
use std::sync::Arc;

use cache_core::key::{KeyParts, Owner, domain_prefix};
use cache_core::{FlushReason, Invalidation, InvalidationSink, TenantId};

use crate::changes::for_each_to_the_end;
use crate::generation::{Generations, generation_key, tag_guard_key, tag_key};
use crate::inner::Inner;
use crate::key::{CacheKey, NearQuery};
use crate::registry::Domains;
use crate::stats::{Counters, Stats};

/// A cache whose types are not known: what the registry and the bus need of it.
pub(crate) trait Domain: std::fmt::Debug + Send + Sync {
    /// Forgets one entry. `false` when the text is no key of this cache.
    fn apply_key(&self, parts: &KeyParts<'_>) -> bool;
    /// Forgets the entries whose full text starts with this.
    fn apply_prefix(&self, prefix: &str);
    /// Refuses all answers that are on their way.
    fn spoil(&self);
    /// A group was invalidated: tells who listens.
    fn tell_many(&self, tenant: Option<&TenantId>);
    fn stats(&self) -> Stats;
    fn counters(&self) -> Arc<Counters>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<K: CacheKey, V: Send + Sync + 'static> Domain for Inner<K, V> {
    fn apply_key(&self, parts: &KeyParts<'_>) -> bool {
        // A key with another text is another one.
        let Some(key) = K::from_text(&parts.key).filter(|key| key.to_text() == *parts.key) else {
            return false;
        };
        let (tenant, user) = match &parts.owner {
            Owner::Tenant(tenant) => (Some(tenant), None),
            Owner::User(tenant, user) => (Some(tenant), Some(user)),
            _ => (None, None),
        };
        let query = NearQuery { tenant, user, key: &key };
        self.near.remove(&query);
        self.listeners.tell_key(&query);
        true
    }

    fn apply_prefix(&self, prefix: &str) {
        self.near.remove_matching(|key| {
            // The scope first: most prefixes name another tenant, and rendering the key costs an allocation.
            let scope = domain_prefix(&key.owner(), &self.domain);
            match prefix.strip_prefix(&scope) {
                None => scope.starts_with(prefix),
                Some(_) => text(self, key.owner(), &key.key).starts_with(prefix),
            }
        });
        // Which entries that were not in memory it names cannot be told.
        self.listeners.tell_many(None);
    }

    fn spoil(&self) {
        self.near.spoil_tickets();
    }

    fn tell_many(&self, tenant: Option<&TenantId>) {
        self.listeners.tell_many(tenant);
    }

    fn stats(&self) -> Stats {
        Inner::stats(self)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

fn text<K: CacheKey, V>(inner: &Inner<K, V>, owner: Owner, key: &K) -> String {
    KeyParts { owner, domain: (&*inner.domain).into(), key: key.to_text().into() }.to_text()
}

/// Applies messages to the caches of a registry.
#[derive(Debug)]
pub(crate) struct Coherence {
    pub(crate) domains: Arc<Domains>,
    pub(crate) generations: Arc<Generations>,
}

impl Coherence {
    fn apply_key(&self, text: &str) {
        let Some(parts) = KeyParts::parse(text) else { return };
        let Some(domain) = self.domains.find(&parts.domain) else { return };
        if !domain.apply_key(&parts) {
            // Not readable as a key of this cache, yet it names an entry of it: better too much than too little.
            domain.apply_prefix(text);
        }
    }

    /// Nothing in memory belongs to a group that is not known.
    fn apply_group(&self, text: &str) {
        if let Some(group) = self.generations.find(text) {
            group.bump();
        }
    }
}

impl InvalidationSink for Coherence {
    fn apply(&self, message: &Invalidation) {
        match message {
            Invalidation::Keys(keys) => for_each_to_the_end(keys, |key| self.apply_key(key)),
            Invalidation::Prefix(prefix) => {
                self.domains.for_each(|domain| domain.apply_prefix(prefix));
            }
            Invalidation::Domain { tenant, domain } => {
                self.apply_group(&generation_key(tenant.as_ref().map(TenantId::as_str), domain));
                if let Some(domain) = self.domains.find(domain) {
                    domain.tell_many(tenant.as_ref());
                }
            }
            Invalidation::Tag { tenant, tag } => {
                let id = tenant.as_ref().map(TenantId::as_str);
                // The guard first: see `tag_guard_key`.
                self.apply_group(&tag_guard_key(id));
                self.apply_group(&tag_key(id, tag));
                self.domains.for_each(|domain| domain.tell_many(tenant.as_ref()));
            }
            Invalidation::All => {
                self.generations.all().bump();
                self.domains.for_each(|domain| domain.tell_many(None));
            }
            // What this version has no word for: dropping everything is right for any message.
            _ => self.flush(FlushReason::Gap),
        }
    }

    fn flush(&self, reason: FlushReason) {
        tracing::debug!(reason = reason.as_str(), "near tiers are emptied");
        self.generations.forget_all();
        self.generations.all().bump();
        // All of memory before any handler: one that panics must leave nothing behind.
        self.domains.for_each(|domain| domain.spoil());
        self.domains.for_each(|domain| domain.tell_many(None));
    }
}
