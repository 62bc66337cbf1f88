//! The lingering close of a socket (RFC 9112, section 9.6).
//!
//! A client may still be sending its request when it is answered. If the socket is closed then, the
//! kernel answers the unread bytes with a reset, and the reset may overtake the
//! answer or delete it from the client's buffer. So the relay closes its own direction, reads and
//! drops further input, and closes the socket once the client has closed its direction, or once
//! a bound is reached.
//!
//! May use: `timer_wheel`.

use std::{
    mem::MaybeUninit,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::timer_wheel::{Alarm, Deadline};

/// Mark of a connection whose last request was answered before the end of its body, or head.
///
/// The connection's own task sets the mark, and starts each request without one. The drain of a
/// small rest is another task, and may end only after the next request was answered. So each mark
/// has a number, and a drain removes no mark but its own.
#[derive(Debug, Default)]
pub(super) struct UnreadMark {
    last_number: AtomicU64,
    /// Number of the mark, 0 for none.
    current: AtomicU64,
}

impl UnreadMark {
    /// Sets the mark, and returns its number.
    pub(super) fn set(&self) -> u64 {
        // Relaxed here and below: the mark publishes no other memory. The socket is closed by the
        // task that sets it, and a removal that is seen late costs a wait that was not needed.
        let number = self.last_number.fetch_add(1, Relaxed) + 1;
        self.current.store(number, Relaxed);
        number
    }

    /// Removes any mark, for a new request.
    pub(super) fn reset(&self) {
        self.current.store(0, Relaxed);
    }

    /// Removes the mark of this number, once its body has been read.
    pub(super) fn remove(&self, number: u64) {
        // Fails if a later request has set or removed a mark: then nothing is left to do.
        let _ = self.current.compare_exchange(number, 0, Relaxed, Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.current.load(Relaxed) != 0
    }
}

/// State of one lingering close, whose write direction is closed.
#[derive(Debug)]
pub(super) struct LingeringClose {
    remaining_bytes: u64,
    /// Tick at which the close ends although the client still sends.
    end_due: Deadline,
    /// Tick at which the client has been silent for too long.
    silence_due: Deadline,
    /// Time that is left once the listener shuts down. A timer of its own: by then the wheel has
    /// stopped.
    shutdown_grace: Option<Pin<Box<Sleep>>>,
}

impl LingeringClose {
    /// Starts a close with all bounds unused.
    pub(super) fn new(alarm: &Alarm) -> Self {
        Self {
            remaining_bytes: MAX_LINGER_BYTES,
            end_due: alarm.wheel().deadline_after(MAX_LINGER_TIME),
            silence_due: alarm.wheel().deadline_after(MAX_LINGER_SILENCE),
            shutdown_grace: None,
        }
    }

    /// Shortens the close, for a listener that shuts down.
    pub(super) fn hasten(&mut self) {
        self.shutdown_grace.get_or_insert_with(|| Box::pin(sleep(SHUTDOWN_LINGER_TIME)));
    }

    /// Reads and drops what the client sends. Ready when the socket may be closed.
    pub(super) fn poll(
        &mut self,
        stream: &mut TcpStream,
        alarm: &Alarm,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        // First: reading may use up tokio's cooperative budget, without which a timer never fires.
        if let Some(grace) = &mut self.shutdown_grace
            && grace.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(());
        }
        loop {
            match discard_once(stream, context) {
                // The client has closed its direction, or the connection is gone.
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Ready(count) => {
                    self.remaining_bytes = self.remaining_bytes.saturating_sub(count as u64);
                    self.silence_due = alarm.wheel().deadline_after(MAX_LINGER_SILENCE);
                }
                // Also when tokio's cooperative budget is used up, so that a client that sends
                // without end does not keep the thread.
                Poll::Pending => {
                    let due = self.end_due.min(self.silence_due);
                    if due.is_over(alarm.wheel()) {
                        return Poll::Ready(());
                    }
                    alarm.set(due, context.waker());
                    return Poll::Pending;
                }
            }
            // Here, too: the socket of a client that sends without a pause is never pending.
            if self.remaining_bytes == 0 || self.end_due.is_over(alarm.wheel()) {
                return Poll::Ready(());
            }
        }
    }
}

/// Reads once and drops the bytes. Returns their number; 0 at the end of the connection, by a reset
/// too.
pub(super) fn discard_once(stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<usize> {
    let mut bytes = [MaybeUninit::uninit(); DISCARD_BUFFER_BYTES];
    let mut buffer = ReadBuf::uninit(&mut bytes);
    Pin::new(stream).poll_read(context, &mut buffer).map(|read| match read {
        Ok(()) => buffer.filled().len(),
        Err(_) => 0,
    })
}

/// Bytes that are read and dropped for one connection: larger than any body that a client of the
/// relay sends by mistake. Beyond it the client is reset.
const MAX_LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// Time in which a client must have taken its answer and closed; enough for 8 MiB at 2 Mbit/s.
const MAX_LINGER_TIME: Duration = Duration::from_secs(30);

/// Silence after which the client is taken to have its answer.
const MAX_LINGER_SILENCE: Duration = Duration::from_secs(3);

/// Time that is left when the listener shuts down: well below the grace of its connections, and
/// enough for an answer that is on its way.
const SHUTDOWN_LINGER_TIME: Duration = Duration::from_secs(1);

/// On the stack for the time of one read.
const DISCARD_BUFFER_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_ends_late_leaves_the_mark_of_the_next_request() {
        let mark = UnreadMark::default();
        let first = mark.set();
        mark.reset();
        mark.remove(first);
        assert!(!mark.is_set());
        let second = mark.set();
        mark.remove(first);
        assert!(mark.is_set(), "the second body is unread");
        mark.remove(second);
        assert!(!mark.is_set());
    }
}
