//! The project's own commands; run them as `cargo xtask <command>`.
//!
//! | command | does |
//! |---|---|
//! | `test` | runs every test on real servers it starts itself, and prints suite × backend |
//! | `chaos` | runs a fleet under faults for minutes, and checks what was promised |
//! | `bench` | compares speed, memory and hit ratio with other caches, and with what nothing can beat |
//! | `tidy` | checks what the compiler does not: the crate graph, lengths, marks |
//! | `ci` | formatting, lints, tidy, documentation, tests |
//! | `deny` | licences, bans, sources, and advisories where the network allows |
//! | `demo` | a Redis and two servers, with what to look at |
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program speaks to its terminal"
)]

mod bench;
mod chaos;
mod ci;
mod demo;
mod deny;
mod process;
mod redis;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test on real servers.
    Test(test::Options),
    /// Run a fleet under faults for minutes.
    Chaos(chaos::Options),
    /// Compare with other caches, and with what nothing can beat.
    Bench(bench::Options),
    /// Check the crate graph, lengths and marks.
    Tidy,
    /// Run what continuous integration runs.
    Ci(ci::Options),
    /// Check licences, bans, sources and advisories.
    Deny(deny::Options),
    /// Start a Redis and two servers to look at.
    Demo,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Chaos(options) => chaos::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Tidy => tidy::run(),
        Command::Ci(options) => ci::run(&options),
        Command::Deny(options) => deny::run(&options).map(drop),
        Command::Demo => demo::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
