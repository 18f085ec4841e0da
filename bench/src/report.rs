//! What was measured: a table for people, `report.json` for machines.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// Subjects of one row, measured in turn, in one run.
pub struct Row {
    name: &'static str,
    unit: &'static str,
    lower_is_better: bool,
    subjects: Vec<(String, Vec<f64>)>,
}

/// One line of `report.json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    row: &'a str,
    subject: &'a str,
    unit: &'a str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    targets: Vec<Target>,
}

/// What is to be reached, as a ratio within one run.
struct Target {
    what: String,
    ratio: f64,
    limit: f64,
    at_most: bool,
}

impl Row {
    pub fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, lower_is_better: unit != "op/s", subjects: Vec::new() }
    }

    /// A row in which more is better, other than operations a second.
    pub fn more_is_better(mut self) -> Self {
        self.lower_is_better = false;
        self
    }

    /// Measures every subject once a round, A B A B.
    pub fn measure(&mut self, rounds: usize, subjects: &mut [(&str, &mut dyn FnMut() -> f64)]) {
        for _ in 0..rounds {
            for (name, measure) in subjects.iter_mut() {
                let value = measure();
                self.add(name, value);
            }
        }
    }

    pub fn add(&mut self, subject: &str, value: f64) {
        match self.subjects.iter_mut().find(|(name, _)| name == subject) {
            Some((_, values)) => values.push(value),
            None => self.subjects.push((subject.to_owned(), vec![value])),
        }
    }

    pub fn median(&self, subject: &str) -> f64 {
        self.subjects.iter().find(|(name, _)| name == subject).map_or(f64::NAN, |(_, values)| median(values))
    }
}

impl Report {
    /// Prints a row, and keeps it.
    pub fn finish(&mut self, row: Row) {
        let ours = row.median("ours");
        println!("\n{} ({})", row.name, row.unit);
        for (subject, values) in &row.subjects {
            let (low, high) = (shown(least(values), row.unit), shown(most(values), row.unit));
            let against = match row.lower_is_better {
                true => median(values) / ours,
                false => ours / median(values),
            };
            let better = if subject.starts_with("ours") {
                String::new()
            } else {
                format!("ours is {against:.2} × as good")
            };
            println!("  {subject:<44} {:>12}   ({low} … {high})   {better}", shown(median(values), row.unit));
        }
        self.rows.push(row);
    }

    pub fn at_most(&mut self, what: impl Into<String>, ratio: f64, limit: f64) {
        self.targets.push(Target { what: what.into(), ratio, limit, at_most: true });
    }

    pub fn at_least(&mut self, what: impl Into<String>, ratio: f64, limit: f64) {
        self.targets.push(Target { what: what.into(), ratio, limit, at_most: false });
    }

    /// Writes `report.json`, and says what was reached.
    pub fn write(&self, path: &Path) -> Result<()> {
        let line = |row: &Row, (subject, values): &(String, Vec<f64>)| {
            serde_json::to_value(Line {
                row: row.name,
                subject,
                unit: row.unit,
                median: median(values),
                min: least(values),
                max: most(values),
                rounds: values.len(),
            })
        };
        let lines =
            self.rows.iter().flat_map(|row| row.subjects.iter().map(move |subject| line(row, subject)));
        let rows = serde_json::json!({ "rows": lines.collect::<Result<Vec<_>, _>>()? });
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
        println!("\ntargets (ratios of medians within this run)");
        for Target { what, ratio, limit, at_most } in &self.targets {
            let met = if *at_most { ratio <= limit } else { ratio >= limit };
            let (sign, verdict) = (if *at_most { "≤" } else { "≥" }, if met { "met" } else { "MISSED" });
            println!("  {what:<64} {ratio:>8.2} {sign} {limit:<6} {verdict}");
        }
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

/// A number as people read it.
fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ns/op" if value >= 1e6 => format!("{:.2} ms", value / 1e6),
        "ns/op" if value >= 1e4 => format!("{:.1} µs", value / 1e3),
        "ns/op" => format!("{value:.1} ns"),
        "ratio" => format!("{value:.3}"),
        "op/s" => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
