//! Reasons for which a command fails, with its exit code and its message.
//!
//! May use: `app`, `config`, `error_chain`, `printable`.

use std::{io, process::ExitCode};

use crate::{app::AppError, config::Findings, error_chain::error_chain, printable::printable_line};

/// Reason for which a command fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
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
    /// Data could not be written. `main` takes a closed pipe for a success.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// A signal ended a command that has nothing to shut down.
    #[error("ended by signal {0}")]
    Signal(u8),
    /// The runtime, the signal handlers or a stream of the process failed.
    #[error("the operating system refuses a resource")]
    System(#[from] io::Error),
}

impl CliError {
    /// Returns the exit code that the command ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
            // As shells show a process that a signal has ended.
            Self::Signal(number) => ExitCode::from(128 + number),
            Self::App(_) | Self::Other(_) | Self::Stdout(_) | Self::System(_) => ExitCode::FAILURE,
        }
    }

    /// Returns the error with its causes in one line, and findings in a line each. Control
    /// characters are escaped: the text may be that of a server.
    pub(super) fn message(&self) -> String {
        let text = error_chain(self);
        let lines: Vec<_> = text.split('\n').map(printable_line).collect();
        format!("autoplay-relay: {}", lines.join("\n"))
    }
}
