//! The tenant label of the metrics: off, or bounded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cache_core::TenantId;
use metrics::{Counter, counter};
use parking_lot::Mutex;

use crate::answer::{Found, Source};
use crate::single_flight::LookupResult;

/// Lookups past the near tier after which a tenant counts as busy.
const BUSY: u64 = 100;

/// Tenants whose lookups are counted at the same time, for each one that can get a label.
const CANDIDATES: usize = 16;

/// Which tenants the hit and miss counters name. All others are `other`, so that the number of series is bounded
/// whatever tenants there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TenantLabels {
    /// None: the counters have no `tenant` label.
    #[default]
    Off,
    /// These.
    Allow(BTreeSet<TenantId>),
    /// The first so many to become busy: to reach 100 lookups past the near tier. A tenant keeps its label, since a
    /// series that changes hands would lie.
    Busiest(usize),
}

/// Gives out the labels; shared by the caches of a process.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    policy: TenantLabels,
    busy: Mutex<Busy>,
}

#[derive(Debug, Default)]
struct Busy {
    named: BTreeSet<TenantId>,
    lookups: HashMap<TenantId, u64>,
}

impl Labels {
    pub(crate) fn new(policy: TenantLabels) -> Self {
        Self { policy, busy: Mutex::default() }
    }

    pub(crate) fn on(&self) -> bool {
        self.policy != TenantLabels::Off
    }

    /// Counts a lookup, and says whether the tenant is named in metrics.
    fn names(&self, tenant: &TenantId) -> bool {
        match &self.policy {
            TenantLabels::Off => false,
            TenantLabels::Allow(allowed) => allowed.contains(tenant),
            TenantLabels::Busiest(most) => self.busy.lock().names(tenant, *most),
        }
    }
}

impl Busy {
    fn names(&mut self, tenant: &TenantId, most: usize) -> bool {
        if self.named.len() >= most {
            return self.named.contains(tenant);
        }
        if self.named.contains(tenant) {
            return true;
        }
        let lookups = self.lookups.entry(tenant.clone()).or_default();
        *lookups += 1;
        if *lookups >= BUSY {
            self.named.insert(tenant.clone());
            self.lookups.remove(tenant);
            if self.named.len() >= most {
                self.lookups = HashMap::new();
            }
            return true;
        }
        if self.lookups.len() > most.saturating_mul(CANDIDATES) {
            // The busy ones are soon back.
            self.lookups.clear();
        }
        false
    }
}

/// The counters of one tenant, or of all that are not named, in one cache.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    near_hits: Counter,
    far_hits: Counter,
    misses: Counter,
}

impl Meter {
    pub(crate) fn new(domain: &str, label: &str) -> Self {
        let hits = |tier: &'static str| {
            counter!("cache_hits_total",
                "name" => domain.to_owned(), "tenant" => label.to_owned(), "tier" => tier)
        };
        let misses =
            counter!("cache_misses_total", "name" => domain.to_owned(), "tenant" => label.to_owned());
        Self { near_hits: hits("near"), far_hits: hits("far"), misses }
    }

    #[inline]
    pub(crate) fn near_hit(&self) {
        self.near_hits.increment(1);
    }

    pub(crate) fn landed<V>(&self, landing: &LookupResult<V>) {
        match landing {
            Ok(Found { source: Source::Near, .. }) => self.near_hits.increment(1),
            Ok(Found { source: Source::Far, .. }) => self.far_hits.increment(1),
            _ => self.misses.increment(1),
        }
    }
}

/// The meters of one cache's tenants.
#[derive(Debug)]
pub(crate) struct Meters {
    domain: Arc<str>,
    labels: Arc<Labels>,
    named: Mutex<HashMap<TenantId, Arc<Meter>>>,
    other: Arc<Meter>,
}

impl Meters {
    /// `None` when the metrics have no tenant label.
    pub(crate) fn new(domain: &Arc<str>, labels: &Arc<Labels>) -> Option<Self> {
        labels.on().then(|| Self {
            domain: Arc::clone(domain),
            labels: Arc::clone(labels),
            named: Mutex::default(),
            other: Arc::new(Meter::new(domain, "other")),
        })
    }

    /// The meter of a tenant's lookup past the near tier. Entries without a tenant are `other`.
    pub(crate) fn of(&self, tenant: Option<&TenantId>) -> Arc<Meter> {
        let Some(tenant) = tenant.filter(|tenant| self.labels.names(tenant)) else {
            return Arc::clone(&self.other);
        };
        let mut named = self.named.lock();
        let meter = || Arc::new(Meter::new(&self.domain, tenant.as_str()));
        Arc::clone(named.entry(tenant.clone()).or_insert_with(meter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(n: usize) -> TenantId {
        TenantId::new(format!("t{n}")).unwrap()
    }

    /// M2, SG9: however many tenants there are, so many get a label and keep it, and the memory is bounded.
    #[test]
    fn the_number_of_labels_is_bounded() {
        let labels = Labels::new(TenantLabels::Busiest(3));
        for n in 0..100_000 {
            assert!(!labels.names(&tenant(n)));
        }
        assert!(labels.busy.lock().lookups.len() <= 3 * CANDIDATES + 1);
        for _ in 0..BUSY {
            (0..5).for_each(|n| {
                labels.names(&tenant(n));
            });
        }
        let named: Vec<_> = (0..5).filter(|n| labels.names(&tenant(*n))).collect();
        assert_eq!(named, [0, 1, 2], "the first to become busy");
        (5..1_000).for_each(|n| assert!(!labels.names(&tenant(n % 100 + 5))));
        assert!(labels.busy.lock().lookups.is_empty());
    }

    /// M2: an allow list names those and nobody else.
    #[test]
    fn an_allow_list_names_those() {
        let labels = Labels::new(TenantLabels::Allow([tenant(1)].into()));
        assert_eq!((labels.names(&tenant(1)), labels.names(&tenant(2))), (true, false));
        assert!(!Labels::new(TenantLabels::Off).on());
    }
}
