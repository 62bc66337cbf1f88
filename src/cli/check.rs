//! `check`: validates a configuration, and prints it with defaults and overrides.
//!
//! May use: `config`, `printable`.

use std::path::PathBuf;

use super::{CliError, print_line};
use crate::{
    config::{AllowAnonymous, Config, Environment},
    printable::without_hidden,
};

/// Validate a configuration, and print the effective one with masked secrets.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Accept what `serve --allow-anonymous` accepts.
    #[arg(long)]
    allow_anonymous: bool,
    /// Print only the keys whose change needs a restart, one per line.
    #[arg(long)]
    restart_keys: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), CliError> {
    let anonymous = match args.allow_anonymous {
        true => AllowAnonymous::Anywhere,
        false => AllowAnonymous::OnLoopback,
    };
    let config = Config::load(&args.config, &Environment::from_process(), anonymous)?;
    if args.restart_keys {
        for key in config.restart_only_keys() {
            print_line(&key)?;
        }
        return Ok(());
    }
    // The values may come from the environment, and keys may be read from files of others.
    print_line(&without_hidden(config.to_masked_toml().trim_end()))
}
