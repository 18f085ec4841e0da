//! `cargo xtask test`: every test, on real servers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use conformance::redis_server::{RedisServer, SHARED_URL_VARIABLE};

use crate::process::{cargo, has_subcommand, root};
use crate::redis;

/// Backends by the name with which their conformance tests begin.
const BACKENDS: [&str; 5] = ["moka", "local", "redis", "sentinel", "cluster"];

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Which backends' tests to run.
    #[arg(long, value_enum, default_value_t = Backend::All)]
    backend: Backend,
    /// Fewer random cases.
    #[arg(long)]
    quick: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Backend {
    /// In-process only; needs no Redis.
    Moka,
    /// One Redis server.
    Redis,
    /// A master found through Sentinel.
    Sentinel,
    /// Redis Cluster.
    Cluster,
    /// All there are.
    All,
}

impl Options {
    /// Everything, in full.
    pub(crate) fn all() -> Self {
        Self { backend: Backend::All, quick: false }
    }
}

impl Backend {
    /// Backends of which at least one case must have run.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Moka => &["moka", "local"],
            Self::Redis => &["redis"],
            Self::Sentinel => &["sentinel"],
            Self::Cluster => &["cluster"],
            Self::All => &["moka", "local", "redis"],
        }
    }

    fn needs_redis(self) -> bool {
        self != Self::Moka
    }

    /// The tests to run, as a filter of nextest and as words that libtest leaves out. Tests that need Redis
    /// stand in a module `redis`, or in a test binary of that name.
    fn filter(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Moka => Some("not (package(cache-redis) | test(/(^|::)redis::/) | binary(redis))"),
            Self::Redis => Some("package(cache-redis) | test(/(^|::)redis::/) | binary(redis)"),
            Self::Sentinel => Some("test(/^sentinel::/)"),
            Self::Cluster => Some("test(/^cluster::/)"),
        }
    }
}

/// Results by suite and backend, or by crate.
#[derive(Default)]
struct Table {
    rows: BTreeMap<(String, String), Row>,
}

#[derive(Default, Clone, Copy)]
struct Row {
    passed: u64,
    failed: u64,
    time: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let server = if options.backend.needs_redis() {
        redis::ensure()?;
        Some(RedisServer::start())
    } else {
        None
    };
    let mut table = Table::default();
    let nextest = has_subcommand("nextest");
    let mut command = cargo();
    match nextest {
        true => command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--color", "never"]),
        false => command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]),
    };
    command.args(["--all-features"]);
    if let Some(filter) = options.backend.filter() {
        if !nextest {
            bail!("choosing a backend needs cargo-nextest (`cargo install cargo-nextest --locked`)");
        }
        command.args(["-E", filter]);
    }
    if let Some(server) = &server {
        command.env(SHARED_URL_VARIABLE, server.url());
    }
    if options.quick {
        command.env("PROPTEST_CASES", "32");
    }
    let tests = stream(&mut command, &mut table);
    let docs = if options.backend == Backend::All {
        stream(cargo().args(["test", "--workspace", "--doc", "--all-features"]), &mut table)
    } else {
        Ok(())
    };
    table.print(options.backend, started.elapsed());
    tests?;
    docs?;
    table.check(options.backend)
}

/// Runs a test runner, shows what it prints, and counts.
fn stream(command: &mut Command, table: &mut Table) -> Result<()> {
    // Both streams into one: runners differ in which they speak on.
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).current_dir(root());
    let mut child = command.spawn().context("cannot run cargo")?;
    // The command keeps its ends of the pipe open; ours would wait for them for ever.
    *command = Command::new("true");
    let mut binary = String::new();
    for line in BufReader::new(reader).lines() {
        let line = line.unwrap_or_default();
        println!("{line}");
        if let Some(name) = binary_of(&line) {
            binary = name;
        }
        if let Some(result) = parse(&line) {
            let binary = result.binary.as_deref().unwrap_or(&binary);
            table.count(binary, result.name, result.passed, result.time);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

struct Outcome<'a> {
    /// The test binary, where the line names it.
    binary: Option<String>,
    name: &'a str,
    passed: bool,
    time: Duration,
}

/// Reads a line of nextest (`PASS [   0.004s] ( 1/17) cache-core bus::tests::x`) or of libtest
/// (`test bus::tests::x ... ok`).
fn parse(line: &str) -> Option<Outcome<'_>> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("test ") {
        let (name, verdict) = rest.rsplit_once(" ... ")?;
        let passed = verdict.starts_with("ok");
        let counted = passed || verdict.starts_with("FAILED");
        return counted.then_some(Outcome { binary: None, name, passed, time: Duration::ZERO });
    }
    let (verdict, rest) = line.split_once(" [")?;
    let passed = match verdict.trim() {
        "PASS" => true,
        "FAIL" | "TIMEOUT" | "SIGABRT" | "SIGSEGV" => false,
        _ => return None,
    };
    let (time, rest) = rest.split_once("s] (")?;
    let seconds: f64 = time.trim().parse().ok()?;
    let (_, rest) = rest.split_once(") ")?;
    let (binary, name) = rest.split_once(' ')?;
    Some(Outcome { binary: Some(binary.to_owned()), name, passed, time: Duration::from_secs_f64(seconds) })
}

/// Reads `Running unittests src/lib.rs (target/debug/deps/cache_core-1a2b)` and `Doc-tests cache_core`.
fn binary_of(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{} (docs)", name.replace('_', "-")));
    }
    let path = line.strip_prefix("Running ")?.rsplit_once('/')?.1;
    Some(path.rsplit_once('-')?.0.replace('_', "-"))
}

impl Table {
    fn count(&mut self, binary: &str, name: &str, passed: bool, time: Duration) {
        let mut parts = name.split("::");
        let key = match (parts.next(), parts.next(), parts.next()) {
            (Some(backend), Some(suite), Some(_)) if BACKENDS.contains(&backend) => {
                (suite.to_owned(), backend.to_owned())
            }
            _ => ("~".to_owned(), binary.split("::").next().unwrap_or(binary).to_owned()),
        };
        let row = self.rows.entry(key).or_default();
        if passed {
            row.passed += 1;
        } else {
            row.failed += 1;
        }
        row.time += time;
    }

    fn print(&self, backend: Backend, took: Duration) {
        println!("\n{:<12} {:<24} {:>7} {:>7} {:>9}", "suite", "backend", "passed", "failed", "time");
        for ((suite, name), row) in &self.rows {
            let suite = if suite == "~" { "own tests" } else { suite };
            let time = row.time.as_secs_f64();
            println!("{suite:<12} {name:<24} {:>7} {:>7} {time:>8.2}s", row.passed, row.failed);
        }
        if backend == Backend::All {
            for name in BACKENDS.iter().filter(|name| self.cases(name) == 0) {
                println!("{:<12} {name:<24} no cases yet", "-");
            }
        }
        let total = |of: fn(&Row) -> u64| self.rows.values().map(of).sum::<u64>();
        println!("\nin {:.0} s", took.as_secs_f64());
        println!("{} passed, {} failed", total(|row| row.passed), total(|row| row.failed));
    }

    fn cases(&self, backend: &str) -> u64 {
        self.rows
            .iter()
            .filter(|((suite, name), _)| suite != "~" && name == backend)
            .map(|(_, row)| row.passed)
            .sum()
    }

    /// A backend that was asked for and ran no case is a failure, never a skip.
    fn check(&self, backend: Backend) -> Result<()> {
        for name in backend.required() {
            if self.cases(name) == 0 {
                bail!("no case of the backend `{name}` ran");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_runners_are_read() {
        let line = "        PASS [   0.004s] ( 1/17) cache-moka::conformance moka::cache::set_then_get";
        let outcome = parse(line).expect("a result");
        assert_eq!(outcome.binary.as_deref(), Some("cache-moka::conformance"));
        assert_eq!((outcome.name, outcome.passed), ("moka::cache::set_then_get", true));
        assert!(!parse("  FAIL [  10.004s] (1/2) a b::c").expect("a result").passed);
        assert!(parse("test a::b ... ok").expect("a result").passed);
        assert!(!parse("test a::b ... FAILED").expect("a result").passed);
        for line in
            ["test a::b ... ignored", "test result: ok. 3 passed", "    Summary [ 0.1s] 3 tests run", ""]
        {
            assert!(parse(line).is_none(), "{line}");
        }
        let running = "     Running unittests src/lib.rs (target/debug/deps/cache_core-1a2b)";
        assert_eq!(binary_of(running).as_deref(), Some("cache-core"));
    }

    #[test]
    fn a_backend_without_cases_is_a_failure() {
        let mut table = Table::default();
        table.count("cache-moka::conformance", "moka::cache::x", true, Duration::ZERO);
        table.count("concurrency::conformance", "local::lock::x", true, Duration::ZERO);
        table.count("cache-core", "redis::nothing", true, Duration::ZERO);
        assert!(table.check(Backend::Moka).is_ok());
        assert!(table.check(Backend::All).is_err());
    }
}
