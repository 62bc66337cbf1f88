//! Signals of the operating system: shut down, and reload the configuration.
//!
//! May use: no other module.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Handlers of the signals that the process reacts to.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Never polled. While a handler is installed, a write beyond `RLIMIT_FSIZE` returns `EFBIG`
    /// instead of ending the process.
    _file_size_limit: Signal,
}

impl Signals {
    /// Installs the handlers. From here on the signals do not end the process by themselves.
    ///
    /// # Errors
    ///
    /// The operating system refuses a handler.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            _file_size_limit: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Waits for SIGTERM, SIGINT or SIGHUP.
    ///
    /// # Cancel safety
    ///
    /// A signal that has not been returned is returned by the next call.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            // A request to shut down precedes a reload that came with it.
            biased;
            _ = self.terminate.recv() => SignalRequest::ShutDown,
            _ = self.interrupt.recv() => SignalRequest::ShutDown,
            _ = self.hangup.recv() => SignalRequest::Reload,
        }
    }

    /// Waits for SIGTERM, SIGINT or SIGHUP, each of which ends the command, and returns its number.
    ///
    /// # Cancel safety
    ///
    /// A signal that has not been returned is returned by the next call.
    pub(crate) async fn next_number(&mut self) -> u8 {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => SIGTERM,
            _ = self.interrupt.recv() => SIGINT,
            _ = self.hangup.recv() => SIGHUP,
        }
    }

    /// Waits for SIGTERM or SIGINT.
    ///
    /// # Cancel safety
    ///
    /// A signal that has not been returned is returned by the next call.
    pub(crate) async fn shutdown_requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Absorbs signals that follow a request to shut down immediately and repeat it: `timeout(1)`
    /// and others send the signal to the process and then to its group. A second signal that a
    /// person sends ends the process.
    pub(crate) async fn absorb_repeats(&mut self) {
        let repeats = async {
            loop {
                self.shutdown_requested().await;
            }
        };
        let _: Result<(), _> = timeout(REPEATED_SIGNAL_WINDOW, repeats).await;
    }
}

/// Request of a signal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SignalRequest {
    /// Shut the process down.
    ShutDown,
    /// Read the configuration again.
    Reload,
}

/// Window in which a repeated signal counts as the same request: longer than the time between the
/// two system calls of one sender, which may lose its processor between them on a busy machine; too
/// short for a person who reacts to the effect of the first signal.
const REPEATED_SIGNAL_WINDOW: Duration = Duration::from_millis(100);

/// Numbers that POSIX gives these signals.
const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// Signal of a write beyond `RLIMIT_FSIZE`. The number is the same on Linux (but MIPS) and macOS;
/// tokio's `SignalKind` has no name for it.
const SIGXFSZ: i32 = 25;
