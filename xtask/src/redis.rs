//! Making sure that there is a Redis to start.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{is_there, run};

const OLDEST: u32 = 7;
const HOW_TO: &str = "`redis-server` is not on the PATH and could not be installed. \
    Install it, 7.0 or newer (Debian: `apt-get install redis-server`, macOS: `brew install redis`), \
    and run this again.";

/// Finds `redis-server`, or installs it with the system's package manager.
pub(crate) fn ensure() -> Result<()> {
    if !is_there("redis-server", "--version") {
        println!("redis-server is not installed; trying the system's package manager");
        let installed = installers().iter().any(|steps| install(steps));
        if !installed || !is_there("redis-server", "--version") {
            bail!(HOW_TO);
        }
    }
    let shown = Command::new("redis-server").arg("--version").output()?.stdout;
    let shown = String::from_utf8_lossy(&shown);
    let major = major(&shown).with_context(|| format!("no version in `{}`", shown.trim()))?;
    if major < OLDEST {
        bail!("`{}` is too old: {OLDEST}.0 or newer is needed", shown.trim());
    }
    Ok(())
}

/// What counts is the last step: with one of its sources out of reach, an update fails and an install may not.
fn install(steps: &[Vec<&str>]) -> bool {
    steps.iter().fold(false, |_, words| {
        let (program, arguments) = words.split_first().expect("a step names a program");
        run(Command::new(program).args(arguments).env("DEBIAN_FRONTEND", "noninteractive")).is_ok()
    })
}

/// Reads `Redis server v=7.0.15 sha=…`.
fn major(version: &str) -> Option<u32> {
    version.split_once("v=")?.1.split('.').next()?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"), Some(7));
        assert_eq!(major("Valkey server v=8.1.1 sha=0"), Some(8));
        assert_eq!(major("something else"), None);
    }
}
