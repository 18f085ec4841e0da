//! Tests run without cargo-nextest: cargo builds the test binaries, and they are run one after the other.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::table::Table;
use super::{Backend, Outcome, cargo_with};
use crate::process::output;

/// A built test binary.
#[derive(Debug, PartialEq, Eq)]
struct Binary {
    package: String,
    /// Of the package; tests expect to be run there.
    folder: PathBuf,
    program: PathBuf,
}

/// What a binary's own closing line says, against which our reading is checked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
}

pub(super) fn run(backend: Backend, prepare: &dyn Fn(&mut Command), table: &mut Table) -> Result<()> {
    println!("cargo-nextest is not installed: tests run by cargo's own runner");
    let mut failed = Vec::new();
    for binary in build()? {
        let names = list(&binary)?;
        let chosen: Vec<_> = names.iter().filter(|name| backend.takes(&binary.package, name)).collect();
        if chosen.is_empty() {
            continue;
        }
        println!("\n{}: {}", binary.package, binary.program.display());
        let mut command = command_of(&binary);
        if chosen.len() < names.len() {
            command.arg("--exact").args(chosen);
        }
        prepare(&mut command);
        if let Err(error) = stream(&mut command, &binary.package, table) {
            println!("{error:#}");
            failed.push(binary.program.display().to_string());
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(())
}

/// Runs the examples of the documentation.
pub(super) fn run_documentation(prepare: &dyn Fn(&mut Command), table: &mut Table) -> Result<()> {
    let mut command = cargo_with(&["test", "--doc", "--no-fail-fast"]);
    prepare(&mut command);
    stream(&mut command, "documentation", table)
}

fn build() -> Result<Vec<Binary>> {
    let messages =
        output(&mut cargo_with(&["test", "--no-run", "--message-format=json-render-diagnostics"]))?;
    Ok(messages.lines().filter_map(binary_of).collect())
}

/// Reads cargo's message about a test binary that it built.
fn binary_of(line: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let program = PathBuf::from(message["executable"].as_str()?);
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = manifest.parent()?.to_owned();
    // In this workspace a package is called as its folder is.
    let package = folder.file_name()?.to_string_lossy().into_owned();
    Some(Binary { package, folder, program })
}

fn command_of(binary: &Binary) -> Command {
    let mut command = Command::new(&binary.program);
    command.current_dir(&binary.folder).env("CARGO_MANIFEST_DIR", &binary.folder);
    command
}

fn list(binary: &Binary) -> Result<Vec<String>> {
    let listed = output(command_of(binary).args(["--list", "--format", "terse"]))?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Runs a program that speaks as libtest does, shows what it says, and counts.
fn stream(command: &mut Command, package: &str, table: &mut Table) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run tests")?;
    let (mut said, mut read) = (Totals::default(), Totals::default());
    // Lines that are repeated after a failure are those of other tests' output.
    let mut seen = BTreeSet::new();
    // Tests run side by side; each is given what passed since the one before, so the sum is true.
    let mut last = Instant::now();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(totals) = totals_of(&line) {
            (said.passed, said.failed) = (said.passed + totals.passed, said.failed + totals.failed);
            seen.clear();
        }
        if let Some((name, passed)) = result_of(&line)
            && seen.insert(name.to_owned())
        {
            *(if passed { &mut read.passed } else { &mut read.failed }) += 1;
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            table.count(&Outcome { package: package.to_owned(), name: name.to_owned(), passed, seconds });
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    if said != read {
        bail!("{read:?} were read, where the runner speaks of {said:?}");
    }
    Ok(())
}

/// Reads `test a::b ... ok`.
fn result_of(line: &str) -> Option<(&str, bool)> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    match verdict {
        "ok" => Some((name, true)),
        verdict if verdict.starts_with("FAILED") => Some((name, false)),
        _ => None,
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; …`.
fn totals_of(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what| {
        let part = counts.split("; ").find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some(Totals { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(result_of("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(result_of("test a::b - should panic ... ok"), Some(("a::b", true)));
        assert_eq!(result_of("test a::b ... FAILED"), Some(("a::b", false)));
        assert_eq!(result_of("test src/lib.rs - x (line 5) ... ok"), Some(("src/lib.rs - x (line 5)", true)));
        for line in ["test a::b ... ignored", "test a - compile ... ignored, why", "    test a ... ok", ""] {
            assert_eq!(result_of(line), None, "{line}");
        }
        let totals = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out";
        assert_eq!(totals_of(totals), Some(Totals { passed: 3, failed: 1 }));
        assert_eq!(totals_of("test a::b ... ok"), None);
    }

    #[test]
    fn test_binaries_are_found_among_what_cargo_built() {
        let message = |executable: &str, test: bool| {
            let (reason, manifest) = ("compiler-artifact", "here/cache-moka/Cargo.toml");
            serde_json::json!({
                "reason": reason, "manifest_path": manifest,
                "profile": { "test": test }, "executable": executable,
            })
            .to_string()
        };
        let binary = binary_of(&message("target/debug/deps/moka-1a2b", true)).expect("a test binary");
        assert_eq!((binary.package.as_str(), binary.folder), ("cache-moka", "here/cache-moka".into()));
        assert_eq!(binary_of(&message("target/debug/org-server", false)), None);
        assert_eq!(binary_of(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
