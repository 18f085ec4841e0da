//! `cargo xtask tidy`: what the compiler does not check.

mod graph;
mod lengths;
mod marks;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, output, root};

/// What was found. Warnings are places to look, failures stop the build.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    failures: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn fail(&mut self, text: impl Into<String>) {
        self.failures.push(text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

pub(crate) fn run() -> Result<()> {
    let mut findings = Findings::default();
    // For this platform only: what others need is not downloaded to look at it.
    let rustc = output(Command::new("rustc").arg("-vV"))?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let metadata = cargo_metadata(host)?;
    graph::check(&serde_json::from_str(&metadata)?, &mut findings);
    let files = output(Command::new("git").args(["ls-files"]).current_dir(root()))?;
    for file in files.lines() {
        // A file that is deleted and not yet committed.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        if Path::new(file).extension().is_some_and(|extension| extension == "rs") {
            lengths::check(file, &text, &mut findings);
        }
        marks::check(file, &text, &mut findings);
    }
    if !files.lines().any(|file| file == "Cargo.lock") {
        findings.fail("Cargo.lock is not committed");
    }
    report(&findings)
}

fn cargo_metadata(host: &str) -> Result<String> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--all-features"]);
    output(command.args(["--filter-platform", host]))
}

fn report(findings: &Findings) -> Result<()> {
    for warning in &findings.warnings {
        println!("look: {warning}");
    }
    for failure in &findings.failures {
        println!("FAIL: {failure}");
    }
    println!("tidy: {} to look at, {} failures", findings.warnings.len(), findings.failures.len());
    if findings.failures.is_empty() { Ok(()) } else { bail!("the tree is not tidy") }
}
