//! The write deadline of one HTTP/2 stream.
//!
//! While a stream's window is used up, hyper polls the stream's future but not the body inside it: it holds one piece that it
//! cannot send, and asks for no other. So a poll after which the body waits for events is an idle stream, and one after
//! which it does not is a blocked one, making progress only if the body was asked. A stream that is blocked without
//! progress for the write time-out, or until its time is over, is dropped, which resets it; its neighbours go on, as far as the connection's own window
//! lets them.
//!
//! May use: `wheel`.

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
use crate::timer_wheel::{Alarm, TimerWheel};

tokio::task_local! {
    /// The patience with the HTTP/2 stream whose future is being polled.
    static CURRENT_STREAM: Arc<Http2StreamState>;
}

/// Between a stream's body and the deadline around it.
#[derive(Debug)]
pub(crate) struct Http2StreamState {
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

    /// What ends the stream while it is blocked.
    pub(super) fn forced_close(&self) -> &Arc<ForcedClose> {
        &self.forced_close
    }

    /// The patience with the stream that is being answered; none on HTTP/1.1, where the socket itself has a deadline.
    pub(crate) fn current() -> Option<Arc<Self>> {
        let state = CURRENT_STREAM.try_with(Arc::clone).ok()?;
        state.has_body.store(true, Ordering::Relaxed);
        Some(state)
    }

    /// The body was asked for more, and either gave something or is waiting for it.
    pub(crate) fn record_body_poll(&self, is_pending: bool) {
        self.body_polled.store(true, Ordering::Relaxed);
        self.body_pending.store(is_pending, Ordering::Relaxed);
    }

    /// Whether the stream was reset because it took nothing for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// Runs the streams of one HTTP/2 connection, each under its deadline, owned by the listener's tracker.
#[derive(Clone, Debug)]
pub(super) struct DeadlineExecutor {
    tasks: TaskTracker,
    wheel: Arc<TimerWheel>,
    write_timeout: Duration,
    streams: Arc<OpenStreams>,
}

impl DeadlineExecutor {
    /// Counts the streams of its connection in `streams`.
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
        // A stream ends with its connection: hyper tells it.
        self.tasks.spawn(CURRENT_STREAM.scope(state, future));
    }
}

/// A stream's future with a deadline.
struct DeadlineStream<F> {
    stream: Pin<Box<F>>,
    state: Arc<Http2StreamState>,
    alarm: Alarm,
    write_timeout: Duration,
    due: Option<u64>,
    _open_stream: OpenStreamGuard,
}

impl<F: Future> Future for DeadlineStream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.state.body_polled.store(false, Ordering::Relaxed);
        if self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let body_polled = self.state.body_polled.load(Ordering::Relaxed);
        let is_idle = body_polled && self.state.body_pending.load(Ordering::Relaxed);
        if is_idle || !self.state.has_body.load(Ordering::Relaxed) {
            self.due = None;
            return Poll::Pending;
        }
        if body_polled {
            self.due = None; // it took something: the deadline begins anew
        }
        let due = self.due.unwrap_or_else(|| self.alarm.wheel().tick_after(self.write_timeout));
        if self.alarm.wheel().current_tick() >= due {
            self.state.stalled.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        let forced_close_due = self.state.forced_close.due_tick(context.waker());
        if !body_polled && self.alarm.wheel().current_tick() >= forced_close_due {
            return Poll::Ready(()); // a body that was asked has its say first
        }
        self.due = Some(due);
        self.alarm.set(due.min(forced_close_due), context.waker());
        Poll::Pending
    }
}
