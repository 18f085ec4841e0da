//! Tests run by cargo-nextest, which speaks JSON on its output and to people on its error stream.

use std::collections::HashSet;
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
    let mut open = HashSet::new();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        match read(&line?) {
            Some(Event::Started(name)) => drop(open.insert(name)),
            Some(Event::Ended(name, None)) => drop(open.remove(&name)),
            Some(Event::Ended(name, Some(outcome))) => {
                open.remove(&name);
                table.count(&outcome);
            }
            None => {}
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    if let Some(name) = open.iter().next() {
        bail!("{} tests began and did not end, `{name}` among them", open.len());
    }
    Ok(())
}

#[derive(Debug)]
enum Event {
    Started(String),
    /// Without an outcome when it was not run.
    Ended(String, Option<Outcome>),
}

/// Reads a line such as `{"type":"test","event":"ok","name":"cache-moka::conformance$moka::cache::x"}`.
fn read(line: &str) -> Option<Event> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["type"] != "test" {
        return None;
    }
    // A test that is run again carries `#2` and so on.
    let name = value["name"].as_str()?.split('#').next()?.to_owned();
    let (binary, test) = name.split_once('$')?;
    let package = binary.split("::").next()?.to_owned();
    let outcome = |passed| {
        let seconds = value["exec_time"].as_f64().unwrap_or_default();
        Some(Outcome { package, name: test.to_owned(), passed, seconds })
    };
    Some(match value["event"].as_str()? {
        "started" => Event::Started(name),
        "ignored" => Event::Ended(name.clone(), None),
        "ok" => Event::Ended(name.clone(), outcome(true)),
        _ => Event::Ended(name.clone(), outcome(false)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(event: &str) -> Option<Event> {
        let name = "cache-moka::conformance$moka::cache::set_then_get#2";
        read(&format!(r#"{{"type":"test","event":"{event}","name":"{name}","exec_time":0.5}}"#))
    }

    #[test]
    fn events_are_read() {
        let Some(Event::Ended(name, Some(outcome))) = test("ok") else { panic!("it ended") };
        assert_eq!(name, "cache-moka::conformance$moka::cache::set_then_get");
        assert_eq!((outcome.package.as_str(), outcome.passed), ("cache-moka", true));
        assert_eq!((outcome.name.as_str(), outcome.seconds), ("moka::cache::set_then_get", 0.5));
        let Some(Event::Ended(_, Some(outcome))) = test("failed") else { panic!("it ended") };
        assert!(!outcome.passed);
        assert!(matches!(test("started"), Some(Event::Started(_))));
        assert!(matches!(test("ignored"), Some(Event::Ended(_, None))));
        for line in [r#"{"type":"suite","event":"ok","passed":1}"#, "", "PASS [ 0.1s] x y"] {
            assert!(read(line).is_none(), "{line}");
        }
    }
}
