//! What is cached: whose, where, which version.

use cache_core::key::Owner;
use cache_core::{RequestContext, Scope, TenantId, UserId};
use serde::{Deserialize, Serialize};
use tenant_cache::{Caches, RequestScope};

use crate::domains::{DOMAINS, Spec};

pub(crate) const TENANTS: u8 = 2;
pub(crate) const USERS: u8 = 2;
pub(crate) const KEYS: u32 = 6;

/// One entry. Tenant and user are there as far as the domain's scope has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) domain: usize,
    pub(crate) tenant: Option<u8>,
    pub(crate) user: Option<u8>,
    pub(crate) key: u32,
}

/// A cached row says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) of: Entry,
    pub(crate) version: usize,
    /// It is the fallback's, which is never cached.
    pub(crate) fallback: bool,
}

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tenant: u8,
    pub(crate) user: Option<u8>,
}

impl Caller {
    pub(crate) fn context(self) -> RequestContext {
        let context = RequestContext::new(tenant_id(self.tenant));
        match self.user {
            Some(user) => context.with_user(user_id(user)),
            None => context,
        }
    }

    /// Whose running request it is.
    pub(crate) fn running() -> Option<Self> {
        let context = RequestContext::current()?;
        let number = |text: &str| text[1..].parse().expect("ids of a run are a letter and a number");
        let user = context.user.as_ref().map(|user| number(user.as_str()));
        Some(Self { tenant: number(context.tenant.as_str()), user })
    }

    /// The entry that a key means for this caller.
    pub(crate) fn entry(self, domain: usize, key: u32) -> Entry {
        let (tenant, user) = match DOMAINS[domain].scope {
            Scope::Global => (None, None),
            Scope::Tenant => (Some(self.tenant), None),
            _ => (Some(self.tenant), self.user),
        };
        Entry { domain, tenant, user, key }
    }
}

impl Entry {
    /// Every entry there can be.
    pub(crate) fn all() -> Vec<Self> {
        let owners = |spec: &Spec| -> Vec<(Option<u8>, Option<u8>)> {
            let tenants = 0..TENANTS;
            let of_users = |tenant: u8| (0..USERS).map(move |user| (Some(tenant), Some(user)));
            match spec.scope {
                Scope::Global => vec![(None, None)],
                Scope::Tenant => tenants.map(|tenant| (Some(tenant), None)).collect(),
                Scope::User => tenants.flat_map(of_users).collect(),
                _ => tenants.flat_map(|tenant| of_users(tenant).chain([(Some(tenant), None)])).collect(),
            }
        };
        let entries = |(domain, spec): (usize, &Spec)| {
            let keys = |(tenant, user)| (0..KEYS).map(move |key| Self { domain, tenant, user, key });
            owners(spec).into_iter().flat_map(keys).collect::<Vec<_>>()
        };
        DOMAINS.iter().enumerate().flat_map(entries).collect()
    }

    /// Somebody whose entry it is.
    pub(crate) fn caller(self) -> Caller {
        Caller { tenant: self.tenant.unwrap_or(0), user: self.user }
    }

    /// Its key in the far tier.
    pub(crate) fn text(self) -> String {
        let owner = match (self.tenant, self.user) {
            (None, _) => Owner::Global,
            (Some(tenant), None) => Owner::Tenant(tenant_id(tenant)),
            (Some(tenant), Some(user)) => Owner::User(tenant_id(tenant), user_id(user)),
        };
        Caches::key_text(owner, DOMAINS[self.domain].name, &self.key.to_string())
    }

    /// The tag that follows from its key, where the domain has such.
    pub(crate) fn tag(self) -> Option<String> {
        DOMAINS[self.domain].tagged.then(|| key_tag(self.key))
    }

    /// The tag that its loader gives it, where it does.
    pub(crate) fn late_tag(self) -> Option<String> {
        DOMAINS[self.domain].loader_tags.then(|| late_tag(self.key))
    }
}

pub(crate) fn key_tag(key: u32) -> String {
    format!("third-{}", key % 3)
}

pub(crate) fn late_tag(key: u32) -> String {
    format!("half-{}", key % 2)
}

pub(crate) fn tenant_id(tenant: u8) -> TenantId {
    TenantId::new(format!("t{tenant}")).expect("an id")
}

fn user_id(user: u8) -> UserId {
    UserId::new(format!("u{user}")).expect("an id")
}
