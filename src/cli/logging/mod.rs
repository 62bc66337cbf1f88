//! The log: which lines there are, their format, and their way to stderr.
//!
//! In: `RUST_LOG` and the format. Out: a subscriber for the whole process, and the guard that
//! writes what is buffered at the end.
//!
//! May use: no other module.

mod library_limit;
mod writer;

use std::{
    io::{self, IsTerminal},
    sync::Arc,
};

use clap::ValueEnum;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

pub(super) use self::writer::LogGuard;
use self::{library_limit::LibraryLogLimit, writer::LogBuffer};
use super::error::CliError;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Begins to log to stderr, until the guard is dropped.
///
/// # Errors
///
/// When `RUST_LOG` cannot be parsed, or the system refuses a thread.
pub(super) fn init_logging(format: LogFormat) -> Result<LogGuard, CliError> {
    let levels = std::env::var("RUST_LOG").ok().filter(|levels| !levels.trim().is_empty());
    let levels = levels.unwrap_or_else(|| "info".to_owned());
    let levels: Targets =
        levels.parse().map_err(|error| CliError::Usage(format!("RUST_LOG: {error}")))?;
    let buffer = Arc::new(LogBuffer::default());
    let guard = LogGuard::start(Arc::clone(&buffer), io::stderr())?;
    let layer = tracing_subscriber::fmt::layer().with_writer(buffer);
    let limit = LibraryLogLimit::new(&levels);
    let registry = tracing_subscriber::registry().with(levels).with(limit);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    Ok(guard)
}
