//! The reference server: orgs resolved, cached and kept coherent.

use std::io::Write as _;
use std::process::ExitCode;

use app_builder::EnvSettings;
use clap::Parser as _;
use org_server::cli::Cli;
use org_server::run::{self, RunError};

/// The exit code for a setting that cannot be used, as clap has it for an argument.
const BAD_SETTING: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::parse().command();
    org_server::telemetry::logs();
    match run::run(command, &EnvSettings, say).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            match error {
                RunError::Setting(_) => ExitCode::from(BAD_SETTING),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// What is for the human at the terminal, not for the log.
fn say(line: &str) {
    // A closed terminal must not stop the server.
    let _ = writeln!(std::io::stdout(), "{line}");
}
