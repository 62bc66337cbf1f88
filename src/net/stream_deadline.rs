//! The write deadline of one HTTP/2 stream.
//!
//! While a stream's window is used up, hyper polls the stream's future but not the body inside it:
//! hyper holds one piece that it cannot send, and asks for no other. So each poll of the
//! future tells the guard the stream's state:
//!
//! ```text
//! body polled, returned Pending    idle       no deadline: there is nothing to send
//! body polled, returned a piece    progress   the deadline starts anew
//! body not polled                  blocked    on flow control; the deadline runs
//! ```
//!
//! A stream that is blocked without progress for `write_timeout`, or until its forced close, is
//! dropped, which resets it. The connection's other streams continue, as far as the
//! connection's own window lets them.
//!
//! May use: `timer_wheel`.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio_util::task::TaskTracker;

use super::{
    forced_close::ForcedClose,
    open_streams::{OpenStreamGuard, OpenStreams},
    routes::ConnectionSettings,
};
use crate::timer_wheel::{Alarm, Deadline, TimerWheel};

tokio::task_local! {
    /// State of the HTTP/2 stream whose future is being polled.
    static CURRENT_STREAM: Arc<Http2StreamState>;
}

/// State shared by a stream's body and the deadline around its future.
#[derive(Debug)]
pub(crate) struct Http2StreamState {
    // Relaxed for all four: the body is polled inside the stream's future, hence by the same task
    // as the deadline. The flags are atomic because the state is behind an `Arc`.
    has_body: AtomicBool,
    body_polled: AtomicBool,
    body_pending: AtomicBool,
    stalled: AtomicBool,
    forced_close: Arc<ForcedClose>,
}

impl Http2StreamState {
    fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self {
            has_body: AtomicBool::default(),
            body_polled: AtomicBool::default(),
            body_pending: AtomicBool::default(),
            stalled: AtomicBool::default(),
            forced_close: ForcedClose::new(wheel),
        }
    }

    /// Returns the deadline at which the stream is reset while it is blocked.
    pub(super) fn forced_close(&self) -> &Arc<ForcedClose> {
        &self.forced_close
    }

    /// Returns the state of the stream that is being answered, and applies the deadline to it from
    /// now on.
    ///
    /// `None` on HTTP/1.1, where the socket itself has a deadline. Only a body that reports its
    /// polls by [`Http2StreamState::record_body_poll`] may call this: a body that does not would
    /// count as blocked.
    pub(crate) fn current() -> Option<Arc<Self>> {
        let state = CURRENT_STREAM.try_with(Arc::clone).ok()?;
        state.has_body.store(true, Ordering::Relaxed);
        Some(state)
    }

    /// Records that the body was polled, and whether it returned `Pending`.
    pub(crate) fn record_body_poll(&self, is_pending: bool) {
        self.body_polled.store(true, Ordering::Relaxed);
        self.body_pending.store(is_pending, Ordering::Relaxed);
    }

    /// Returns whether the stream was reset because it took nothing for `write_timeout`.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// Executor that runs the streams of one HTTP/2 connection, each under its deadline, owned by the
/// listener's tracker.
#[derive(Clone, Debug)]
pub(super) struct DeadlineExecutor {
    tasks: TaskTracker,
    wheel: Arc<TimerWheel>,
    write_timeout: Duration,
    streams: Arc<OpenStreams>,
}

impl DeadlineExecutor {
    /// Creates an executor that counts the streams of its connection in `streams`.
    pub(super) fn new(
        tasks: &TaskTracker,
        settings: &ConnectionSettings,
        streams: Arc<OpenStreams>,
    ) -> Self {
        let wheel = Arc::clone(&settings.wheel);
        Self { tasks: tasks.clone(), wheel, write_timeout: settings.write_timeout, streams }
    }
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for DeadlineExecutor {
    fn execute(&self, stream: F) {
        let state = Arc::new(Http2StreamState::new(&self.wheel));
        let alarm = Alarm::new(&self.wheel);
        let stream = Box::pin(stream);
        let future = DeadlineStream {
            stream,
            state: Arc::clone(&state),
            alarm,
            write_timeout: self.write_timeout,
            due: None,
            _open_stream: self.streams.open(),
        };
        // Not tied to the shutdown signal: when the connection ends, hyper wakes its streams and
        // they end.
        self.tasks.spawn(CURRENT_STREAM.scope(state, future));
    }
}

/// Future of a stream, with its deadline.
struct DeadlineStream<F> {
    stream: Pin<Box<F>>,
    state: Arc<Http2StreamState>,
    alarm: Alarm,
    write_timeout: Duration,
    /// Tick at which the blocked stream is reset.
    due: Option<Deadline>,
    _open_stream: OpenStreamGuard,
}

impl<F: Future> Future for DeadlineStream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Set by the body if this poll reaches it.
        self.state.body_polled.store(false, Ordering::Relaxed);
        if self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let body_polled = self.state.body_polled.load(Ordering::Relaxed);
        let is_idle = body_polled && self.state.body_pending.load(Ordering::Relaxed);
        // Without an observed body the handler is still running, or the response is a small one
        // in memory.
        if is_idle || !self.state.has_body.load(Ordering::Relaxed) {
            self.due = None;
            return Poll::Pending;
        }
        // hyper asked for another piece, so it could send the one before: the deadline starts anew.
        if body_polled {
            self.due = None;
        }
        let due = self.due.unwrap_or_else(|| self.alarm.wheel().deadline_after(self.write_timeout));
        if due.is_over(self.alarm.wheel()) {
            self.state.stalled.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        // After the write deadline, which counts as a stall.
        let forced_close_due = self.state.forced_close.deadline(context.waker());
        // A body that was polled has seen its own end and sends it: it is not cut off in that turn.
        if !body_polled && forced_close_due.is_over(self.alarm.wheel()) {
            return Poll::Ready(());
        }
        self.due = Some(due);
        self.alarm.set(due.min(forced_close_due), context.waker());
        Poll::Pending
    }
}
