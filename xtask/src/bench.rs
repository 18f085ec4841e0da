//! `cargo xtask bench`: comparisons with other caches, and with what nothing can beat.

use anyhow::Result;
use clap::Args;

use crate::process::{self, cargo};
use crate::redis;

#[derive(Args)]
pub(crate) struct Options {
    /// Fewer rounds, smaller numbers.
    #[arg(long)]
    quick: bool,
    /// Only the rows whose name begins with this.
    #[arg(long)]
    row: Option<String>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.row.as_deref().is_none_or(|wanted| row.starts_with(wanted) || wanted.starts_with(row))
    }
}

/// Builds and runs the `bench` workspace; the table goes to the terminal, the numbers to
/// `target/bench/report.json`. The row `server` asks the real server, which is built for it.
pub(crate) fn run(options: &Options) -> Result<()> {
    redis::ensure()?;
    let target = process::root().join("target/bench");
    let build = target.join("build");
    let mut command = cargo();
    command.current_dir(process::root().join("bench")).env("CARGO_TARGET_DIR", &build);
    if options.wants("server") {
        let mut server = cargo();
        server.args(["build", "--release", "--locked", "-p", "org-server"]).env("CARGO_TARGET_DIR", &build);
        process::run(&mut server)?;
        command.env("ORG_SERVER", build.join("release/org-server"));
    }
    command.args(["run", "--release", "--locked", "--", "--report"]).arg(target.join("report.json"));
    if options.quick {
        command.arg("--quick");
    }
    if let Some(row) = &options.row {
        command.args(["--row", row]);
    }
    process::run(&mut command)
}
