//! What must not be in a tracked file: marks of unfinished work, and paths of somebody's machine.

use super::Findings;

/// Split, so that this file does not hold what it looks for.
const MARKS: [(&str, &str); 4] = [("TO", "DO"), ("FIX", "ME"), ("XX", "X:"), ("db", "g!(")];
const PATHS: [(&str, &str); 3] = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/")];

pub(super) fn check(file: &str, text: &str, findings: &mut Findings) {
    if file == "Cargo.lock" {
        return;
    }
    for (at, line) in text.lines().enumerate() {
        for (head, tail) in MARKS.iter().chain(&PATHS) {
            if line.contains(&format!("{head}{tail}")) {
                findings.fail(format!("{file}:{} holds `{head}{tail}`", at + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_marks_are_found() {
        for (head, tail) in MARKS.iter().chain(&PATHS) {
            let mut findings = Findings::default();
            check("README.md", &format!("a line\nwith {head}{tail} in it"), &mut findings);
            assert_eq!(findings.failures.len(), 1, "{head}{tail}");
        }
        let mut findings = Findings::default();
        check("README.md", "todo lists and a work of art", &mut findings);
        assert_eq!(findings, Findings::default());
    }
}
