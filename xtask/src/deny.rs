//! `cargo xtask deny`: what we depend on, and under which terms.

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{self, cargo, has_subcommand};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Fail when cargo-deny is not installed, or the advisories cannot be fetched.
    #[arg(long)]
    require: bool,
}

fn check(checks: &[&str]) -> Result<()> {
    process::run(cargo().arg("deny").arg("check").args(checks))
}

/// Says whether anything was checked at all.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if !has_subcommand("deny") {
        let message =
            "cargo-deny is not installed, so NOTHING WAS CHECKED (`cargo install cargo-deny --locked`)";
        if options.require {
            bail!(message);
        }
        println!("{message}");
        return Ok(false);
    }
    check(&["licenses", "bans", "sources"])?;
    match check(&["advisories"]) {
        Err(error) if options.require => return Err(error),
        Err(_) => println!("the advisories could NOT BE CHECKED, or were found wanting: see above"),
        Ok(()) => {}
    }
    Ok(true)
}
