//! What a run consists of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use cache_core::InvalidationBus;
use cache_core::ManualClock;
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use conformance::faults::ChaosCache;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tenant_cache::Caches;

use crate::domains::{Rows, define};
use crate::origin::Origin;
use crate::record::Record;

pub(crate) const INSTANCES: usize = 2;

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Everything.
    Storm,
    /// The far tier loses things and is slow, but says no wrong word; loads end.
    Breeze,
    /// Nothing.
    Calm,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hand: ManualClock,
    pub(crate) store: Arc<MokaCacheService>,
    pub(crate) origin: Origin,
    pub(crate) record: Record,
    pub(crate) instances: Mutex<Vec<Instance>>,
    /// What loaders and hooks draw from.
    pub(crate) dice: Mutex<StdRng>,
    phase: AtomicU8,
    /// In real time on two threads, and not in a time of its own on one.
    pub(crate) real: bool,
}

/// One instance.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) caches: Caches,
    pub(crate) far: Arc<ChaosCache>,
    pub(crate) domains: Vec<Rows>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let hand = ManualClock::new();
        let bus: Arc<dyn InvalidationBus> = Arc::new(LocalBus::new());
        let on_bus = !seed.is_multiple_of(3);
        let store = MokaCacheService::builder().clock(hand.clock());
        let store = if on_bus { store.bus(Arc::clone(&bus)) } else { store };
        let world = Arc::new(Self {
            hand,
            store: Arc::new(store.build().expect("its options can work")),
            origin: Origin::new(),
            record: Record::new(seed),
            instances: Mutex::default(),
            dice: Mutex::new(StdRng::seed_from_u64(!seed)),
            phase: AtomicU8::new(Phase::Storm as u8),
            real: seed % 4 == 1,
        });
        for at in 0..INSTANCES {
            let far = Arc::new(ChaosCache::new(world.store.clone()));
            let caches = Caches::builder().far(far.clone()).bus(Arc::clone(&bus)).clock(world.hand.clock());
            let caches = caches.build().expect("one bus");
            let domains = define(&caches, &world, at).expect("the options can work");
            world.instances.lock().push(Instance { caches, far, domains });
        }
        world
    }

    pub(crate) fn instance(&self, at: usize) -> Instance {
        self.instances.lock()[at].clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Storm,
            1 => Phase::Breeze,
            _ => Phase::Calm,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }
}
