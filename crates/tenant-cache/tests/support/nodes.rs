//! A fleet on one far tier and one bus, with a gate in front of each instance's way to the far tier.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{InvalidationBus, ManualClock};
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use conformance::faults::ChaosCache;
use futures_util::FutureExt;
use tenant_cache::{Caches, DomainBuilder, Source, TenantCache};

use super::{Origin, of, plain, versions_with};

pub const OLD: u64 = 1;
pub const NEW: u64 = 2;

/// One instance.
pub struct Node {
    pub caches: Caches,
    pub cache: TenantCache<String, u64>,
    pub far: Arc<ChaosCache>,
}

/// Three instances, and what they share.
pub struct Fleet {
    pub hand: ManualClock,
    pub origin: Origin,
    pub bus: Arc<dyn InvalidationBus>,
    pub store: Arc<MokaCacheService>,
    pub nodes: Vec<Node>,
}

pub fn key() -> String {
    "k".to_owned()
}

impl Fleet {
    pub fn new(origin: Origin) -> Self {
        Self::with(origin, |domain| domain)
    }

    pub fn with(
        origin: Origin,
        options: impl Fn(DomainBuilder<String, u64>) -> DomainBuilder<String, u64>,
    ) -> Self {
        let hand = ManualClock::new();
        let bus: Arc<dyn InvalidationBus> = Arc::new(LocalBus::new());
        let store = MokaCacheService::builder().bus(Arc::clone(&bus)).clock(hand.clock()).build().unwrap();
        let mut fleet = Self { hand, origin, bus, store: Arc::new(store), nodes: Vec::new() };
        fleet.nodes = (0..3).map(|_| fleet.node(&options)).collect();
        fleet
    }

    /// A further instance, with nothing in memory.
    pub fn node(&self, options: impl Fn(DomainBuilder<String, u64>) -> DomainBuilder<String, u64>) -> Node {
        let far = Arc::new(ChaosCache::new(self.store.clone()));
        let caches = Caches::builder().far(far.clone()).clock(self.hand.clock()).build().unwrap();
        let cache =
            versions_with(&caches, &self.origin, |domain| options(domain.tags(|_| vec!["all".to_owned()])));
        Node { caches, cache, far }
    }

    /// Lets every load of `work` pass.
    pub async fn passing<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = soon(work) => done,
            () = self.origin.let_pass() => unreachable!("it never ends"),
        }
    }

    /// What a reader who comes now gets.
    pub async fn read(&self, node: &Node) -> (Option<u64>, Source) {
        let key = key();
        let found = self.passing(of("acme", node.cache.lookup(&key))).await.unwrap();
        (plain(found.value), found.source)
    }

    /// The numbers of all groups are known to a node from now on: it reads a key with one plain call.
    pub async fn warm(&self, node: &Node) {
        let other = "other".to_owned();
        self.passing(of("acme", node.cache.get(&other))).await.unwrap();
    }

    /// Nobody's memory holds the old row, nobody gets it, and the far tier does not hold it: an instance that comes
    /// new does not find it there.
    pub async fn old_is_nowhere(&self, what: &str) {
        for (n, node) in self.nodes.iter().enumerate() {
            assert_ne!(node.peek(), Some(OLD), "{what}: in the memory of node {n}");
        }
        let (value, source) = self.read(&self.node(|domain| domain)).await;
        assert_eq!(value, Some(NEW), "{what}: read by a new instance, from {source:?}");
        for (n, node) in self.nodes.iter().enumerate() {
            assert_eq!(self.read(node).await.0, Some(NEW), "{what}: read at node {n}");
        }
    }
}

impl Node {
    /// What memory holds.
    pub fn peek(&self) -> Option<u64> {
        let peek = of("acme", async { plain(self.cache.peek(&key()).unwrap()) });
        peek.now_or_never().expect("a peek does not wait")
    }

    /// Reads in a task of its own.
    pub fn begin(&self) -> tokio::task::JoinHandle<Option<u64>> {
        let cache = self.cache.clone();
        tokio::spawn(async move { plain(of("acme", cache.get(&key())).await.ok().flatten()) })
    }
}

/// Work that must not take long.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("it ends soon")
}

/// What makes the old row old, once the new one is committed. A refresh does not: it gives way to a load that is
/// under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Invalidate,
    Many,
    Insert,
    Tag,
    Tenant,
    Domain,
    Prefix,
    Everything,
}

impl Event {
    pub const ALL: [Self; 8] = [
        Self::Invalidate,
        Self::Many,
        Self::Insert,
        Self::Tag,
        Self::Tenant,
        Self::Domain,
        Self::Prefix,
        Self::Everything,
    ];

    /// Whether it reads from the far tier before it writes.
    pub fn looks_first(self) -> bool {
        self == Self::Insert
    }

    pub async fn happen(self, node: &Node) {
        let (cache, caches, key) = (&node.cache, &node.caches, key());
        let done = of("acme", async {
            match self {
                Self::Invalidate => cache.invalidate(&key).await,
                Self::Many => cache.invalidate_many(&[key, "other".to_owned()]).await,
                Self::Insert => cache.insert(&key, NEW).await,
                Self::Tag => cache.invalidate_tag("all").await,
                Self::Tenant => cache.invalidate_all().await,
                Self::Domain => cache.clear().await,
                Self::Prefix => caches.invalidate_prefix("acme:ro").await.map(drop),
                Self::Everything => caches.invalidate_everything().await,
            }
        });
        soon(done).await.unwrap();
    }
}
