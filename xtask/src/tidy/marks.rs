//! What must not be in a tracked file: marks of unfinished work, paths of somebody's machine, hosts from which
//! somebody's packages come.

use super::Findings;

/// Split, so that this file does not hold what it looks for.
const MARKS: [(&str, &str); 4] = [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("db", "g!(")];
const PATHS: [(&str, &str); 4] = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/")];
const HOSTS: [(&str, &str); 5] = [
    ("index.cra", "tes.io"),
    ("static.cra", "tes.io"),
    ("artifac", "tory"),
    ("replace", "-with"),
    ("[regis", "tries"),
];
/// Where every package of the lock file comes from.
const SOURCE: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

pub(super) fn check(file: &str, text: &str, findings: &mut Findings) {
    if file == "Cargo.lock" {
        return check_sources(text, findings);
    }
    for (at, line) in text.lines().enumerate() {
        for (head, tail) in MARKS.iter().chain(&PATHS).chain(&HOSTS) {
            if line.contains(&format!("{head}{tail}")) {
                findings.fail(format!("{file}:{} holds `{head}{tail}`", at + 1));
            }
        }
    }
}

fn check_sources(text: &str, findings: &mut Findings) {
    for line in text.lines().filter(|line| line.starts_with("source = ") && *line != SOURCE) {
        findings.fail(format!("Cargo.lock names another source than crates.io: {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(file: &str, text: &str) -> usize {
        let mut findings = Findings::default();
        check(file, text, &mut findings);
        findings.failures.len()
    }

    #[test]
    fn planted_marks_are_found() {
        for (head, tail) in MARKS.iter().chain(&PATHS).chain(&HOSTS) {
            assert_eq!(failures("README.md", &format!("a line\nwith {head}{tail} in it")), 1, "{head}{tail}");
        }
        assert_eq!(failures("README.md", "todo lists and a work of art"), 0);
    }

    #[test]
    fn a_planted_source_is_found() {
        assert_eq!(failures("Cargo.lock", &format!("name = \"a\"\n{SOURCE}\n")), 0);
        assert_eq!(failures("Cargo.lock", "source = \"git+https://example.org/a\"\n"), 1);
    }
}
