//! Keys of a cache: what users give, and what the near tier stores.

use std::fmt::Display;
use std::hash::Hash;
use std::str::FromStr;

use cache_core::key::Owner;
use cache_core::{CacheError, RequestContext, Scope, TenantId, UserId};
use quick_cache::Equivalent;

use crate::ambient;

/// A type that can be the key of a tenant cache: anything that has a text form and is read back from it.
///
/// Messages from other instances name entries by text, so a key must survive the round trip:
/// `K::from_text(&k.to_text()) == Some(k)`. The first keys of a cache are checked for it; one that does not is counted
/// ([`Stats::lost_keys`](crate::Stats::lost_keys)) and told of once. What others invalidate is then looked for in all of
/// memory, by text; two keys with one text share an entry. Implemented for everything that is `Display` and `FromStr`
/// (`String`, integers, `Uuid`, your own ids); implement it by hand for other types.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a tenant cache",
    note = "implement `Display` and `FromStr` (and `Clone`, `Eq`, `Hash`), or `CacheKey` by hand"
)]
pub trait CacheKey: Clone + Eq + Hash + Send + Sync + 'static {
    /// The key as text.
    fn to_text(&self) -> String;

    /// The key of a text, or `None` when it is no key of this type.
    fn from_text(text: &str) -> Option<Self>;
}

impl<T: Display + FromStr + Clone + Eq + Hash + Send + Sync + 'static> CacheKey for T {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A key with whose it is: two tenants' entries differ by type, not by a naming convention.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct NearKey<K> {
    pub(crate) tenant: Option<TenantId>,
    pub(crate) user: Option<UserId>,
    pub(crate) key: K,
}

/// A [`NearKey`] that is only looked up: borrows everything, so that a hit builds nothing.
#[derive(Debug, PartialEq, Hash)]
pub(crate) struct NearQuery<'a, K> {
    pub(crate) tenant: Option<&'a TenantId>,
    pub(crate) user: Option<&'a UserId>,
    pub(crate) key: &'a K,
}

impl<K> Clone for NearQuery<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for NearQuery<'_, K> {}

impl<K: Eq> Equivalent<NearKey<K>> for NearQuery<'_, K> {
    fn equivalent(&self, key: &NearKey<K>) -> bool {
        *self.key == key.key && self.tenant == key.tenant.as_ref() && self.user == key.user.as_ref()
    }
}

impl<K: CacheKey> NearQuery<'_, K> {
    pub(crate) fn to_key(self) -> NearKey<K> {
        NearKey { tenant: self.tenant.cloned(), user: self.user.cloned(), key: self.key.clone() }
    }

    pub(crate) fn owner(&self) -> Owner {
        owner(self.tenant, self.user)
    }
}

impl<K> NearKey<K> {
    pub(crate) fn query(&self) -> NearQuery<'_, K> {
        NearQuery { tenant: self.tenant.as_ref(), user: self.user.as_ref(), key: &self.key }
    }

    pub(crate) fn owner(&self) -> Owner {
        owner(self.tenant.as_ref(), self.user.as_ref())
    }
}

fn owner(tenant: Option<&TenantId>, user: Option<&UserId>) -> Owner {
    match (tenant, user) {
        (None, _) => Owner::Global,
        (Some(tenant), None) => Owner::Tenant(tenant.clone()),
        (Some(tenant), Some(user)) => Owner::User(tenant.clone(), user.clone()),
    }
}

/// Runs `look` with the ids that the running request gives a cache of this scope.
///
/// # Errors
/// [`CacheError::NoTenant`] and [`CacheError::NoUser`]; never a fall-back to a wider scope.
pub(crate) fn with_ids<R>(
    scope: Scope,
    domain: &str,
    look: impl FnOnce(Option<&TenantId>, Option<&UserId>) -> R,
) -> Result<R, CacheError> {
    if scope == Scope::Global {
        return Ok(look(None, None));
    }
    ambient::with_current(|context: Option<&RequestContext>| {
        let Some(context) = context else {
            return Err(CacheError::NoTenant { domain: domain.to_owned().into() });
        };
        let user = match (scope, context.user.as_ref()) {
            (Scope::Tenant, _) => None,
            (Scope::User, None) => return Err(CacheError::NoUser { domain: domain.to_owned().into() }),
            (_, user) => user,
        };
        Ok(look(Some(&context.tenant), user))
    })
}
