//! Chaos: several instances, each a process of its own, on a real Redis; random reads and writes, random faults, and a
//! checker that knows the truth. `CHAOS_SECONDS` sets how long (default 8), `CHAOS_SEED` which faults.
//!
//! | part | |
//! |---|---|
//! | `origin` | the truth: a version per entry, with the time of each commit |
//! | `instance` | what runs in each process |
//! | `report` | what it tells |
//! | `fleet` | the processes, and the record of what they told |
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
mod report;

mod redis {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use conformance::redis_server::RedisServer;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use crate::faults::{Faults, OUTPUT_LIMIT};
    use crate::fleet::Fleet;
    use crate::instance::{self, TRUST_FOR};
    use crate::origin::Origin;
    use crate::report::{Command, entries};

    const INSTANCES: usize = 3;
    /// In which trust must have returned after Redis and the way to it are well again.
    const RECOVERY: Duration = Duration::from_secs(5);

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
        let mut fleet = Fleet::start(INSTANCES, server.address(), &origin, seed).await;
        let mut faults = Faults { rng: StdRng::seed_from_u64(seed), counts: BTreeMap::new(), dropped: 0 };
        let mut recovery = fleet.trust_returns(Duration::from_secs(20)).await.expect("all begin");
        let (began, mut shown) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(faults.rng.random_range(20..400))).await;
            faults.inject(&mut server, &mut fleet).await;
            fleet.assert_alive();
            if faults.rng.random_bool(0.2) {
                recovery = recovery.max(heal(&mut server, &fleet, seed).await);
            }
            if began.elapsed() - shown > Duration::from_secs(5) {
                shown = began.elapsed();
                progress(shown, &faults, &fleet, &origin);
            }
        }
        recovery = recovery.max(heal(&mut server, &fleet, seed).await);
        come_to_rest(&mut fleet).await;
        conclude(seed, &faults, &fleet, &origin, recovery);
    }

    /// Makes everything well, and waits until every instance trusts its memory again.
    async fn heal(server: &mut RedisServer, fleet: &Fleet, seed: u64) -> Duration {
        server.try_command(&["CLIENT", "UNPAUSE"]).expect("Redis runs between faults");
        for link in &fleet.links {
            link.heal().await;
        }
        // A fault of a link that still ran when all was healed is over by then, too.
        let returned = fleet.trust_returns(RECOVERY + Duration::from_millis(1_600)).await;
        returned.unwrap_or_else(|| panic!("trust did not return by itself; seed {seed}"))
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
        let record = fleet.record.lock().unwrap();
        let verdict = record.check(origin);
        println!(
            "{:>5} s  {:>5} faults  {:>10} reads  worst {:>4} ms  {} violations",
            elapsed.as_secs(),
            faults.total(),
            record.reads,
            verdict.worst.as_millis(),
            verdict.violations.len(),
        );
    }

    fn conclude(seed: u64, faults: &Faults, fleet: &Fleet, origin: &Origin, recovery: Duration) {
        let record = fleet.record.lock().unwrap();
        let verdict = record.check(origin);
        for (kind, count) in &faults.counts {
            println!("{count:>6} × {kind}");
        }
        println!(
            "invalidations acknowledged {} refused {}; reads without trust {}; slowest read {} ms; slowest return \
             of trust {} ms; subscribers dropped for being slow {}",
            record.acknowledged.len(),
            record.refused,
            record.untrusted,
            record.slowest.as_millis(),
            recovery.as_millis(),
            faults.dropped,
        );
        for violation in verdict.violations.iter().take(3) {
            println!("{violation}");
        }
        println!(
            "chaos: seed={seed} faults={} reads={} worst_ms={} bound_ms={} violations={}",
            faults.total(),
            record.reads,
            verdict.worst.as_millis(),
            TRUST_FOR.as_millis(),
            verdict.violations.len(),
        );
        assert!(verdict.violations.is_empty(), "seed {seed}");
        assert!(record.reads > 1_000, "there was something to check: {}", record.reads);
    }
}
