//! Files of at most 600 lines, functions of at most 80. The source is formatted, so a function ends at the first
//! closing brace with its own indentation.

use super::Findings;

const LOOK_FILE: usize = 300;
const MAX_FILE: usize = 600;
const LOOK_FUNCTION: usize = 30;
const MAX_FUNCTION: usize = 80;

pub(super) fn check(file: &str, text: &str, findings: &mut Findings) {
    let lines: Vec<&str> = text.lines().collect();
    let code = lines.iter().position(|line| *line == "#[cfg(test)]").unwrap_or(lines.len());
    if lines.len() > MAX_FILE {
        findings.fail(format!("{file} has {} lines, more than {MAX_FILE}", lines.len()));
    } else if code > LOOK_FILE && !file.contains("/tests/") {
        findings.warn(format!("{file} has {code} lines without its tests"));
    }
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| begins_function(line)) {
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indentation}}}");
        // A declaration without a body ends with its line.
        let length = lines[at..]
            .iter()
            .position(|line| **line == end || line.ends_with(';') && at_same(line, indentation));
        let length = length.map_or(1, |length| length + 1);
        let name = line.trim();
        if length > MAX_FUNCTION {
            findings.fail(format!("{file}:{} {length} lines in `{name}`, more than {MAX_FUNCTION}", at + 1));
        } else if length > LOOK_FUNCTION {
            findings.warn(format!("{file}:{} {length} lines in `{name}`", at + 1));
        }
    }
}

fn at_same(line: &str, indentation: &str) -> bool {
    line.starts_with(indentation) && !line[indentation.len()..].starts_with(' ')
}

fn begins_function(line: &str) -> bool {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("pub") {
        rest = after.strip_prefix("(crate)").or(after.strip_prefix("(super)")).unwrap_or(after).trim_start();
    }
    for word in ["const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.starts_with("fn ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Findings {
        let mut findings = Findings::default();
        check("crates/x/src/lib.rs", text, &mut findings);
        findings
    }

    #[test]
    fn planted_violations_are_found() {
        let long = format!("impl X {{\n    pub async fn f() {{\n{}    }}\n}}\n", "        g();\n".repeat(80));
        assert_eq!(findings(&long).failures.len(), 1);
        assert_eq!(findings(&"// x\n".repeat(601)).failures.len(), 1);
        let fine = format!("fn a();\nfn f() {{\n{}}}\n", "    g();\n".repeat(20)).repeat(4);
        assert_eq!(findings(&fine), Findings::default());
    }
}
