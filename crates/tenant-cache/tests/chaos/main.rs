//! Chaos: several instances, each a process of its own, on a real Redis; random reads and writes, random faults, and a
//! checker that knows the truth. `CHAOS_SECONDS` sets how long (default 8), `CHAOS_SEED` which faults.
//!
//! | part | |
//! |---|---|
//! | `origin` | the truth: a version per entry, with the time of each commit |
//! | `instance` | what runs in each process |
//! | `report` | what it tells |
//! | `record` | what all told, and whether it keeps the promises |
//! | `fleet` | the processes |
//! | `faults` | what goes wrong |
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and shows its progress"
)]

mod faults;
mod fleet;
mod instance;
mod origin;
mod record;
mod report;

mod redis {
    use std::time::{Duration, Instant};

    use conformance::history::Violation;
    use conformance::redis_server::RedisServer;
    use rand::Rng;

    use crate::faults::{Faults, OUTPUT_LIMIT};
    use crate::fleet::Fleet;
    use crate::instance::{self, TRUST_FOR};
    use crate::origin::Origin;
    use crate::report::{Command, entries};

    const INSTANCES: usize = 3;
    /// In which trust must have returned after Redis and the way to it are well again: 5 s, and what a fault of a link
    /// that began just before lasts.
    const RECOVERY: Duration = Duration::from_millis(6_600);

    /// In which every read is answered: an attempt to connect (1 s), calls that time out (200 ms each), and a load,
    /// on a machine that does other things, too.
    const ANSWERED: Duration = Duration::from_secs(4);

    fn setting(name: &str, default: u64) -> u64 {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// Not a test by itself: the process that a run starts several times.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "an instance of a fleet, started by the run"]
    async fn instance_of_a_fleet() {
        instance::run().await;
    }

    /// P1, P2, P3, P5, SE17, SH8: whatever happens to Redis, to the way there and to the instances, no instance misses
    /// its own write, none is behind another's by more than the bound, no tenant sees another's row, and every read is
    /// answered; when it is over, trust returns by itself, and all tiers of all instances hold what the origin holds.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn promises_hold_whatever_happens() {
        let (seconds, seed) =
            (setting("CHAOS_SECONDS", 8), setting("CHAOS_SEED", rand::random::<u32>().into()));
        // What Redis acknowledged it must still know when it comes back with its data.
        let mut server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        server.command(&OUTPUT_LIMIT);
        let origin = Origin::start().await;
        let mut faults = Faults::new(seed);
        let mut fleet = Fleet::start(INSTANCES, server.address(), &origin, seed).await;
        let mut recovery = fleet.trust_returns(Duration::from_secs(20)).await.expect("all begin");
        let (began, mut shown) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(faults.rng.random_range(20..400))).await;
            faults.inject(&mut server, &mut fleet).await;
            fleet.assert_alive();
            if faults.rng.random_bool(0.2) {
                recovery = recovery.max(heal(&mut server, &fleet).await);
            }
            if began.elapsed() - shown > Duration::from_secs(5) {
                shown = began.elapsed();
                progress(shown, &faults, &fleet, &origin);
            }
        }
        recovery = recovery.max(heal(&mut server, &fleet).await);
        come_to_rest(&mut fleet).await;
        conclude(seed, &faults, &fleet, &origin, recovery);
    }

    /// Makes everything well, and waits until every instance trusts its memory again: how long that took.
    async fn heal(server: &mut RedisServer, fleet: &Fleet) -> Duration {
        server.try_command(&["CLIENT", "UNPAUSE"]).expect("Redis runs between faults");
        for link in &fleet.links {
            link.heal().await;
        }
        let began = Instant::now();
        if let Some(returned) = fleet.trust_returns(RECOVERY).await {
            return returned;
        }
        println!("trust did not return in time: {:?}", fleet.record.lock().unwrap().trusted);
        let returned = fleet.trust_returns(Duration::from_secs(30)).await;
        assert!(
            returned.is_some(),
            "trust does not return at all: {:?}",
            fleet.record.lock().unwrap().trusted
        );
        began.elapsed()
    }

    /// P3: at rest every instance reads what the origin holds, from whichever tier.
    async fn come_to_rest(fleet: &mut Fleet) {
        fleet.command(None, Command::Rest).await;
        // Invalidations that failed were not repeated by their callers: only the acknowledged ones are owed.
        fleet.command(0, Command::Repair).await;
        tokio::time::sleep(TRUST_FOR).await;
        let before = fleet.record.lock().unwrap().reads;
        fleet.command(None, Command::ReadAll).await;
        // After the bound every read of an older version is a violation of P2: the verdict says so.
        let read = fleet.record.lock().unwrap().reads - before;
        assert_eq!(read, (INSTANCES * entries().count() * 2) as u64);
    }

    fn progress(elapsed: Duration, faults: &Faults, fleet: &Fleet, origin: &Origin) {
        let mut record = fleet.record.lock().unwrap();
        record.settle(origin);
        println!(
            "{:>5} s  {:>5} faults  {:>10} reads  worst {:>4} ms  {} violations",
            elapsed.as_secs(),
            faults.total(),
            record.reads,
            record.worst.as_millis(),
            record.violated,
        );
    }

    fn conclude(seed: u64, faults: &Faults, fleet: &Fleet, origin: &Origin, recovery: Duration) {
        let mut record = fleet.record.lock().unwrap();
        record.settle_all(origin);
        for (kind, count) in &faults.counts {
            println!("{count:>6} × {kind}");
        }
        let counts = record.counts();
        println!("reads ended without trust: {}; slowest read {:?}", record.untrusted, record.slowest);
        println!("slowest return of trust after a healing: {recovery:?}");
        println!("invalidations: {} acknowledged, {} refused", record.acknowledged, record.refused);
        println!(
            "answers: {} near, {} far; failures of the far tier {}",
            counts.near, counts.far, counts.far_failures
        );
        println!(
            "loads: {}, of them {} without a lease; {} fills refused; {} loads overlapped another of their entry",
            counts.loads,
            counts.uncached,
            counts.refused_fills,
            origin.overlaps(),
        );
        println!("subscribers dropped for being slow: {}", faults.dropped);
        for violation in record.violations.iter().take(3) {
            println!("{violation}");
            for (at, kind) in faults.before(began(violation)) {
                println!("  {at:>12?} fault: {kind}");
            }
        }
        println!(
            "chaos: seed={seed} faults={} reads={} worst_ms={} bound_ms={} violations={}",
            faults.total(),
            record.reads,
            record.worst.as_millis(),
            TRUST_FOR.as_millis(),
            record.violated,
        );
        assert_eq!(record.violated, 0, "seed {seed}");
        assert!(record.reads > 1_000, "there was something to check: {}", record.reads);
        assert!(recovery < RECOVERY, "trust took {recovery:?} to return");
        assert!(record.slowest < ANSWERED, "a read took {:?}", record.slowest);
    }

    /// When the read that breaks a promise began.
    fn began(violation: &Violation) -> Duration {
        let (Violation::OwnWrite(read, _)
        | Violation::Stale(read, _)
        | Violation::Foreign(read)
        | Violation::Future(read)) = violation;
        read.began
    }
}
