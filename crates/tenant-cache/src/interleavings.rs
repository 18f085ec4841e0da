//! Models of what races, run by `shuttle` under every schedule where they are small, and under many where they are
//! not: each operation of the locks and counters of [`sync`](crate::sync) is a place where another thread may go
//! first.
//!
//! | model | what must hold |
//! |---|---|
//! | `memory` | what was removed is not found any more, however late the answer of a lookup arrives |
//! | `flights` | who comes after a removal is not handed a load from before it; a load is shared all the same |
//! | `groups` | a group's number from before its invalidation is not known after it |
//!
//! A failure prints a schedule; `shuttle::replay` runs it again.

mod flights;
mod groups;
mod memory;

use std::sync::Arc;
use std::time::Duration;

use cache_core::bus::{BusHealth, Sinks};
use cache_core::{
    BusState, CacheError, Invalidation, InvalidationBus, InvalidationSink, Scope, Subscription, TenantId,
    Trust,
};

use crate::cache::TenantCache;
use crate::key::NearQuery;
use crate::life::{Life, Times};
use crate::near::{Remembered, Ticket};
use crate::registry::Caches;
use crate::sync::AtomicU64;

/// Schedules of each kind, where there are too many to try all.
const SCHEDULES: usize = 400;

/// Every schedule.
fn under_every_schedule(model: impl Fn() + Send + Sync + 'static) {
    shuttle::check_dfs(model, None);
}

/// Many schedules: with a change of thread anywhere, and with few changes at places far apart.
fn under_many_schedules(model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    let again = Arc::clone(&model);
    shuttle::check_random(move || model(), SCHEDULES);
    shuttle::check_pct(move || again(), SCHEDULES, 3);
}

const KEY: u32 = 7;

/// What was committed before, and after.
const OLD: u64 = 1;
const NEW: u64 = 2;

/// An instance whose messages come from the model, and an origin with one row.
struct Instance {
    origin: AtomicU64,
    cache: TenantCache<u32, u64>,
    bus: Arc<Hand>,
    tenant: TenantId,
    _caches: Caches,
}

/// A bus that the model speaks through.
#[derive(Debug)]
struct Hand {
    sinks: Sinks,
    trust: Arc<Trust>,
}

#[async_trait::async_trait]
impl InvalidationBus for Hand {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.sinks.apply(message);
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.sinks.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }

    fn state(&self) -> BusState {
        let mut state = BusState::default();
        state.health = BusHealth::Trusted;
        state
    }
}

impl Instance {
    /// One whose entries carry a tag.
    fn new() -> Arc<Self> {
        Self::with_tags(vec!["tag".to_owned()])
    }

    fn with_tags(tags: Vec<String>) -> Arc<Self> {
        let bus = Arc::new(Hand { sinks: Sinks::default(), trust: Arc::new(Trust::always()) });
        let caches = Caches::builder().bus(bus.clone()).build().expect("a bus and nothing else");
        let cache = caches
            .domain("rows")
            .scope(Scope::Tenant)
            .capacity(16)
            .negative_capacity(16)
            .tags(move |_: &u32| tags.clone())
            .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(u64::from(key))) })
            .expect("a sound definition");
        let tenant = TenantId::new("acme").expect("an id");
        Arc::new(Self { origin: AtomicU64::new(OLD), cache, bus, tenant, _caches: caches })
    }

    fn query(&self) -> NearQuery<'_, u32> {
        NearQuery { tenant: Some(&self.tenant), user: None, key: &KEY }
    }

    /// What a reader who comes now finds in memory.
    fn read(&self) -> Option<u64> {
        self.cache.inner.near_answer(&self.query()).and_then(|answer| answer.found.value).map(|value| *value)
    }

    fn ticket(&self) -> Ticket {
        self.cache.inner.ticket(&self.query())
    }

    fn commit(&self, version: u64) {
        self.origin.store(version, std::sync::atomic::Ordering::SeqCst);
    }

    fn ask(&self) -> u64 {
        self.origin.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Keeps an answer, as a fetch does.
    fn remember(&self, value: u64, ticket: &Ticket) {
        let (inner, hour) = (&self.cache.inner, Duration::from_secs(3_600));
        let now = inner.shared.clock.coarse();
        if inner.shared.trust.near(now) {
            let times = Times::of(Life::new(hour, Duration::ZERO).into(), hour, &inner.policy, now);
            inner.near.insert(self.query().to_key(), Remembered::Value(Arc::new(value)), times, now, ticket);
        }
    }

    /// A lookup that misses memory: a ticket, the question, the answer.
    fn look_up(&self) {
        let ticket = self.ticket();
        let value = self.ask();
        self.remember(value, &ticket);
    }
}
