//! Making sure that there is a Redis to start.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{is_there, run};

const HOW_TO: &str = "`redis-server` (7.0 or newer) is not on the PATH and could not be installed. \
    Install it (Debian: `apt-get install redis-server`, macOS: `brew install redis`) and run this again.";

/// Finds `redis-server`, or installs it with the system's package manager.
pub(crate) fn ensure() -> Result<()> {
    if is_there("redis-server", "--version") {
        return Ok(());
    }
    println!("redis-server is not installed; trying the system's package manager");
    let installed = installers().into_iter().any(|steps| {
        steps.iter().all(|words| {
            let (program, arguments) = words.split_first().expect("a step names a program");
            run(Command::new(program).args(arguments).env("DEBIAN_FRONTEND", "noninteractive")).is_ok()
        })
    });
    if !installed || !is_there("redis-server", "--version") {
        bail!(HOW_TO);
    }
    Ok(())
}

/// The ways to install it that may work here.
fn installers() -> Vec<Vec<Vec<&'static str>>> {
    let apt = [vec!["apt-get", "update", "-q"], vec!["apt-get", "install", "-y", "-q", "redis-server"]];
    let with_sudo = apt.iter().map(|words| [&["sudo", "-n"][..], words].concat()).collect();
    let mut ways = Vec::new();
    if is_there("apt-get", "--version") {
        ways.extend([apt.to_vec(), with_sudo]);
    }
    if is_there("brew", "--version") {
        ways.push(vec![vec!["brew", "install", "redis"]]);
    }
    ways
}
