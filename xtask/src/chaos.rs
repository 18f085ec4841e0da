//! `cargo xtask chaos`: a fleet under faults for as long as you like, checked against what is promised; and the
//! checker checked, on copies of the tree from which a protecting line was removed.

mod mutants;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::process::{self, cargo};
use crate::redis;

#[derive(Args)]
pub(crate) struct Options {
    /// Which faults and operations; random when absent. The order of tasks is not part of it.
    #[arg(long)]
    seed: Option<u64>,
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Check the checker: run a copy of the tree with this protecting line removed (or with each in turn: `all`), and
    /// fail unless violations are found.
    #[arg(long, value_name = "NAME")]
    mutate: Option<String>,
    /// Run the random model of one process instead, which needs no Redis; the seed is the first of many.
    #[arg(long, conflicts_with = "mutate")]
    random: bool,
}

impl Options {
    /// What continuous integration runs.
    pub(crate) fn short() -> Self {
        Self { seed: None, minutes: 1.0, mutate: None, random: false }
    }
}

/// Runs the fleet test of `tenant-cache` for longer than the suite does. It ends with a line
/// `chaos: seed=… faults=… reads=… worst_ms=… bound_ms=… violations=…`, and fails on a violation. The random model ends
/// with one that begins `random: `.
pub(crate) fn run(options: &Options) -> Result<()> {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let seed = options.seed.unwrap_or_else(|| clock() % 1_000_000);
    println!("seed {seed}, {} minutes", options.minutes);
    if options.random {
        return process::run(&mut random(seed, options.minutes));
    }
    redis::ensure()?;
    match &options.mutate {
        None => process::run(&mut fleet(&process::root(), seed, options.minutes)),
        Some(name) => mutants::run(name, seed, options.minutes),
    }
}

/// The run, of the tree in a folder.
fn fleet(tree: &Path, seed: u64, minutes: f64) -> std::process::Command {
    let mut command = long_test("chaos");
    command.current_dir(tree);
    command.env("CHAOS_SECONDS", seconds(minutes)).env("CHAOS_SEED", seed.to_string());
    command
}

/// The runs of the random model, of this tree.
fn random(seed: u64, minutes: f64) -> std::process::Command {
    let mut command = long_test("random");
    command.env("RANDOM_SECONDS", seconds(minutes)).env("RANDOM_SEED", seed.to_string());
    command
}

fn long_test(name: &str) -> std::process::Command {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "tenant-cache", "--test", name, "--", "--nocapture"]);
    command
}

fn seconds(minutes: f64) -> String {
    format!("{:.0}", minutes * 60.0)
}
