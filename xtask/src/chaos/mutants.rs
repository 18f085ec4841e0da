//! The checker checked: each protecting line removed in turn, in a copy of the tree. A run that finds nothing then
//! proves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::fleet;
use crate::process::{self, output};

/// A protecting line, and what is put in its place.
struct Mutant {
    name: &'static str,
    what: &'static str,
    file: &'static str,
    line: &'static str,
    instead: &'static str,
}

const MUTANTS: [Mutant; 4] = [
    Mutant {
        name: "lease",
        what: "a fill that does not compare the lease",
        file: "crates/cache-redis/src/lua/fill.lua",
        line: "if held ~= ARGV[1] then return 0 end",
        instead: "",
    },
    Mutant {
        name: "epoch",
        what: "a near insert that does not compare the ticket",
        file: "crates/tenant-cache/src/near.rs",
        line: "if *epoch != ticket.epoch || !ticket.chain.stands() {\n            return false;\n        }",
        instead: "",
    },
    Mutant {
        name: "trust",
        what: "a near hit that does not ask for trust",
        file: "crates/tenant-cache/src/inner.rs",
        line: "if !self.shared.trust.near(now) {\n            return None;\n        }",
        instead: "",
    },
    Mutant {
        name: "flush",
        what: "a flush that empties nothing",
        file: "crates/tenant-cache/src/coherence.rs",
        line: "self.generations.forget_all();\n        self.generations.all().bump();\n        \
               // All of memory before any handler: one that panics must leave nothing behind.\n        \
               self.domains.for_each(|domain| domain.spoil());",
        instead: "",
    },
];

/// How a broken promise begins in what a run prints.
const BROKEN: [&str; 4] =
    ["own write not seen", "stale beyond", "foreign value", "a version from the future"];

/// Runs one mutant, or each of them.
///
/// # Errors
/// When a mutant's run finds no violation, or its line is not there any more.
pub(super) fn run(name: &str, seed: u64, minutes: f64) -> Result<()> {
    let chosen: Vec<_> = MUTANTS.iter().filter(|mutant| name == "all" || name == mutant.name).collect();
    let names = || MUTANTS.map(|mutant| mutant.name).join(", ");
    ensure!(!chosen.is_empty(), "there is no mutant `{name}`; there are: {}, all", names());
    let mut survivors = Vec::new();
    for mutant in chosen {
        println!("\n== {}: {}", mutant.name, mutant.what);
        let violations = mutant.violations(seed, minutes)?;
        println!("{}: {violations} violations", mutant.name);
        if violations == 0 {
            survivors.push(mutant.name);
        }
    }
    if survivors.is_empty() {
        return Ok(());
    }
    bail!("no violation was found without: {}", survivors.join(", "))
}

impl Mutant {
    fn violations(&self, seed: u64, minutes: f64) -> Result<u64> {
        let tree = copy()?;
        self.apply(&tree)?;
        let run = fleet(&tree, seed, minutes).env("CARGO_TARGET_DIR", folder().join("target")).output()?;
        let said = String::from_utf8_lossy(&run.stdout);
        shown(&said).for_each(|line| println!("{line}"));
        violations(&said).with_context(|| {
            format!("the run ended without a verdict:\n{said}\n{}", String::from_utf8_lossy(&run.stderr))
        })
    }

    fn apply(&self, tree: &Path) -> Result<()> {
        let path = tree.join(self.file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", self.file))?;
        let found = text.matches(self.line).count();
        ensure!(found == 1, "{}: the line is there {found} times in {}", self.name, self.file);
        Ok(std::fs::write(path, text.replace(self.line, self.instead))?)
    }
}

/// The first violation, which says when it happened, and the verdict.
fn shown(said: &str) -> impl Iterator<Item = &str> {
    let first = said.lines().skip_while(|line| !BROKEN.iter().any(|broken| line.starts_with(broken))).take(3);
    first.chain(said.lines().filter(|line| line.starts_with("chaos: ")))
}

/// What a run counted, or at rest found.
fn violations(said: &str) -> Option<u64> {
    if let Some(line) = said.lines().find(|line| line.starts_with("chaos: ")) {
        return line.rsplit_once("violations=")?.1.trim().parse().ok();
    }
    let worst = said.lines().rev().find_map(|line| line.trim().strip_suffix(" violations"))?;
    worst.rsplit(' ').next()?.parse().ok().filter(|count| *count > 0)
}

fn folder() -> PathBuf {
    process::root().join("target/chaos-mutants")
}

/// The tree as it is, without what was built.
fn copy() -> Result<PathBuf> {
    let (root, tree) = (process::root(), folder().join("tree"));
    let mut list = Command::new("git");
    list.current_dir(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = output(&mut list)?;
    for file in files.lines().map(Path::new).filter(|file| root.join(file).is_file()) {
        let to = tree.join(file);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let text = std::fs::read(root.join(file))?;
        // What is the same keeps its time, and is not built again.
        if std::fs::read(&to).ok().as_ref() != Some(&text) {
            std::fs::write(to, text)?;
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every mutant's line is in the tree, once: a mutant that changes nothing would prove nothing.
    #[test]
    fn every_mutant_changes_a_line() {
        for mutant in MUTANTS {
            let text = std::fs::read_to_string(process::root().join(mutant.file)).expect("the file is there");
            assert!(!mutant.line.is_empty() && mutant.line != mutant.instead, "{}", mutant.name);
            assert_eq!(text.matches(mutant.line).count(), 1, "{} in {}", mutant.name, mutant.file);
        }
    }

    #[test]
    fn the_verdict_is_read() {
        assert_eq!(
            violations("x\nchaos: seed=1 faults=2 reads=3 worst_ms=4 bound_ms=5 violations=6\n"),
            Some(6)
        );
        assert_eq!(violations("    5 s  3 faults  9 reads  worst 700 ms  2 violations\npanicked"), Some(2));
        assert_eq!(violations("nothing"), None);
    }
}
