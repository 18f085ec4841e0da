//! A run from its seed to its rest.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use cache_core::{CacheService, Claim, LeaseToken, Lookup};
use conformance::faults::{Gate, Method};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

use crate::call::{Call, Op};
use crate::domains::ms;
use crate::entry::Entry;
use crate::faults::{losses, texts, trouble};
use crate::patience::Patience;
use crate::world::{INSTANCES, Phase, World};

const CALLERS: u64 = 12;
/// Calls of each caller in each of the two phases.
const CALLS: [(Phase, usize); 2] = [(Phase::Storm, 160), (Phase::Breeze, 60)];
/// A runtime whose clock stands for so long is frozen.
const FROZEN: Duration = Duration::from_secs(30);
/// In which what goes on in the background ends.
const QUIET: Duration = Duration::from_secs(20);
/// In which leases end that nobody could give up: those of entries, and of groups.
const LEASES_END: Duration = ms(2_600);

/// What runs came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) last_seed: u64,
    pub(crate) runs: u64,
    pub(crate) reads: u64,
    pub(crate) cancelled: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, (seed, counts, violations): &Outcome) {
        self.last_seed = *seed;
        self.runs += 1;
        for (what, count) in counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.reads = self.count("reads");
        self.cancelled = self.count("calls given up");
        self.violations.extend_from_slice(violations);
    }

    fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 =
            self.counts.iter().filter(|(what, _)| what.starts_with("fault: ")).map(|(_, count)| count).sum();
        let Self { last_seed, runs, reads, cancelled, violations, .. } = self;
        let (calls, violations) = (self.count("calls"), violations.len());
        write!(
            f,
            "last_seed={last_seed} runs={runs} calls={calls} reads={reads} cancelled={cancelled} faults={faults} \
             violations={violations}"
        )
    }
}

type Outcome = (u64, BTreeMap<&'static str, u64>, Vec<String>);

/// Runs one seed on a runtime in a thread of its own, and fails with what is in flight when that comes to a stop.
pub(crate) fn watched(seed: u64) -> Outcome {
    let world = World::new(seed);
    let (done, ended) = mpsc::channel();
    let own = Arc::clone(&world);
    let running = std::thread::spawn(move || {
        run(&own);
        let _ = done.send(());
    });
    let (mut ticks, mut since) = (0, Instant::now());
    loop {
        match ended.recv_timeout(ms(100)) {
            Ok(()) => break,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let panic = running.join().expect_err("it ended without a word");
                std::panic::resume_unwind(panic);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now = world.record.ticks.load(Ordering::Relaxed);
        if now != ticks {
            (ticks, since) = (now, Instant::now());
        }
        let in_flight = || world.record.in_flight().join("\n  ");
        assert!(
            since.elapsed() < FROZEN,
            "seed {seed}: the runtime stands still; in flight are\n  {}",
            in_flight()
        );
    }
    let (counts, violations) = world.record.take();
    (seed, counts, violations)
}

fn run(world: &Arc<World>) {
    let real = world.real;
    let mut builder = if real { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    if real {
        builder.worker_threads(2);
    } else {
        builder.start_paused(true);
    }
    let runtime = builder.enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clock = tokio::spawn(keep_time(Arc::clone(world)));
        for (phase, calls) in CALLS {
            // In real time a run must not take long.
            let calls = if real { calls / 6 } else { calls };
            world.set_phase(phase);
            storm(world, calls).await;
            quiet(world, "after the calls").await;
            if phase == Phase::Storm && !real {
                // Leases that could not be given up end by their own time.
                tokio::time::sleep(LEASES_END).await;
            }
        }
        // In real time nobody waits for the end of those that could not be given up.
        if !real {
            no_lease(world).await;
            give_up(world).await;
            quiet(world, "after all gave up").await;
            no_lease(world).await;
        }
        world.set_phase(Phase::Calm);
        rest(world).await;
        quiet(world, "at rest").await;
        if !real {
            no_lease(world).await;
        }
        let instances = std::mem::take(&mut *world.instances.lock());
        for instance in instances {
            if !instance.caches.shut_down(Duration::from_secs(5)).await {
                world.record.violate("the caches do not shut down");
            }
        }
        clock.abort();
    });
}

/// Everybody leaves while the far tier has granted a lease and the answer is on its way.
async fn give_up(world: &Arc<World>) {
    for (at, entry) in Entry::all().into_iter().enumerate() {
        call(Op::Invalidate, at % INSTANCES, entry, Patience::ToTheEnd).make(world).await;
    }
    let leases = [Method::GetOrLease, Method::LeaseOver, Method::TakeLease];
    (0..INSTANCES).for_each(|at| world.instance(at).far.set_gates(&leases, Gate::HoldAnswer));
    let mut callers = JoinSet::new();
    for (at, entry) in Entry::all().into_iter().enumerate() {
        let world = Arc::clone(world);
        let leaving = call(Op::Get, at % INSTANCES, entry, Patience::Aborted(ms(8)));
        callers.spawn(async move { leaving.make(&world).await });
    }
    callers.join_all().await;
    (0..INSTANCES).for_each(|at| world.instance(at).far.set_all(Gate::Open));
}

fn call(op: Op, instance: usize, entry: Entry, patience: Patience) -> Call {
    let (domain, caller, key) = (entry.domain, entry.caller(), entry.key);
    Call { op, instance, domain, caller, key, commits: false, patience }
}

/// Moves the clock of caches and store along with the runtime's.
async fn keep_time(world: Arc<World>) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(ms(1)).await;
        let now = tokio::time::Instant::now();
        world.hand.advance(now - last);
        last = now;
        world.record.ticks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Callers and faults.
async fn storm(world: &Arc<World>, calls: usize) {
    let seed = world.record.seed.wrapping_mul(1_000).wrapping_add(calls as u64);
    let mut faults = JoinSet::new();
    for instance in 0..INSTANCES {
        faults.spawn(trouble(Arc::clone(world), instance, seed + 100 + instance as u64));
    }
    faults.spawn(losses(Arc::clone(world), seed + 200));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (world, mut rng) = (Arc::clone(world), StdRng::seed_from_u64(seed + caller));
        callers.spawn(async move {
            for _ in 0..calls {
                if world.record.violated() {
                    break;
                }
                let ticks = world.record.ticks.load(Ordering::Relaxed);
                Call::draw(&mut rng, ticks).make(&world).await;
                match rng.random_range(0..3) {
                    0 => tokio::task::yield_now().await,
                    _ => tokio::time::sleep(ms(rng.random_range(0..4))).await,
                }
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller does not panic");
    }
    faults.shutdown().await;
    for instance in 0..INSTANCES {
        world.instance(instance).far.set_all(Gate::Open);
    }
}

/// Waits until nothing goes on but the clock, and nothing is to be repeated.
async fn quiet(world: &Arc<World>, when: &str) {
    let metrics = Handle::current().metrics();
    let pending = || (0..INSTANCES).map(|at| world.instance(at).caches.pending()).sum::<usize>();
    let deadline = tokio::time::Instant::now() + QUIET;
    while metrics.num_alive_tasks() > 1 || pending() > 0 {
        if tokio::time::Instant::now() >= deadline {
            let (tasks, pending) = (metrics.num_alive_tasks() - 1, pending());
            world.record.violate(&format!(
                "{when} {tasks} tasks and {pending} invalidations are left; in flight are {:?}",
                world.record.in_flight()
            ));
            return;
        }
        tokio::time::sleep(ms(1)).await;
    }
}

/// No key of the far tier is held by a lease.
async fn no_lease(world: &Arc<World>) {
    for text in texts() {
        let token = LeaseToken::random();
        let lookup = world.store.get_or_lease(&text, token, ms(1_000)).await.expect("a store in memory");
        if lookup == Lookup::Busy {
            world.record.violate(&format!("a lease is left on {text}"));
        }
        world.store.release(&text, &Claim::lease(token)).await.expect("a store in memory");
    }
}

/// Every instance reads what the origin holds, from whichever tier, once every change was acknowledged.
async fn rest(world: &Arc<World>) {
    for (at, entry) in world.origin.unacknowledged().into_iter().enumerate() {
        call(Op::Invalidate, at % INSTANCES, entry, Patience::ToTheEnd).make(world).await;
    }
    for op in [Op::Lookup, Op::Peek, Op::Fresh, Op::GetMany, Op::Peek] {
        for entry in Entry::all() {
            for instance in 0..INSTANCES {
                call(op, instance, entry, Patience::ToTheEnd).make(world).await;
            }
        }
    }
}
