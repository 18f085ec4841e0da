//! Comparisons with other caches, and with what nothing can beat. Run by `cargo xtask bench`.

mod coherence;
mod far;
mod hit_ratio;
mod limits;
mod locks;
mod memory;
mod near;
mod peers;
mod report;
mod resolve;
mod server;
mod setup;
mod stampede;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use crate::report::Report;

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;

#[derive(Parser)]
struct Options {
    /// Fewer rounds, smaller numbers.
    #[arg(long)]
    quick: bool,
    /// Only the rows whose name begins with this.
    #[arg(long, default_value = "")]
    row: String,
    /// Where the machine-readable report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    /// Not for people: the second process of the stampede.
    #[arg(long, hide = true)]
    stampede: Option<String>,
}

/// Measures a few rows.
type Group = fn(Size, &mut Report) -> Result<()>;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    /// A divisor of the number of operations.
    pub less: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    setup::record_metrics();
    if let Some(redis) = &options.stampede {
        return stampede::second_process(redis);
    }
    let size = if options.quick { Size { rounds: 3, less: 8 } } else { Size { rounds: 5, less: 1 } };
    let mut report = Report::default();
    let wanted = |row: &str| row.starts_with(&options.row) || options.row.starts_with(row);
    let groups: [(&str, Group); 11] = [
        ("near_hit", near::run),
        ("far", far::run),
        ("stampede", stampede::run),
        ("invalidat", coherence::run),
        ("memory", memory::run),
        ("hit_ratio", hit_ratio::run),
        ("noisy", hit_ratio::noisy),
        ("lock", locks::run),
        ("limit", limits::run),
        ("resolve", resolve::run),
        ("server", server::run),
    ];
    for (name, run) in groups {
        if wanted(name) {
            run(size, &mut report).with_context(|| format!("the rows {name}"))?;
        }
    }
    report.write(&options.report)
}
