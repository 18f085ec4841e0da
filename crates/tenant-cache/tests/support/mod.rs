//! What the tests of this crate share: an origin that knows the truth and can be held, and requests of tenants.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

pub mod nodes;
pub mod warned;
pub mod watched;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::{RequestContext, Scope, TenantId, UserId};
use tenant_cache::{Caches, DomainBuilder, RequestScope, TenantCache};
use tokio::sync::{Semaphore, watch};

/// A source of truth. Each load reads the row *before* it waits at the gate, as a slow query does.
#[derive(Debug, Clone)]
pub struct Origin(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rows: Mutex<HashMap<String, u64>>,
    loads: AtomicUsize,
    gate: Semaphore,
    waiting: watch::Sender<usize>,
    gated: bool,
    broken: Mutex<bool>,
}

impl Origin {
    /// Answers at once.
    pub fn open() -> Self {
        Self::new(false)
    }

    /// Each load waits for a [`release`](Self::release).
    pub fn gated() -> Self {
        Self::new(true)
    }

    fn new(gated: bool) -> Self {
        Self(Arc::new(Shared {
            rows: Mutex::default(),
            loads: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            waiting: watch::Sender::new(0),
            gated,
            broken: Mutex::new(false),
        }))
    }

    pub fn commit(&self, key: &str, version: u64) {
        self.0.rows.lock().unwrap().insert(key.to_owned(), version);
    }

    pub fn delete(&self, key: &str) {
        self.0.rows.lock().unwrap().remove(key);
    }

    pub fn set_broken(&self, broken: bool) {
        *self.0.broken.lock().unwrap() = broken;
    }

    /// Loads begun so far.
    pub fn loads(&self) -> usize {
        self.0.loads.load(Ordering::SeqCst)
    }

    /// Lets `loads` waiting loads go on.
    pub fn release(&self, loads: usize) {
        self.0.gate.add_permits(loads);
    }

    /// Waits until so many loads have read their row and stand at the gate.
    pub async fn at_gate(&self, loads: usize) {
        let mut waiting = self.0.waiting.subscribe();
        let reached = waiting.wait_for(|now| *now >= loads);
        tokio::time::timeout(Duration::from_secs(5), reached).await.expect("loads reach the gate").unwrap();
    }

    /// Lets every load pass, one at a time, for as long as it is polled.
    pub async fn let_pass(&self) {
        let mut waiting = self.0.waiting.subscribe();
        loop {
            let before = *waiting.wait_for(|now| *now > 0).await.unwrap();
            self.release(1);
            waiting.wait_for(|now| *now < before).await.unwrap();
        }
    }

    pub async fn load(&self, key: &str) -> Result<Option<u64>, io::Error> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let row = self.0.rows.lock().unwrap().get(key).copied();
        let broken = *self.0.broken.lock().unwrap();
        if self.0.gated {
            let _standing = Standing::new(&self.0.waiting);
            self.0.gate.acquire().await.unwrap().forget();
        }
        if broken { Err(io::Error::other("the origin is away")) } else { Ok(row) }
    }
}

struct Standing<'a>(&'a watch::Sender<usize>);

impl<'a> Standing<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|now| *now += 1);
        Self(waiting)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|now| *now -= 1);
    }
}

pub fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

pub fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

/// Runs work as a request of a tenant.
pub async fn of<F: Future>(id: &str, work: F) -> F::Output {
    RequestContext::new(tenant(id)).scope(work).await
}

/// A cache of versions in the domain `rows`, scoped to the tenant, without jitter.
pub fn versions(caches: &Caches, origin: &Origin) -> TenantCache<String, u64> {
    versions_with(caches, origin, |domain| domain)
}

/// [`versions`] with further options.
pub fn versions_with(
    caches: &Caches,
    origin: &Origin,
    options: impl FnOnce(DomainBuilder<String, u64>) -> DomainBuilder<String, u64>,
) -> TenantCache<String, u64> {
    let origin = origin.clone();
    options(caches.domain("rows").scope(Scope::Tenant).jitter(0.0))
        .load(move |key: String| {
            let origin = origin.clone();
            async move { origin.load(&key).await }
        })
        .unwrap()
}

/// The plain value of an answer.
pub fn plain(value: Option<Arc<u64>>) -> Option<u64> {
    value.map(|value| *value)
}
