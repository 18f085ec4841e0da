//! `cargo xtask bench`: comparisons with other caches, and with what nothing can beat.

use anyhow::Result;
use clap::Args;

use crate::process::{self, cargo};
use crate::redis;

#[derive(Args)]
pub(crate) struct Options {
    /// Fewer rounds, smaller numbers.
    #[arg(long)]
    quick: bool,
    /// Only the rows whose name begins with this.
    #[arg(long)]
    row: Option<String>,
}

/// Builds and runs the `bench` workspace; the table goes to the terminal, the numbers to
/// `target/bench/report.json`.
pub(crate) fn run(options: &Options) -> Result<()> {
    redis::ensure()?;
    let target = process::root().join("target/bench");
    let mut command = cargo();
    command.current_dir(process::root().join("bench")).env("CARGO_TARGET_DIR", target.join("build"));
    command.args(["run", "--release", "--locked", "--", "--report"]).arg(target.join("report.json"));
    if options.quick {
        command.arg("--quick");
    }
    if let Some(row) = &options.row {
        command.args(["--row", row]);
    }
    process::run(&mut command)
}
