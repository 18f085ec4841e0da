//! `cargo xtask ci`: the same steps here and on the server.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{self, cargo, output};
use crate::{test, tidy};

#[derive(Args)]
pub(crate) struct Options {
    /// Leave the tests out, because they ran already.
    #[arg(long)]
    skip_tests: bool,
}

fn run_step(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    let done = step();
    let verdict = if done.is_ok() { "ok" } else { "FAILED" };
    println!("== {name}: {verdict} in {:.0} s", started.elapsed().as_secs_f64());
    done.map_err(|error| error.context(format!("step `{name}`")))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    run_step("format", || run_cargo(&["fmt", "--all", "--check"]))?;
    run_step("lints", || {
        run_cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
    })?;
    run_step("without Redis", without_redis)?;
    run_step("tidy", tidy::run)?;
    run_step("documentation", || {
        let arguments = ["doc", "--workspace", "--no-deps", "--all-features"];
        process::run(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if !options.skip_tests {
        run_step("tests", || test::run(&test::Options::all()))?;
    }
    println!("\nall steps are ok");
    Ok(())
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    process::run(cargo().args(arguments))
}

/// A fully in-process build carries no Redis dependency at all.
fn without_redis() -> Result<()> {
    run_cargo(&["check", "-p", "app-builder", "--no-default-features"])?;
    let tree = output(cargo().args(["tree", "-p", "app-builder", "--no-default-features", "-e", "normal"]))?;
    match tree.lines().find(|line| line.contains("redis")) {
        Some(line) => bail!("app-builder without default features depends on: {}", line.trim()),
        None => Ok(()),
    }
}
