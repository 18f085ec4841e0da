//! The commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The reference server: orgs resolved, cached and kept coherent. Settings come from the environment; see the
/// README for all of them.
#[derive(Debug, Clone, Parser)]
#[command(name = "org-server", version)]
pub struct Cli {
    /// What to do; `serve` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Answer requests until told to stop (Ctrl-C or SIGTERM).
    Serve {
        /// Import the sample organisations into an empty database, also into one that DATABASE_URL names.
        #[arg(long)]
        sample: bool,
    },
    /// Store the organisations of a JSON file: all of them, or none and a list of what is wrong.
    Import {
        /// An array of `{slug, name, id?, plan?, status?, settings?, secrets?, custom_domain?}`.
        file: PathBuf,
    },
    /// Seal every stored secret again with the current master key, beside servers that run; says how many are under which
    /// key, and fails when not all are under the current one.
    RotateKeys,
    /// Remove entries from the cache of every running server, by their full key such as `org:acme`.
    Invalidate {
        /// The keys.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

impl Cli {
    /// The command, by default [`Command::Serve`] without a flag.
    #[must_use]
    pub fn command(self) -> Command {
        self.command.unwrap_or(Command::Serve { sample: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"org-server").chain(args)).map(Cli::command)
    }

    /// L1: no argument means serve; the others need what they work on.
    #[test]
    fn commands_are_read() {
        let serve = |sample| Command::Serve { sample };
        assert_eq!(parse(&[]).expect("serve"), serve(false));
        assert_eq!(parse(&["serve"]).expect("serve"), serve(false));
        assert_eq!(parse(&["serve", "--sample"]).expect("serve"), serve(true));
        let import = Command::Import { file: "orgs.json".into() };
        assert_eq!(parse(&["import", "orgs.json"]).expect("import"), import);
        assert_eq!(parse(&["rotate-keys"]).expect("rotate"), Command::RotateKeys);
        let keys = vec!["org:a".to_owned(), "org:b".to_owned()];
        assert_eq!(parse(&["invalidate", "org:a", "org:b"]).expect("keys"), Command::Invalidate { keys });
        assert!(parse(&["invalidate"]).is_err() && parse(&["import"]).is_err() && parse(&["drop"]).is_err());
    }
}
