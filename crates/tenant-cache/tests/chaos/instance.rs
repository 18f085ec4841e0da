//! One instance, in a process of its own: random reads and writes, told to the run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::bus::BusHealth;
use cache_core::{CacheError, InvalidationBus, RequestContext, Scope, TenantId};
use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::history::Entry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tenant_cache::{Caches, RequestScope, TenantCache};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::origin::Client;
use crate::report::{Command, KEYS, LOAD_TAKES, Line, MARK, Row, Standing, TENANTS, entries, now};

/// How long memory is trusted after a beat: the bound that the run checks.
pub(crate) const TRUST_FOR: Duration = Duration::from_millis(600);

/// What the run tells an instance when it starts it.
pub(crate) const REDIS: &str = "CHAOS_REDIS";
pub(crate) const ORIGIN: &str = "CHAOS_ORIGIN";
pub(crate) const SEED: &str = "CHAOS_INSTANCE_SEED";
pub(crate) const NUMBER: &str = "CHAOS_INSTANCE_NUMBER";

/// The key whose rows are inserted: an insert is coherent where one writer at a time writes, so each tenant's row of this
/// key is written by one instance alone.
const INSERTED: u32 = KEYS - 1;

const WORKERS: u64 = 3;
/// Reads without a pause: memory answers without waiting, and would starve everything else.
const BURST: u32 = 64;

struct Instance {
    bus: Arc<RedisBus>,
    cache: TenantCache<u32, Row>,
    origin: Client,
    over: AtomicBool,
    told: Mutex<Told>,
    /// The tenant whose row of [`INSERTED`] it writes, one write at a time.
    inserts_for: tokio::sync::Mutex<u32>,
}

/// What is told with the next lines.
#[derive(Default)]
struct Told {
    seen: HashMap<(Entry, Entry, u64), Seen>,
    /// When the slowest read began and ended.
    slowest: (u64, u64),
    untrusted: u64,
}

struct Seen {
    reads: u64,
    last_began: u64,
    first_ended: u64,
}

/// Runs until its input ends.
pub(crate) async fn run() {
    let instance = Arc::new(Instance::start());
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    tokio::spawn(Arc::clone(&instance).watch_trust());
    tokio::spawn(Arc::clone(&instance).tell_often());
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(Arc::clone(&instance).work(seed.wrapping_mul(31).wrapping_add(worker)));
    }
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(word)) = commands.next_line().await {
        match Command::of(&word).expect("a command") {
            Command::Rest => {
                instance.over.store(true, Ordering::SeqCst);
                while let Some(worker) = workers.join_next().await {
                    worker.unwrap();
                }
            }
            Command::Repair => instance.repair().await,
            Command::ReadAll => instance.read_all().await,
        }
        instance.tell_seen();
        tell(&Line::Done);
    }
}

fn tell(line: &Line) {
    println!("{MARK}{}", serde_json::to_string(line).unwrap());
}

impl Instance {
    fn start() -> Self {
        let settings =
            RedisSettings::from_url(&format!("redis://{}", std::env::var(REDIS).unwrap())).unwrap();
        let settings = settings.with_response_timeout(Duration::from_millis(200));
        let policy =
            BusPolicy::default().with_heartbeat(Duration::from_millis(100)).with_trust_for(TRUST_FOR);
        let bus = RedisBus::with_policy(RedisLink::lazy(settings).unwrap(), policy);
        let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
        let caches = Caches::builder().far(far).build().unwrap();
        let origin = Client::new(std::env::var(ORIGIN).unwrap().parse().unwrap());
        let cache = cache(&caches, &origin);
        let number: u32 = std::env::var(NUMBER).unwrap().parse().unwrap();
        let inserts_for = tokio::sync::Mutex::new(number % TENANTS);
        Self { bus, cache, origin, over: AtomicBool::new(false), told: Mutex::default(), inserts_for }
    }

    async fn work(self: Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !self.over.load(Ordering::SeqCst) {
            for _ in 0..BURST {
                // Skewed, as keys are: the low ones are read most.
                let key = rng.random_range(0..KEYS).min(rng.random_range(0..KEYS));
                let entry = (rng.random_range(0..TENANTS), key);
                match rng.random_range(0..2_000) {
                    0..10 => self.write((entry.0, entry.1 % INSERTED), rng.random_range(0..16)).await,
                    10..12 => self.insert().await,
                    12..30 => self.read(entry, true).await,
                    30..40 => self.read_many(entry.0).await,
                    _ => self.read(entry, false).await,
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn read(&self, entry: Entry, fresh: bool) {
        let began = now();
        let row = as_tenant(entry.0, async {
            match fresh {
                true => self.cache.fresh(&entry.1).await,
                false => self.cache.get(&entry.1).await,
            }
        });
        let row = row.await.expect("every read is answered").expect("every row exists");
        self.saw(entry, &row, began);
    }

    async fn read_many(&self, tenant: u32) {
        let (began, keys) = (now(), (0..KEYS).collect::<Vec<_>>());
        let rows = as_tenant(tenant, self.cache.get_many(&keys)).await.expect("every read is answered");
        for (key, row) in keys.into_iter().zip(rows) {
            self.saw((tenant, key), &row.expect("every row exists"), began);
        }
    }

    fn saw(&self, entry: Entry, row: &Row, began: u64) {
        let ended = now();
        let untrusted = self.bus.state().health != BusHealth::Trusted;
        let mut told = self.told.lock().unwrap();
        told.untrusted += u64::from(untrusted);
        if ended - began > told.slowest.1 - told.slowest.0 {
            told.slowest = (began, ended);
        }
        let of = told.seen.entry((entry, row.of, row.version));
        let of = of.or_insert(Seen { reads: 0, last_began: began, first_ended: ended });
        of.reads += 1;
        of.last_began = of.last_began.max(began);
        of.first_ended = of.first_ended.min(ended);
    }

    async fn write(&self, entry: Entry, how: u32) {
        let versions = self.origin.commit(entry).await;
        let (tenant, key) = entry;
        let with_version = |key: u32| ((tenant, key), versions[key as usize]);
        let third = move |other: &u32| *other % 3 == key % 3;
        // What it covers, with what had been committed before it began.
        let committed: Vec<_> = match how {
            0..2 => (0..KEYS).map(with_version).collect(),
            2..4 => (0..KEYS).filter(third).map(with_version).collect(),
            4..6 => [key, (key + 1) % KEYS].into_iter().map(with_version).collect(),
            _ => vec![with_version(key)],
        };
        let done = as_tenant(tenant, async {
            match how {
                0 => self.cache.clear().await,
                1 => self.cache.invalidate_all().await,
                2..4 => self.cache.invalidate_tag(&format!("third-{}", key % 3)).await,
                4..6 => self.cache.invalidate_many(&[key, (key + 1) % KEYS]).await,
                _ => self.cache.invalidate(&key).await,
            }
        });
        match done.await {
            Ok(()) => tell(&Line::Acknowledged { committed, at: now() }),
            Err(_) => tell(&Line::Refused),
        }
    }

    /// Commits the next version of the row that only this instance writes, and stores it instead of removing the old one.
    async fn insert(&self) {
        let tenant = self.inserts_for.lock().await;
        let entry = (*tenant, INSERTED);
        let version = self.origin.commit(entry).await[INSERTED as usize];
        let row = Row { of: entry, version };
        match as_tenant(*tenant, self.cache.insert(&INSERTED, row)).await {
            Ok(()) => tell(&Line::Acknowledged { committed: vec![(entry, version)], at: now() }),
            Err(_) => tell(&Line::Refused),
        }
    }

    async fn repair(&self) {
        for (tenant, key) in entries() {
            let committed = vec![((tenant, key), self.origin.versions(tenant).await[key as usize])];
            while as_tenant(tenant, self.cache.invalidate(&key)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tell(&Line::Acknowledged { committed, at: now() });
        }
    }

    async fn read_all(&self) {
        for entry in entries() {
            self.read(entry, false).await;
            self.read(entry, true).await;
        }
    }

    /// Tells of every change of trust, soon after it.
    async fn watch_trust(self: Arc<Self>) {
        let mut told = None;
        loop {
            let state = self.bus.state();
            let standing = Standing {
                trusted: state.health == BusHealth::Trusted,
                subscribed: state.health != BusHealth::Down,
                pending: state.pending > 0,
            };
            if told.replace(standing) != Some(standing) {
                tell(&Line::Trust(standing));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn tell_often(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.tell_seen();
        }
    }

    fn tell_seen(&self) {
        let Told { seen, slowest: (began, ended), untrusted } =
            std::mem::take(&mut *self.told.lock().unwrap());
        for ((entry, value_of, version), seen) in seen {
            let Seen { reads, last_began, first_ended } = seen;
            tell(&Line::Seen { entry, value_of, version, reads, last_began, first_ended });
        }
        tell(&Line::Slowest { began, ended, untrusted });
        tell(&Line::Counts(self.cache.stats().into()));
    }
}

fn cache(caches: &Caches, origin: &Client) -> TenantCache<u32, Row> {
    let origin = origin.clone();
    let load = move |key: u32| {
        let origin = origin.clone();
        async move {
            let context = RequestContext::current().expect("a load belongs to a request");
            let tenant: u32 = context.tenant.as_str().parse().expect("tenants are numbers");
            let version = origin.load((tenant, key)).await;
            // The row was read; the answer takes its time.
            tokio::time::sleep(LOAD_TAKES).await;
            Ok::<_, CacheError>(Some(Row { of: (tenant, key), version }))
        }
    };
    caches
        .domain("rows")
        .scope(Scope::Tenant)
        .tags(|key: &u32| vec![format!("third-{}", key % 3)])
        .lease_for(Duration::from_millis(300))
        .lease_wait(Duration::from_millis(200))
        .load(load)
        .unwrap()
}

async fn as_tenant<F: Future>(tenant: u32, work: F) -> F::Output {
    RequestContext::new(TenantId::new(tenant.to_string()).unwrap()).scope(work).await
}
