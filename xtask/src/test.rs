//! `cargo xtask test`: every test, on real servers.

mod libtest;
mod nextest;
mod table;

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use conformance::redis_server::{RedisServer, SHARED_URL_VARIABLE};

use self::table::Table;
use crate::process::{cargo, has_subcommand};
use crate::redis;

/// Tests that need a Redis server stand in one of these modules, at the root of their test binary.
const REDIS_MODULES: [&str; 3] = ["redis", "redis_server", "fleet"];

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

/// One finished test.
#[derive(Debug)]
struct Outcome {
    package: String,
    /// Its path within its binary, or where it stands in the documentation.
    name: String,
    passed: bool,
    seconds: f64,
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

    fn has_documentation_tests(self) -> bool {
        matches!(self, Self::Moka | Self::All)
    }

    /// Whether a test belongs to what was asked for.
    fn takes(self, package: &str, test: &str) -> bool {
        let module = test.split("::").next().unwrap_or_default();
        let on_redis = package == "cache-redis" || REDIS_MODULES.contains(&module);
        match self {
            Self::All => true,
            Self::Moka => !on_redis && module != "sentinel" && module != "cluster",
            Self::Redis => on_redis && module != "sentinel" && module != "cluster",
            Self::Sentinel => module == "sentinel",
            Self::Cluster => module == "cluster",
        }
    }

    /// [`takes`](Self::takes) in nextest's words.
    fn filter(self) -> Option<String> {
        let (redis, other) = (REDIS_MODULES.join("|"), "test(/^(sentinel|cluster)::/)");
        let on_redis = format!("(package(cache-redis) | test(/^({redis})::/))");
        match self {
            Self::All => None,
            Self::Moka => Some(format!("not ({on_redis} | {other})")),
            Self::Redis => Some(format!("{on_redis} - {other}")),
            Self::Sentinel => Some("test(/^sentinel::/)".to_owned()),
            Self::Cluster => Some("test(/^cluster::/)".to_owned()),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let server = options.backend.needs_redis().then(start_redis).transpose()?;
    let prepare = |command: &mut Command| {
        if let Some(server) = &server {
            command.env(SHARED_URL_VARIABLE, server.url());
        }
        if options.quick {
            command.env("PROPTEST_CASES", "32");
        }
    };
    let mut table = Table::default();
    let tests = match has_subcommand("nextest") {
        true => nextest::run(options.backend, &prepare, &mut table),
        false => libtest::run(options.backend, &prepare, &mut table),
    };
    let documentation = match options.backend.has_documentation_tests() {
        true => libtest::run_documentation(&prepare, &mut table),
        false => Ok(()),
    };
    table.print(options.backend == Backend::All, started.elapsed());
    tests?;
    documentation?;
    table.require(options.backend.required())
}

fn start_redis() -> Result<RedisServer> {
    redis::ensure()?;
    Ok(RedisServer::start())
}

/// The arguments that both runners build with, so that neither builds what the other did.
fn build_arguments(command: &mut Command) -> &mut Command {
    command.args(["--workspace", "--all-features"])
}

fn cargo_with(words: &[&str]) -> Command {
    let mut command = cargo();
    build_arguments(command.args(words));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_takes_its_own_tests() {
        let tests = [
            ("cache-core", "key::tests::x", "moka"),
            ("cache-moka", "moka::cache::x", "moka"),
            ("cache-redis", "error::tests::x", "redis"),
            ("app-builder", "redis::x", "redis"),
            ("org-server", "fleet::x", "redis"),
            ("cache-redis", "sentinel::cache::x", "sentinel"),
            ("cache-redis", "cluster::cache::x", "cluster"),
        ];
        let backends = [Backend::Moka, Backend::Redis, Backend::Sentinel, Backend::Cluster];
        for (package, test, expected) in tests {
            let takers: Vec<_> = backends.iter().filter(|backend| backend.takes(package, test)).collect();
            assert_eq!(format!("{takers:?}").to_lowercase(), format!("[{expected}]"), "{package} {test}");
            assert!(Backend::All.takes(package, test));
        }
    }
}
