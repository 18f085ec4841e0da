//! `cargo xtask ci`: the same steps here and on the server.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{self, cargo, output};
use crate::{chaos, deny, test, tidy};

#[derive(Args)]
pub(crate) struct Options {
    /// Leave the tests out, because they ran already.
    #[arg(long)]
    skip_tests: bool,
}

enum Verdict {
    Passed,
    /// What it needs is not installed, and it may be left out.
    NotRun,
}

struct Step {
    name: &'static str,
    result: Result<Verdict>,
    took: Duration,
}

/// Runs every step, also after one has failed, and says at the end which did.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = vec![
        step("format", || {
            run_cargo(&["fmt", "--all", "--check"])?;
            run_cargo(&["fmt", "--check", "--manifest-path", "bench/Cargo.toml"])
        }),
        step("lints", || {
            run_cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
        }),
        step("without Redis", without_redis),
        step("tidy", tidy::run),
        step("documentation", || {
            let arguments = ["doc", "--workspace", "--no-deps", "--all-features"];
            process::run(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
        }),
    ];
    if !options.skip_tests {
        steps.push(step("tests", || test::run(&test::Options::all())));
    }
    steps.push(step("chaos", || chaos::run(&chaos::Options::short())));
    steps.push(step_that_may_not_run("deny", || deny::run(&deny::Options::default())));
    summary(&steps)
}

fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Step {
    step_that_may_not_run(name, || work().map(|()| true))
}

fn step_that_may_not_run(name: &'static str, work: impl FnOnce() -> Result<bool>) -> Step {
    println!("\n== {name}");
    let started = Instant::now();
    let result = work().map(|ran| if ran { Verdict::Passed } else { Verdict::NotRun });
    if let Err(error) = &result {
        println!("{error:#}");
    }
    Step { name, result, took: started.elapsed() }
}

fn summary(steps: &[Step]) -> Result<()> {
    println!();
    for Step { name, result, took } in steps {
        let verdict = match result {
            Ok(Verdict::Passed) => "ok",
            Ok(Verdict::NotRun) => "NOT RUN",
            Err(_) => "FAILED",
        };
        println!("{name:<16} {verdict:<7} {:>5.0} s", took.as_secs_f64());
    }
    let failed: Vec<_> = steps.iter().filter(|step| step.result.is_err()).map(|step| step.name).collect();
    if failed.is_empty() {
        println!("no step failed");
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    process::run(cargo().args(arguments))
}

/// A fully in-process build carries no Redis dependency at all.
fn without_redis() -> Result<()> {
    run_cargo(&["check", "-p", "app-builder", "--no-default-features"])?;
    let tree = output(cargo().args(["tree", "-p", "app-builder", "--no-default-features", "-e", "normal"]))?;
    match redis_in(&tree) {
        Some(line) => bail!("app-builder without default features depends on: {line}"),
        None => Ok(()),
    }
}

fn redis_in(tree: &str) -> Option<&str> {
    tree.lines().map(str::trim).find(|line| line.contains("redis"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_redis_is_found() {
        assert_eq!(redis_in("app-builder v0.1.0\n├── bytes v1\n└── cache-core v0.1.0"), None);
        assert_eq!(redis_in("app-builder v0.1.0\n└── redis v1.8.1"), Some("└── redis v1.8.1"));
    }

    #[test]
    fn one_failed_step_fails_them_all() {
        let ok = || step("fine", || Ok(()));
        assert!(summary(&[ok(), ok()]).is_ok());
        let error = summary(&[ok(), step("broken", || bail!("why")), ok()]).expect_err("a step failed");
        assert_eq!(error.to_string(), "failed: broken");
    }
}
