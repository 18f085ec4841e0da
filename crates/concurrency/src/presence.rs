//! Presence in this process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cache_core::{Clock, Member, PresenceError, PresenceOptions, Present, TenantId, Tick, key};
use parking_lot::Mutex;

/// The members. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct LocalPresence(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tenants: Mutex<Tenants>,
    clock: Clock,
    options: PresenceOptions,
    max_members: usize,
}

#[derive(Debug, Default)]
struct Tenants {
    by_id: HashMap<TenantId, BTreeMap<Arc<str>, Living>>,
    /// Members, dead ones that were not met yet included.
    size: usize,
    sweep_at: usize,
    swept: Tick,
}

#[derive(Debug)]
struct Living {
    member: Member,
    until: Tick,
}

impl Default for LocalPresence {
    fn default() -> Self {
        Self::new(Clock::system(), PresenceOptions::default(), 100_000)
    }
}

impl LocalPresence {
    pub(crate) fn new(clock: Clock, options: PresenceOptions, max_members: usize) -> Self {
        Self(Arc::new(Shared { tenants: Mutex::default(), clock, options, max_members }))
    }

    pub(crate) fn join(
        &self,
        tenant: &TenantId,
        connection: &str,
        member: &Member,
    ) -> Result<(), PresenceError> {
        key::validate(connection)?;
        let now = self.0.clock.now();
        let living = Living { member: member.clone(), until: now + self.0.options.ttl };
        let mut tenants = self.0.tenants.lock();
        if let Some(there) = tenants.by_id.get_mut(tenant).and_then(|members| members.get_mut(connection)) {
            *there = living;
            return Ok(());
        }
        tenants.make_room(now, self.0.max_members)?;
        tenants.by_id.entry(tenant.clone()).or_default().insert(connection.into(), living);
        tenants.size += 1;
        Ok(())
    }

    pub(crate) fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        key::validate(connection)?;
        let now = self.0.clock.now();
        let mut tenants = self.0.tenants.lock();
        let living = tenants.by_id.get_mut(tenant).and_then(|members| members.get_mut(connection));
        Ok(living
            .filter(|living| now < living.until)
            .map(|living| living.until = now + self.0.options.ttl)
            .is_some())
    }

    pub(crate) fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        key::validate(connection)?;
        let now = self.0.clock.now();
        let mut tenants = self.0.tenants.lock();
        let Some(members) = tenants.by_id.get_mut(tenant) else { return Ok(false) };
        let Some(left) = members.remove(connection) else { return Ok(false) };
        if members.is_empty() {
            tenants.by_id.remove(tenant);
        }
        tenants.size -= 1;
        Ok(now < left.until)
    }

    pub(crate) fn list(&self, tenant: &TenantId) -> Vec<Present> {
        let now = self.0.clock.now();
        let tenants = self.0.tenants.lock();
        let present = |(connection, living): (&Arc<str>, &Living)| Present {
            connection: Arc::clone(connection),
            member: living.member.clone(),
        };
        tenants.living(tenant, now).map(present).collect()
    }

    pub(crate) fn count(&self, tenant: &TenantId) -> u64 {
        let now = self.0.clock.now();
        self.0.tenants.lock().living(tenant, now).count() as u64
    }

    pub(crate) fn kept(&self) -> usize {
        let mut tenants = self.0.tenants.lock();
        tenants.sweep(self.0.clock.now());
        tenants.size
    }
}

impl Tenants {
    /// Below this many members nothing is swept.
    const MIN_SWEEP: usize = 1_024;

    fn living(&self, tenant: &TenantId, now: Tick) -> impl Iterator<Item = (&Arc<str>, &Living)> {
        let members = self.by_id.get(tenant).into_iter().flatten();
        members.filter(move |(_, living)| now < living.until)
    }

    /// While full it is not swept more often than this: each newcomer would look at all members.
    const SWEEP_EVERY: Duration = Duration::from_secs(1);

    /// Sweeps each time the number of members has doubled (a constant cost per join), and now and then while full.
    fn make_room(&mut self, now: Tick, max: usize) -> Result<(), PresenceError> {
        let grown = self.size >= self.sweep_at.max(Self::MIN_SWEEP);
        let full = self.size >= max;
        if full && now.since(self.swept) >= Self::SWEEP_EVERY || grown && !full {
            self.sweep(now);
        }
        if self.size >= max { Err(PresenceError::Full { limit: max }) } else { Ok(()) }
    }

    fn sweep(&mut self, now: Tick) {
        self.by_id.retain(|_, members| {
            members.retain(|_, living| now < living.until);
            !members.is_empty()
        });
        self.size = self.by_id.values().map(BTreeMap::len).sum();
        self.sweep_at = self.size * 2;
        self.swept = now;
    }
}
