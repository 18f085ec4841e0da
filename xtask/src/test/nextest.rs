//! Tests run by cargo-nextest, which speaks JSON on its output and to people on its error stream.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::table::Table;
use super::{Backend, Outcome, cargo_with};

pub(super) fn run(backend: Backend, prepare: &dyn Fn(&mut Command), table: &mut Table) -> Result<()> {
    let mut command = cargo_with(&["nextest", "run"]);
    command.args(["--no-fail-fast", "--no-tests", "pass", "--message-format", "libtest-json-plus"]);
    command.env("NEXTEST_EXPERIMENTAL_LIBTEST_JSON", "1").stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(filter) = backend.filter() {
        command.args(["-E", &filter]);
    }
    prepare(&mut command);
    let mut child = command.spawn().context("cannot run cargo")?;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        if let Some(outcome) = read(&line?) {
            table.count(&outcome);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

/// Reads a line such as `{"type":"test","event":"ok","name":"cache-moka::conformance$moka::cache::x"}`.
fn read(line: &str) -> Option<Outcome> {
    let value: Value = serde_json::from_str(line).ok()?;
    let event = value["event"].as_str()?;
    if value["type"] != "test" || matches!(event, "started" | "ignored") {
        return None;
    }
    // A test that is run again carries `#2` and so on.
    let (binary, test) = value["name"].as_str()?.split('#').next()?.split_once('$')?;
    let package = binary.split("::").next()?.to_owned();
    let seconds = value["exec_time"].as_f64().unwrap_or_default();
    Some(Outcome { package, name: test.to_owned(), passed: event == "ok", seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(event: &str) -> Option<Outcome> {
        let name = "cache-moka::conformance$moka::cache::set_then_get#2";
        read(&format!(r#"{{"type":"test","event":"{event}","name":"{name}","exec_time":0.5}}"#))
    }

    #[test]
    fn events_are_read() {
        let outcome = test("ok").expect("an outcome");
        assert_eq!((outcome.package.as_str(), outcome.passed), ("cache-moka", true));
        assert_eq!((outcome.name.as_str(), outcome.seconds), ("moka::cache::set_then_get", 0.5));
        assert!(!test("failed").expect("an outcome").passed);
        assert!(test("started").is_none() && test("ignored").is_none());
        for line in [r#"{"type":"suite","event":"ok","passed":1}"#, "", "PASS [ 0.1s] x y"] {
            assert!(read(line).is_none(), "{line}");
        }
    }
}
