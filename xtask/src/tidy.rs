//! `cargo xtask tidy`: what the compiler does not check.

mod graph;
mod lengths;
mod marks;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, is_there, output, root};

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
    graph::check(&serde_json::from_str(&cargo_metadata(host)?)?, &mut findings);
    let files = files()?;
    for file in &files {
        // A file that is deleted and not yet committed, or one that is no text.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        if Path::new(file).extension().is_some_and(|extension| extension == "rs") {
            lengths::check(file, &text, &mut findings);
        }
        marks::check(file, &text, &mut findings);
    }
    if !files.iter().any(|file| file == "Cargo.lock") {
        findings.fail("Cargo.lock is not committed");
    }
    report(&findings)
}

/// All tracked files; all there are where this is not a checkout, as in a source archive.
fn files() -> Result<Vec<String>> {
    if root().join(".git").exists() && is_there("git", "--version") {
        // The checkout may belong to somebody else, as it does in containers.
        let listed =
            output(Command::new("git").args(["-c", "safe.directory=*", "ls-files"]).current_dir(root()));
        return Ok(listed?.lines().map(str::to_owned).collect());
    }
    println!("no git here: looking at every file");
    let mut files = Vec::new();
    walk(&root(), "", &mut files)?;
    Ok(files)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        match entry.file_type()? {
            kind if kind.is_dir() && !["target", ".git"].contains(&name.as_str()) => {
                walk(&entry.path(), &format!("{path}/"), files)?;
            }
            kind if kind.is_file() => files.push(path),
            _ => {}
        }
    }
    Ok(())
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
