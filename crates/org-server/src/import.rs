//! Reading organisations from a JSON file: all of them or none, and every bad record named.
//!
//! The file is an array of objects: `slug` and `name`, and if wanted `id`, `plan`, `status`, `settings`,
//! `secrets`, `custom_domain`. Nothing is stored while one record cannot be.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};

use org_resolution::Slug;
use serde::Deserialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt as _;

use crate::draft::{OrgDraft, SecretChanges, id_problem};
use crate::store::StoreError;

/// The organisations that a server with an empty database begins with.
pub const SAMPLE: &str = include_str!("../data/orgs.json");
/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;
/// How many bad records an error lists; of the others it tells the number.
pub const MAX_LISTED: usize = 50;

/// A record that may be stored.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its id, when the file gives one.
    pub id: Option<String>,
    /// Its slug.
    pub slug: Slug,
    /// Everything else; complete for a new organisation.
    pub draft: OrgDraft,
}

/// Where a record stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Its index in the array, from 0.
    pub index: usize,
    /// The line it begins in, from 1.
    pub line: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record [{}] in line {}", self.index, self.line)
    }
}

/// Why a record cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// Which one.
    pub position: Position,
    /// What is wrong with it.
    pub reason: String,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("the file is larger than {} MiB", MAX_FILE_BYTES / 1024 / 1024)]
    TooLarge,
    /// The file is not a JSON array.
    #[error("line {line}, column {column}: {reason}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// Some records cannot be stored.
    #[error("{}", list(bad, *total))]
    Records {
        /// The first [`MAX_LISTED`].
        bad: Vec<BadRecord>,
        /// How many there are.
        total: usize,
    },
    /// The database refused a record, or failed as a whole.
    #[error("{position}: {source}")]
    Store {
        /// The record it was at.
        position: Position,
        /// What it said.
        source: StoreError,
    },
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
///
/// # Errors
/// [`ImportError::Read`] when it cannot be read or is no UTF-8; [`ImportError::TooLarge`].
///
/// # Cancel safety
/// Safe.
pub async fn read_file(path: &Path) -> Result<String, ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let size = file.metadata().await.map_err(failed)?.len();
    // In one piece: growing would hold the text twice.
    let mut text = String::with_capacity(usize::try_from(size.min(MAX_FILE_BYTES)).unwrap_or(0) + 1);
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).await.map_err(failed)?;
    match text.len() as u64 > MAX_FILE_BYTES {
        true => Err(ImportError::TooLarge),
        false => Ok(text),
    }
}

/// Reads and checks all records, each with its position. Of a file with bad records nothing is kept but the first of
/// them.
///
/// # Errors
/// [`ImportError::Syntax`] with line and column; [`ImportError::Records`] with every record that breaks a
/// rule, has an unknown field, or repeats the slug, id or custom domain of another.
pub fn parse(text: &str) -> Result<Vec<(Position, Record)>, ImportError> {
    let mut reading = Reading { text, index: 0, line: 1, counted: 0, found: Found::default() };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_seq(&mut reading).and_then(|()| json.end());
    read.map_err(|error| ImportError::Syntax {
        line: error.line(),
        column: error.column(),
        reason: reason(&error),
    })?;
    let Found { records, bad, total, .. } = reading.found;
    if total == 0 { Ok(records) } else { Err(ImportError::Records { bad, total }) }
}

/// Reads the array record by record, and counts lines on the way.
struct Reading<'a> {
    text: &'a str,
    index: usize,
    line: usize,
    /// Up to where lines were counted.
    counted: usize,
    found: Found,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    records: Vec<(Position, Record)>,
    bad: Vec<BadRecord>,
    total: usize,
    seen: Seen,
}

impl<'de> Visitor<'de> for &mut Reading<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of organisations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut records: A) -> Result<(), A::Error> {
        while let Some(raw) = records.next_element::<&'de RawValue>()? {
            let position = self.position(raw);
            self.found.take(position, read(raw));
        }
        Ok(())
    }
}

impl Reading<'_> {
    /// Where a record begins that was cut from the text.
    fn position(&mut self, raw: &RawValue) -> Position {
        let start = raw.get().as_ptr() as usize - self.text.as_ptr() as usize;
        let passed = &self.text.as_bytes()[self.counted..start];
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.counted = start;
        self.index += 1;
        Position { index: self.index - 1, line: self.line }
    }
}

impl Found {
    fn take(&mut self, position: Position, read: Result<Record, Vec<String>>) {
        match read {
            Err(reasons) => self.refuse(position, reasons),
            Ok(record) => {
                let repeated = self.seen.repeats(position, &record);
                self.refuse(position, repeated);
                if self.total == 0 {
                    self.records.push((position, record));
                }
            }
        }
    }

    fn refuse(&mut self, position: Position, reasons: Vec<String>) {
        if !reasons.is_empty() {
            // Nothing will be imported: what was read is of no use any more.
            self.records = Vec::new();
        }
        for reason in reasons {
            self.total += 1;
            if self.bad.len() < MAX_LISTED {
                self.bad.push(BadRecord { position, reason });
            }
        }
    }
}

/// A record as it is written; what [`OrgDraft`] has, and what names the organisation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: Option<String>,
    slug: String,
    name: Option<String>,
    plan: Option<String>,
    status: Option<String>,
    settings: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default, deserialize_with = "crate::draft::read_secrets")]
    secrets: SecretChanges,
    custom_domain: Option<String>,
}

fn read(raw: &RawValue) -> Result<Record, Vec<String>> {
    let written: Written = serde_json::from_str(raw.get()).map_err(|error| vec![reason(&error)])?;
    let Written { id, slug, name, plan, status, settings, secrets, custom_domain } = written;
    let draft = OrgDraft { name, plan, status, settings, secrets, custom_domain };
    let mut problems = draft.problems(true);
    problems.extend(id.as_deref().and_then(id_problem));
    match slug.parse() {
        Ok(slug) if problems.is_empty() => Ok(Record { id, slug, draft }),
        Ok(_) => Err(problems),
        Err(error) => {
            problems.push(format!("`slug`: {error}"));
            Err(problems)
        }
    }
}

/// What must not occur twice, and where it did first.
#[derive(Default)]
struct Seen(HashMap<(&'static str, String), Position>);

impl Seen {
    fn repeats(&mut self, position: Position, record: &Record) -> Vec<String> {
        let named = [
            ("slug", Some(record.slug.as_str())),
            ("id", record.id.as_deref()),
            ("custom_domain", record.draft.custom_domain.as_deref().filter(|domain| !domain.is_empty())),
        ];
        let mut repeated = Vec::new();
        for (field, value) in named {
            let Some(value) = value else { continue };
            match self.0.entry((field, value.to_owned())) {
                Entry::Occupied(first) => {
                    repeated.push(format!("`{field}` {value:?} is that of {} too", first.get()));
                }
                Entry::Vacant(free) => {
                    free.insert(position);
                }
            }
        }
        repeated
    }
}

fn list(bad: &[BadRecord], total: usize) -> String {
    let mut text = format!("nothing was imported: {total} problem(s)");
    for BadRecord { position, reason } in bad {
        text.push_str(&format!("\n  {position}: {reason}"));
    }
    if total > bad.len() {
        text.push_str(&format!("\n  … and {} more", total - bad.len()));
    }
    text
}

/// What serde_json says, without its own position, which is that within the record.
fn reason(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.rfind(" at line ") {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text).expect_err("refused").to_string()
    }

    /// L1: the sample is what the import accepts, and varied enough to show something.
    #[test]
    fn the_sample_is_importable() {
        let records = parse(SAMPLE).expect("the sample is valid");
        assert!(records.len() >= 200, "{}", records.len());
        let count = |want: fn(&OrgDraft) -> bool| records.iter().filter(|(_, r)| want(&r.draft)).count();
        assert!(count(|draft| draft.status.as_deref() == Some("suspended")) > 3);
        assert!(count(|draft| !draft.secrets.is_empty()) > 3);
        for plan in crate::draft::PLANS {
            assert!(records.iter().any(|(_, r)| r.draft.plan.as_deref() == Some(plan)), "{plan}");
        }
        assert!(
            records
                .iter()
                .any(|(_, r)| r.slug.as_str() == "acme" && r.draft.status.as_deref() == Some("active"))
        );
    }

    /// L1: a syntax error is told by line and column.
    #[test]
    fn a_syntax_error_has_line_and_column() {
        let error = parse("[\n  {\"slug\": \"a\",}\n]").expect_err("a comma too many");
        assert!(matches!(error, ImportError::Syntax { line: 2, column: 16, .. }), "{error:?}");
        assert!(matches!(parse("{}"), Err(ImportError::Syntax { line: 1, .. })));
        assert!(matches!(parse(""), Err(ImportError::Syntax { .. })));
    }

    /// L1: every bad record is named with its position and reasons, not only the first.
    #[test]
    fn every_bad_record_is_named() {
        let text = r#"[
            {"slug": "fine", "name": "Fine"},
            {"slug": "Not Fine", "name": ""},
            {"slug": "typo", "name": "Typo", "plna": "pro"},
            {"name": "No Slug"},
            {"slug": "gold", "name": "Gold", "plan": "gold"},
            17
        ]"#;
        let error = refused(text);
        for part in [
            "6 problem(s)",
            "record [1] in line 3",
            "`name` is empty",
            "record [2] in line 4: unknown field `plna`",
            "record [3] in line 5: missing field `slug`",
            "record [4] in line 6: `plan` is \"gold\"",
            "record [5] in line 7: invalid type",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!error.contains("record [0]"), "{error}");
    }

    /// L1: a repeated slug, id or domain is refused with both positions.
    #[test]
    fn repetitions_are_refused_with_both_positions() {
        let text =
            "[{\"slug\":\"a\",\"name\":\"A\",\"id\":\"1\"},\n{\"slug\":\"a\",\"name\":\"B\",\"id\":\"1\"}]";
        let error = refused(text);
        assert!(
            error.contains("record [1] in line 2: `slug` \"a\" is that of record [0] in line 1 too"),
            "{error}"
        );
        assert!(
            error.contains("record [1] in line 2: `id` \"1\" is that of record [0] in line 1 too"),
            "{error}"
        );
        assert!(refused(r#"[{"slug":"a","slug":"b","name":"A"}]"#).contains("duplicate field"));
    }

    /// L1: a file of nothing but bad records is answered with a bounded list.
    #[test]
    fn the_list_of_bad_records_is_bounded() {
        let text = format!("[{}]", vec!["1"; 1_000].join(","));
        let ImportError::Records { bad, total } = parse(&text).expect_err("refused") else {
            panic!("records are refused");
        };
        assert_eq!((bad.len(), total), (MAX_LISTED, 1_000));
    }

    /// L1: a missing or too large file is told by name.
    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named() {
        let error = read_file(Path::new("/nowhere/orgs.json")).await.expect_err("not there");
        assert!(error.to_string().contains("/nowhere/orgs.json"), "{error}");
        assert!(matches!(read_file(Path::new("/dev/zero")).await, Err(ImportError::TooLarge)));
    }
}
