//! The command line: one file per command, and their common functions.
//!
//! Data goes to stdout, logs and errors to stderr. Exit codes: 0 success, 2 bad usage or
//! configuration, 1 anything else.
//!
//! May use: `config`, `error_chain`, `shutdown`.

mod check;
mod demo;
mod error;
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
use tokio::runtime::{Builder, Runtime};

use self::{
    error::CliError,
    logging::{LogFormat, init_logging},
};
use crate::{error_chain::error_chain, shutdown::Signals};

/// Runs the command that the arguments name, and returns its exit code.
pub fn main() -> ExitCode {
    // Before anything else. The first process of a container gets no signal that it has no handler
    // for (pid_namespaces(7)): a SIGTERM that came before would be lost, and the container's
    // runtime would wait its whole grace period.
    let runtime = CommandRuntime::start();
    let result = match Cli::try_parse() {
        Ok(cli) => runtime.map_err(CliError::from).and_then(|runtime| {
            let guard = init_logging(cli.log_format)?;
            let result = cli.command.run(runtime);
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
    // The sender of a signal needs no message. An error is ignored: stderr may be closed.
    if !matches!(error, CliError::Signal(_)) {
        let _ = writeln!(io::stderr(), "{}", error.message());
    }
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
    fn run(self, runtime: CommandRuntime) -> Result<(), CliError> {
        match self {
            Self::Serve(args) => serve::run(&args, runtime),
            Self::Demo(args) => demo::run(&args, runtime),
            Self::Simulate(args) => simulate::run(args, runtime),
            Self::Tail(args) => tail::run(args, runtime),
            Self::Healthcheck(args) => healthcheck::run(&args, runtime),
            Self::Check(args) => runtime.run_blocking(move || check::run(&args)),
            Self::Token(args) => runtime.run_blocking(move || token::run(args)),
        }
    }
}

/// Runtime of the process, and the handlers of its signals.
#[derive(Debug)]
struct CommandRuntime {
    runtime: Runtime,
    signals: Signals,
}

impl CommandRuntime {
    /// Installs the handlers of the signals. A signal is kept from here on until a command asks.
    ///
    /// # Errors
    ///
    /// When there is no runtime, or no handler.
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let signals = {
            // A handler belongs to the I/O driver of a runtime.
            let _entered = runtime.enter();
            Signals::listen()?
        };
        Ok(Self { runtime, signals })
    }

    /// Runs a command that ends by itself when a signal asks for it.
    fn serve<W>(self, command: impl FnOnce(Signals) -> W) -> Result<(), CliError>
    where
        W: Future<Output = Result<(), CliError>>,
    {
        let result = self.runtime.block_on(command(self.signals));
        // A name look-up that is still under way is not waited for.
        self.runtime.shutdown_background();
        result
    }

    /// Runs a command that a signal ends at once.
    fn run(self, command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
        self.serve(|mut signals| async move {
            tokio::select! {
                biased;
                number = signals.next_number() => Err(CliError::Signal(number)),
                result = command => result,
            }
        })
    }

    /// Runs a command that reads files and writes to stdout. A signal ends it at once, also while
    /// it is blocked, by a pipe for instance.
    fn run_blocking(
        self,
        command: impl FnOnce() -> Result<(), CliError> + Send + 'static,
    ) -> Result<(), CliError> {
        self.run(async {
            let ended = tokio::task::spawn_blocking(command).await;
            ended.unwrap_or_else(|error| Err(CliError::Other(error_chain(&error))))
        })
    }
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
