//! What callers do.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use rand::rngs::StdRng;
use tenant_cache::RequestScope;

use crate::check::{Check, Ended};
use crate::domains::{DOMAINS, Rows, ms};
use crate::entry::{Caller, Entry, KEYS, Row, TENANTS, USERS, key_tag, late_tag};
use crate::patience::Patience;
use crate::world::{INSTANCES, Instance, World};

/// In which every call ends that has no limit of its own: some loads that ask for each other, each with its far tier
/// held, and nothing that waits for ever.
const LIMIT: Duration = Duration::from_secs(15);

/// For how many ticks callers are after one entry.
const HOT_FOR: u64 = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    Lookup,
    GetMany,
    Fresh,
    Refresh,
    Peek,
    Contains,
    Insert,
    Invalidate,
    InvalidateMany,
    InvalidateAll,
    Tag,
    LateTag,
    Clear,
    Prefix,
    Everything,
}

impl Op {
    fn draw(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..28 => Self::Get,
            28..40 => Self::Lookup,
            40..50 => Self::GetMany,
            50..58 => Self::Fresh,
            58..63 => Self::Refresh,
            63..68 => Self::Peek,
            68..70 => Self::Contains,
            70..78 => Self::Insert,
            78..90 => Self::Invalidate,
            90..93 => Self::InvalidateMany,
            93..95 => Self::InvalidateAll,
            95..97 => Self::Tag,
            97 => Self::LateTag,
            98 => Self::Clear,
            _ if rng.random_bool(0.5) => Self::Prefix,
            _ => Self::Everything,
        }
    }

    fn writes(self) -> bool {
        !matches!(
            self,
            Self::Get
                | Self::Lookup
                | Self::GetMany
                | Self::Fresh
                | Self::Refresh
                | Self::Peek
                | Self::Contains
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) instance: usize,
    pub(crate) domain: usize,
    pub(crate) caller: Caller,
    pub(crate) key: u32,
    /// Commits a new version before it writes.
    pub(crate) commits: bool,
    pub(crate) patience: Patience,
}

impl Call {
    /// Every other call is for the entry that all are after at this time, so that calls meet.
    pub(crate) fn draw(rng: &mut StdRng, ticks: u64) -> Self {
        let (hot, turn) = (rng.random_bool(0.5), (ticks / HOT_FOR) as usize);
        let domain = if hot { turn % DOMAINS.len() } else { rng.random_range(0..DOMAINS.len()) };
        let user = rng.random_range(0..=USERS);
        let anonymous = user == USERS && DOMAINS[domain].scope != cache_core::Scope::User;
        let caller = Caller {
            tenant: if hot { 0 } else { rng.random_range(0..TENANTS) },
            user: (!anonymous).then_some(user % USERS),
        };
        let op = match Op::draw(rng) {
            // What is inserted has no tags of the loader's: their invalidation would not concern it.
            Op::Insert if DOMAINS[domain].loader_tags => Op::Invalidate,
            op => op,
        };
        Self {
            op,
            instance: rng.random_range(0..INSTANCES),
            domain,
            caller,
            // Skewed, as keys are.
            key: match hot {
                true => (turn / DOMAINS.len()) as u32 % 2,
                false => rng.random_range(0..KEYS).min(rng.random_range(0..KEYS)),
            },
            commits: rng.random_bool(0.8),
            patience: Patience::draw(rng),
        }
    }

    pub(crate) fn entry(&self) -> Entry {
        self.caller.entry(self.domain, self.key)
    }

    /// The keys of a call for several.
    pub(crate) fn several(&self) -> [u32; 3] {
        [self.key, (self.key + 1) % KEYS, (self.key + 2) % KEYS]
    }

    /// Whether what happens in this call may matter to the other.
    pub(crate) fn concerns(&self, other: &Self) -> bool {
        let mine: Vec<Entry> = if self.op.writes() { self.covers() } else { vec![self.entry()] };
        mine.contains(&other.entry()) || self.op == Op::GetMany && self.domain == other.domain
    }

    /// The entries of which it is a promise that no older version is read afterwards.
    fn covers(&self) -> Vec<Entry> {
        let own = self.entry();
        let all = |covered: &dyn Fn(&Entry) -> bool| Entry::all().into_iter().filter(covered).collect();
        match self.op {
            Op::InvalidateMany => self.several().map(|key| Entry { key, ..own }).to_vec(),
            Op::InvalidateAll => all(&|entry| entry.domain == own.domain && entry.tenant == own.tenant),
            Op::Tag => {
                let tag = Some(key_tag(own.key));
                all(&|entry| entry.tenant == own.tenant && entry.tag() == tag)
            }
            Op::LateTag => {
                let tag = Some(late_tag(own.key));
                all(&|entry| entry.tenant == own.tenant && entry.late_tag() == tag)
            }
            Op::Clear => all(&|entry| entry.domain == own.domain),
            Op::Prefix => all(&|entry| Entry { key: own.key, ..*entry } == own),
            Op::Everything => Entry::all(),
            _ => vec![own],
        }
    }

    /// In which it ends.
    fn limit(&self, real: bool) -> Duration {
        let slack = if real { Duration::from_secs(5) } else { ms(20) };
        match (self.op, DOMAINS[self.domain].hard_timeout) {
            (Op::Get | Op::Lookup | Op::Fresh, Some(limit)) => limit + slack + self.patience.adds(),
            _ => LIMIT,
        }
    }

    /// Makes the call, and checks what comes of it.
    pub(crate) async fn make(self, world: &Arc<World>) {
        let step = world.record.begin(self);
        let ended = Ended { world: Arc::clone(world), step };
        world.record.count("calls", 1);
        let check = Check { world, step, call: self };
        let own = Arc::clone(world);
        let work = Box::pin(self.caller.context().scope(async move { self.run(&own, step).await }));
        let waiting = AssertUnwindSafe(self.patience.wait(work)).catch_unwind();
        match tokio::time::timeout(self.limit(world.real), waiting).await {
            Err(_) => check.violate(&format!(
                "has not ended; in flight are\n  {}",
                world.record.in_flight().join("\n  ")
            )),
            Ok(Err(_)) => check.violate("panics"),
            Ok(Ok(None)) => world.record.count("calls given up", 1),
            Ok(Ok(Some(()))) => {}
        }
        drop(ended);
    }

    async fn run(self, world: &World, step: u64) {
        let check = Check { world, step, call: self };
        let instance = world.instance(self.instance);
        let cache = &instance.domains[self.domain];
        match self.op {
            Op::Refresh if DOMAINS[self.domain].hard_timeout.is_some() => {
                // A forced load takes as long as it takes: it is the caller who must not wait for one that hangs.
                let _ = tokio::time::timeout(ms(200), check.read(cache)).await;
            }
            Op::Contains => {
                let found = cache.contains(&self.key).await;
                check.written(found);
            }
            Op::Insert => self.insert(check, cache).await,
            op if op.writes() => self.invalidate(check, &instance).await,
            // An error was looked at.
            _ => drop(check.read(cache).await),
        }
    }

    async fn insert(self, check: Check<'_>, cache: &Rows) {
        let (origin, of) = (&check.world.origin, self.entry());
        let turn = origin.turn(of).await;
        let version = origin.commit(of, true);
        let done = cache.insert(&self.key, Row { of, version, fallback: false }).await;
        if check.written(done).is_some() {
            origin.acknowledge(&[crate::origin::Floor { entry: of, version }]);
            check.world.record.note(check.step, self, format!("inserted {version}"));
        }
        drop(turn);
    }

    async fn invalidate(self, check: Check<'_>, instance: &Instance) {
        let (origin, own) = (&check.world.origin, self.entry());
        if self.commits {
            let turn = origin.turn(own).await;
            origin.commit(own, !check.step.is_multiple_of(4));
            drop(turn);
        }
        let floors = origin.committed(&self.covers());
        let cache = &instance.domains[self.domain];
        let text = own.text();
        let done = match self.op {
            Op::InvalidateMany => cache.invalidate_many(&self.several()).await,
            Op::InvalidateAll => cache.invalidate_all().await,
            Op::Tag => cache.invalidate_tag(&key_tag(self.key)).await,
            Op::LateTag => cache.invalidate_tag(&late_tag(self.key)).await,
            Op::Clear => cache.clear().await,
            Op::Prefix => instance.caches.invalidate_prefix(&text[..text.len() - 1]).await.map(drop),
            Op::Everything => instance.caches.invalidate_everything().await,
            _ => cache.invalidate(&self.key).await,
        };
        if check.written(done).is_some() {
            origin.acknowledge(&floors);
            check.world.record.count("acknowledged invalidations", 1);
            let at = floors.iter().find(|floor| floor.entry == own).map(|floor| floor.version);
            check.world.record.note(check.step, self, format!("acknowledged, own entry at {at:?}"));
        }
    }
}
