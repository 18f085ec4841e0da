//! What ran, by suite and backend.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Outcome;

/// Backends and suites by their names in a conformance test's path: `<backend>::<suite>::<case>`.
const BACKENDS: [&str; 5] = ["moka", "local", "redis", "sentinel", "cluster"];
const SUITES: [&str; 5] = ["cache", "lock", "rate_limit", "presence", "bus"];

/// What a row counts; suites come first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Suite { suite: &'static str, backend: &'static str },
    Own { package: String },
}

#[derive(Default, Clone, Copy)]
struct Row {
    passed: u64,
    failed: u64,
    seconds: f64,
}

#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<Group, Row>,
    failures: Vec<String>,
}

impl Table {
    pub(super) fn count(&mut self, outcome: &Outcome) {
        let row = self.rows.entry(group_of(outcome)).or_default();
        row.seconds += outcome.seconds;
        if outcome.passed {
            row.passed += 1;
        } else {
            row.failed += 1;
            self.failures.push(format!("{} {}", outcome.package, outcome.name));
        }
    }

    /// Prints all rows and, last, the totals; with `all`, also which backends have no cases.
    pub(super) fn print(&self, all: bool, took: Duration) {
        println!("\n{:<12} {:<20} {:>7} {:>7} {:>10}", "suite", "backend", "passed", "failed", "time");
        for (group, Row { passed, failed, seconds }) in &self.rows {
            let (suite, name) = match group {
                Group::Suite { suite, backend } => (*suite, *backend),
                Group::Own { package } => ("unit/other", package.as_str()),
            };
            println!("{suite:<12} {name:<20} {passed:>7} {failed:>7} {seconds:>8.2} s");
        }
        for backend in BACKENDS.iter().filter(|backend| all && self.cases(backend) == 0) {
            println!("{backend}: no cases yet");
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        println!("\nin {:.0} s:", took.as_secs_f64());
        let total = |of: fn(&Row) -> u64| self.rows.values().map(of).sum::<u64>();
        println!("{} passed, {} failed", total(|row| row.passed), total(|row| row.failed));
    }

    /// A backend that was asked for and ran no case is a failure, never a skip.
    pub(super) fn require(&self, backends: &[&str]) -> Result<()> {
        match backends.iter().find(|backend| self.cases(backend) == 0) {
            Some(backend) => bail!("no case of the backend `{backend}` ran"),
            None => Ok(()),
        }
    }

    fn cases(&self, name: &str) -> u64 {
        let of = |group: &Group| matches!(group, Group::Suite { backend, .. } if *backend == name);
        self.rows.iter().filter(|(group, _)| of(group)).map(|(_, row)| row.passed + row.failed).sum()
    }
}

fn group_of(outcome: &Outcome) -> Group {
    let known =
        |names: &[&'static str], part: Option<&str>| names.iter().find(|name| Some(**name) == part).copied();
    let mut parts = outcome.name.split("::");
    let (backend, suite, case) = (parts.next(), parts.next(), parts.next());
    match (known(&BACKENDS, backend), known(&SUITES, suite), case) {
        (Some(backend), Some(suite), Some(_)) => Group::Suite { suite, backend },
        _ => Group::Own { package: outcome.package.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(tests: &[(&str, bool)]) -> Table {
        let mut table = Table::default();
        for (name, passed) in tests {
            let (package, name) = ("cache-moka".to_owned(), (*name).to_owned());
            table.count(&Outcome { package, name, passed: *passed, seconds: 0.0 });
        }
        table
    }

    #[test]
    fn cases_are_told_from_other_tests() {
        let table = table(&[("moka::cache::x", true), ("moka::cache::y", false), ("moka::tests::z", true)]);
        let suite = Group::Suite { suite: "cache", backend: "moka" };
        assert_eq!((table.rows[&suite].passed, table.rows[&suite].failed), (1, 1));
        assert_eq!(table.rows[&Group::Own { package: "cache-moka".into() }].passed, 1);
        assert_eq!(table.failures, ["cache-moka moka::cache::y"]);
    }

    #[test]
    fn a_backend_without_cases_is_a_failure() {
        let table = table(&[("moka::cache::x", true), ("redis::nothing", true), ("redis::other::x", true)]);
        assert!(table.require(&["moka"]).is_ok());
        let error = table.require(&["moka", "redis"]).expect_err("no case ran");
        assert!(error.to_string().contains("`redis`"), "{error}");
    }
}
