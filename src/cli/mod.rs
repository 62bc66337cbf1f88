//! The command line: one file per command, and their common functions.
//!
//! Data goes to stdout, logs and errors to stderr. Exit codes: 0 success, 2 bad usage or
//! configuration, 1 anything else.
//!
//! May use: `app`, `config`, `error_chain`.

mod check;
mod demo;
mod healthcheck;
mod logging;
mod serve;
mod simulate;
mod tail;
mod token;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};

use self::logging::{LogFormat, init_logging};
use crate::{app::AppError, config::Findings, error_chain::error_chain};

/// Runs the command that the arguments name, and returns its exit code.
pub fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => init_logging(cli.log_format).and_then(|guard| {
            let result = cli.command.run();
            // Before the error is reported below: the log comes first, and as a whole.
            drop(guard);
            result
        }),
        Err(usage) if usage.use_stderr() => usage.exit(),
        // `--help` and `--version` are data: clap's own `exit` would hide a failed write.
        Err(text) => text.print().map_err(CliError::Stdout),
    };
    let error = match result {
        Ok(()) => return ExitCode::SUCCESS,
        // The reader has all that it wanted, as `head` has: that is not a failure.
        Err(CliError::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    // If stderr is closed, there is nowhere to report the error.
    let _ = writeln!(io::stderr(), "{}", error.message());
    error.exit_code()
}

/// Relay that holds one upstream connection per Autoplay product and broadcasts its events to many
/// subscribers.
#[derive(Debug, Parser)]
#[command(name = "autoplay-relay", version, about, propagate_version = true)]
struct Cli {
    /// Format of the logs on stderr; RUST_LOG sets the level, e.g. RUST_LOG=debug.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    Serve(serve::ServeArgs),
    Demo(demo::DemoArgs),
    Simulate(simulate::SimulateArgs),
    Tail(tail::TailArgs),
    Healthcheck(healthcheck::HealthcheckArgs),
    Check(check::CheckArgs),
    Token(token::TokenArgs),
}

impl CliCommand {
    fn run(self) -> Result<(), CliError> {
        match self {
            Self::Serve(args) => serve::run(&args),
            Self::Demo(args) => demo::run(&args),
            Self::Simulate(args) => simulate::run(args),
            Self::Tail(args) => tail::run(args),
            Self::Healthcheck(args) => healthcheck::run(&args),
            Self::Check(args) => check::run(&args),
            Self::Token(args) => token::run(args),
        }
    }
}

/// Reason for which a command fails.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The configuration is invalid: exit code 2.
    #[error(transparent)]
    Configuration(#[from] Findings),
    /// An argument is invalid: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The relay cannot serve.
    #[error(transparent)]
    App(#[from] AppError),
    /// Any other failure: what happened, and to what.
    #[error("{0}")]
    Other(String),
    /// Data could not be written. [`main`] takes a closed pipe for a success.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// The runtime, the signal handlers or a stream of the process failed.
    #[error("the operating system refuses a resource")]
    System(#[from] io::Error),
}

impl CliError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
            Self::App(_) | Self::Other(_) | Self::Stdout(_) | Self::System(_) => ExitCode::FAILURE,
        }
    }

    /// Returns the error with its causes in one line, and findings in a line each.
    fn message(&self) -> String {
        format!("autoplay-relay: {}", error_chain(self))
    }
}

/// Runs a command that serves or connects, on a runtime of its own. A name look-up that is still
/// running at the end is not waited for.
fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Parses a duration as the configuration has it, with its unit.
fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
}

/// Prints a line to stdout, which the standard library flushes at each line end.
///
/// # Errors
///
/// When stdout is closed or full: part of the line may have been written.
fn print_line(line: &str) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(CliError::Stdout)
}
