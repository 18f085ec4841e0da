//! A thousand callers of a cold key, in two processes: how often it is loaded, and how long they wait.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cache_core::bus::BusHealth;
use cache_core::{InvalidationBus, Scope};
use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::redis_server::RedisServer;
use tenant_cache::{Caches, RequestScope, TenantCache};
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{request, runtime};

const CALLERS: usize = 500;
const LOAD: Duration = Duration::from_millis(50);

struct Process {
    runtime: Runtime,
    cache: TenantCache<u64, u64>,
    loads: Arc<AtomicUsize>,
}

impl Process {
    fn start(redis: &str) -> Result<Self> {
        let (runtime, loads) = (runtime(1), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&loads);
        let (cache, bus) = runtime.block_on(async {
            let bus = RedisBus::with_policy(
                RedisLink::lazy(RedisSettings::from_url(redis)?)?,
                BusPolicy::default(),
            );
            let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
            let domain = Caches::builder().far(far).build()?.domain("cold").scope(Scope::Tenant);
            let cache: TenantCache<u64, u64> = domain.load(move |key: u64| {
                counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::time::sleep(LOAD).await;
                    Ok::<_, std::io::Error>(Some(key))
                }
            })?;
            anyhow::Ok((cache, bus))
        })?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while bus.state().health != BusHealth::Trusted {
            anyhow::ensure!(Instant::now() < deadline, "the bus is not trusted");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { runtime, cache, loads })
    }

    /// All callers ask for a key; the loads this process ran, and how long the last of them waited.
    fn rush(&self, key: u64) -> (usize, Duration) {
        let (before, began) = (self.loads.load(Ordering::SeqCst), Instant::now());
        self.runtime.block_on(async {
            let mut callers = tokio::task::JoinSet::new();
            for _ in 0..CALLERS {
                let cache = self.cache.clone();
                callers.spawn(request().scope(async move { cache.get(&key).await.expect("a value") }));
            }
            callers.join_all().await;
        });
        (self.loads.load(Ordering::SeqCst) - before, began.elapsed())
    }
}

/// Answers each line on its input (a key) with what its rush came to.
pub fn second_process(redis: &str) -> Result<()> {
    let process = Process::start(redis)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let (loads, took) = process.rush(line?.parse()?);
        println!("{loads} {}", took.as_micros());
    }
    Ok(())
}

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let server = RedisServer::start();
    let here = Process::start(&server.url())?;
    let mut there = Command::new(std::env::current_exe()?)
        .args(["--stampede", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = there.stdin.take().context("an input")?;
    let mut answers = BufReader::new(there.stdout.take().context("an output")?).lines();
    if answers.next().context("a greeting")?? != "ready" {
        bail!("the second process did not start");
    }
    let (mut loads, mut time) =
        (Measured::new("stampede_loads", "count"), Measured::new("stampede", "ratio"));
    for key in 0..size.rounds as u64 * 2 {
        writeln!(ask, "{key}")?;
        let (mine, took) = here.rush(key);
        let answer = answers.next().context("an answer")??;
        let (theirs, theirs_took) = answer.split_once(' ').context("two numbers")?;
        let slower = took.max(Duration::from_micros(theirs_took.parse()?));
        loads.add("ours", (mine + theirs.parse::<usize>()?) as f64);
        time.add("ours", slower.as_secs_f64() / LOAD.as_secs_f64());
    }
    drop(ask);
    there.wait()?;
    report.at_most("stampede: loads of 1 000 callers in two processes", loads.median("ours"), 1.0);
    report.at_most("stampede: the slowest caller / the load", time.median("ours"), 1.3);
    report.finish(loads);
    report.finish(time);
    Ok(())
}
