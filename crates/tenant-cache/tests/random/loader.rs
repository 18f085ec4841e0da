//! The functions that caches are given: they fail, panic, hang, and ask for other entries.

use std::collections::HashMap;
use std::fmt;
use std::panic::panic_any;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Scope};
use futures_util::future::BoxFuture;
use rand::Rng;
use tenant_cache::{LoadRequest, Loaded};

use crate::check::read;
use crate::domains::{DOMAINS, ms, width};
use crate::entry::{Caller, Entry, Row, late_tag};
use crate::world::{Phase, World};

/// What the functions of a cache know.
#[derive(Debug, Clone)]
pub(crate) struct Functions {
    pub(crate) world: Arc<World>,
    pub(crate) instance: usize,
    pub(crate) domain: usize,
}

/// Keys that loaders ask for: few, so that loads meet each other.
const ASKED: u32 = 2;

/// A panic that is meant.
struct Planned;

/// Keeps what is meant out of the output.
pub(crate) fn silence_planned_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let bulk = info.payload().downcast_ref::<&str>() == Some(&"the bulk loader panicked");
        if !bulk && !info.payload().is::<Planned>() {
            usual(info);
        }
    }));
}

/// A failure that is meant.
#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as the test wants it")
    }
}

impl std::error::Error for Failed {}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a load ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Well,
    Fails,
    Panics,
    Hangs,
}

/// How a load goes.
#[derive(Debug)]
struct Course {
    /// Before the row is read, and after it.
    pauses: (Duration, Duration),
    /// Another entry that is asked for, whether in the same task, and whether its failure is this one's.
    asks: Option<(usize, u32, bool, bool)>,
    end: End,
}

impl Functions {
    fn course(&self) -> Course {
        let (phase, spec) = (self.world.phase(), &DOMAINS[self.domain]);
        let rng = &mut *self.world.dice.lock();
        let pause = |rng: &mut rand::rngs::StdRng| match rng.random_range(0..10) {
            0..5 => Duration::ZERO,
            5..9 => ms(rng.random_range(1..6)),
            _ => ms(rng.random_range(10..60)),
        };
        if phase == Phase::Calm {
            return Course { pauses: (Duration::ZERO, Duration::ZERO), asks: None, end: End::Well };
        }
        let other = rng.random_range(0..DOMAINS.len());
        let asks = rng.random_bool(0.3) && width(DOMAINS[other].scope) >= width(spec.scope);
        let with_user = !(DOMAINS[other].scope == Scope::User && spec.scope != Scope::User);
        let end = match rng.random_range(0..100) {
            0..8 => End::Fails,
            8..11 => End::Panics,
            11..14 if spec.hard_timeout.is_some() && phase == Phase::Storm => End::Hangs,
            _ => End::Well,
        };
        let asked = (other, rng.random_range(0..ASKED), rng.random_bool(0.7), rng.random_bool(0.5));
        Course { pauses: (pause(rng), pause(rng)), asks: (asks && with_user).then_some(asked), end }
    }

    /// Runs a load of some keys: the version of each, and whether it is a row.
    async fn run(&self, keys: &[u32]) -> Result<Vec<(Entry, usize, bool)>, Failure> {
        self.world.record.count("loads", 1);
        let course = self.course();
        let caller = self.caller();
        tokio::time::sleep(course.pauses.0).await;
        let entries = keys.iter().map(|key| caller.entry(self.domain, *key));
        let origin = &self.world.origin;
        let rows =
            entries.map(|entry| (entry, origin.load(entry))).map(|(entry, (v, there))| (entry, v, there));
        let rows = rows.collect();
        if let Some((domain, key, here, passes_on)) = course.asks {
            let asking: BoxFuture<'static, Result<(), CacheError>> =
                Box::pin(read(Arc::clone(&self.world), self.instance, caller, domain, key));
            let asked = match here {
                true => asking.await,
                false => tokio::spawn(tenant_cache::ambient::carry(asking)).await?,
            };
            if passes_on {
                asked?;
            }
        }
        tokio::time::sleep(course.pauses.1).await;
        match course.end {
            End::Well => Ok(rows),
            End::Fails => Err(Failed.into()),
            End::Panics => panic_any(Planned),
            End::Hangs => {
                // Beyond the limit of every lookup that waits for it.
                tokio::time::sleep(ms(400)).await;
                Err(Failed.into())
            }
        }
    }

    /// Whose load it is: in the scope of its entry, and no further.
    fn caller(&self) -> Caller {
        let (running, scope) = (Caller::running(), DOMAINS[self.domain].scope);
        let right = match (scope, running) {
            (Scope::Global, running) => running.is_none(),
            (Scope::Tenant, Some(caller)) => caller.user.is_none(),
            (Scope::User, Some(caller)) => caller.user.is_some(),
            (_, running) => running.is_some(),
        };
        if !right {
            self.world.record.violate(&format!("a load of {scope:?} runs as {running:?}"));
        }
        running.unwrap_or(Caller { tenant: 0, user: None })
    }

    fn may(&self, probability: f64) -> bool {
        self.world.phase() != Phase::Calm && self.world.dice.lock().random_bool(probability)
    }

    /// Panics at times.
    pub(crate) fn hook(&self) {
        if self.may(0.01) {
            panic_any(Planned);
        }
    }

    /// Answers, passes on, or panics.
    pub(crate) fn fall_back(&self, key: u32) -> Option<Row> {
        if DOMAINS[self.domain].panics && self.may(0.1) {
            panic_any(Planned);
        }
        let of = self.caller().entry(self.domain, key);
        self.may(0.5).then_some(Row { of, version: 0, fallback: true })
    }
}

pub(crate) async fn load(functions: Functions, key: u32) -> Result<Option<Row>, Failure> {
    let rows = functions.run(&[key]).await?;
    let (of, version, there) = rows[0];
    Ok(there.then_some(Row { of, version, fallback: false }))
}

pub(crate) async fn bulk(functions: Functions, keys: Vec<u32>) -> Result<HashMap<u32, Row>, Failure> {
    let rows = functions.run(&keys).await?.into_iter().filter(|(_, _, there)| *there);
    Ok(rows.map(|(of, version, _)| (of.key, Row { of, version, fallback: false })).collect())
}

/// A loader that says how long its answer lives, which tags it has, and whether it is the one that is known.
pub(crate) async fn conditional(
    functions: Functions,
    request: LoadRequest<u32, Row>,
) -> Result<Loaded<Row>, Failure> {
    let (of, version, there) = functions.run(&[request.key]).await?[0];
    if let Some(stale) = request.stale.as_deref().filter(|stale| stale.of != of || stale.fallback) {
        functions.world.record.violate(&format!("a load of {of:?} is shown {stale:?}"));
    }
    let known = request.stale.is_some_and(|stale| there && stale.version == version);
    let loaded = match there {
        true if known => Loaded::not_modified(),
        true => Loaded::value(Row { of, version, fallback: false }),
        false => Loaded::absent(),
    };
    let loaded = loaded.tag(late_tag(request.key));
    Ok(match functions.world.dice.lock().random_range(0..6) {
        0 => loaded.ttl(Duration::ZERO),
        1 => loaded.ttl(ms(20)),
        _ => loaded,
    })
}
