//! The signals that end the relay, and the one that has it read its configuration again.
//!
//! May use: no other module.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Signals as the operating system delivers them.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Never looked at: while it is listened for, a file that may not grow is an error of the
    /// write, not the end of the process.
    _file_size_limit: Signal,
}

impl Signals {
    /// Begins to listen; from now on the signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// When the operating system refuses a handler.
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
            biased;
            _ = self.terminate.recv() => SignalRequest::ShutDown,
            _ = self.interrupt.recv() => SignalRequest::ShutDown,
            _ = self.hangup.recv() => SignalRequest::Reload,
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

    /// Takes what comes right behind a request to stop for the same one: `timeout(1)` and others
    /// send it to the process and, once more, to its group.
    pub(crate) async fn absorb_repeats(&mut self) {
        let repeats = async {
            loop {
                self.shutdown_requested().await;
            }
        };
        let _: Result<(), _> = timeout(REPEATED_SIGNAL_WINDOW, repeats).await;
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SignalRequest {
    /// To leave.
    ShutDown,
    /// To read the configuration again.
    Reload,
}

/// Too short for somebody who has seen what the first one did.
const REPEATED_SIGNAL_WINDOW: Duration = Duration::from_millis(10);

/// What a process gets that writes beyond its `RLIMIT_FSIZE`; the same number on Linux (but MIPS)
/// and macOS.
const SIGXFSZ: i32 = 25;
