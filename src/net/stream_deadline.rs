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
    Cut, Manners,
    http2::{Open, Streams},
};
use crate::timer_wheel::{Alarm, Wheel};

tokio::task_local! {
    /// The patience with the HTTP/2 stream whose future is being polled.
    static PATIENCE: Arc<Patience>;
}

/// Between a stream's body and the deadline around it.
#[derive(Debug)]
pub(crate) struct Patience {
    has_body: AtomicBool,
    was_asked: AtomicBool,
    is_waiting: AtomicBool,
    stalled: AtomicBool,
    cut: Arc<Cut>,
}

impl Patience {
    fn new(wheel: &Arc<Wheel>) -> Self {
        Self {
            has_body: AtomicBool::default(),
            was_asked: AtomicBool::default(),
            is_waiting: AtomicBool::default(),
            stalled: AtomicBool::default(),
            cut: Cut::new(wheel),
        }
    }

    /// What ends the stream while it is blocked.
    pub(super) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }

    /// The patience with the stream that is being answered; none on HTTP/1.1, where the socket itself has a deadline.
    pub(crate) fn of_stream() -> Option<Arc<Self>> {
        let patience = PATIENCE.try_with(Arc::clone).ok()?;
        patience.has_body.store(true, Ordering::Relaxed);
        Some(patience)
    }

    /// The body was asked for more, and either gave something or is waiting for it.
    pub(crate) fn asked(&self, is_waiting: bool) {
        self.was_asked.store(true, Ordering::Relaxed);
        self.is_waiting.store(is_waiting, Ordering::Relaxed);
    }

    /// Whether the stream was reset because it took nothing for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// Runs the streams of one HTTP/2 connection, each under its deadline, owned by the listener's tracker.
#[derive(Clone, Debug)]
pub(super) struct PatientExecutor {
    tasks: TaskTracker,
    wheel: Arc<Wheel>,
    write_timeout: Duration,
    streams: Arc<Streams>,
}

impl PatientExecutor {
    /// Counts the streams of its connection in `streams`.
    pub(super) fn new(tasks: &TaskTracker, manners: &Manners, streams: Arc<Streams>) -> Self {
        let wheel = Arc::clone(&manners.wheel);
        Self { tasks: tasks.clone(), wheel, write_timeout: manners.write_timeout, streams }
    }
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for PatientExecutor {
    fn execute(&self, stream: F) {
        let patience = Arc::new(Patience::new(&self.wheel));
        let alarm = Alarm::new(&self.wheel);
        let stream = Box::pin(stream);
        let patient = Patient {
            stream,
            patience: Arc::clone(&patience),
            alarm,
            write_timeout: self.write_timeout,
            due: None,
            _open: self.streams.open(),
        };
        // A stream ends with its connection: hyper tells it.
        self.tasks.spawn(PATIENCE.scope(patience, patient));
    }
}

/// A stream's future with a deadline.
struct Patient<F> {
    stream: Pin<Box<F>>,
    patience: Arc<Patience>,
    alarm: Alarm,
    write_timeout: Duration,
    due: Option<u64>,
    _open: Open,
}

impl<F: Future> Future for Patient<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.patience.was_asked.store(false, Ordering::Relaxed);
        if self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let was_asked = self.patience.was_asked.load(Ordering::Relaxed);
        let is_idle = was_asked && self.patience.is_waiting.load(Ordering::Relaxed);
        if is_idle || !self.patience.has_body.load(Ordering::Relaxed) {
            self.due = None;
            return Poll::Pending;
        }
        if was_asked {
            self.due = None; // it took something: the deadline begins anew
        }
        let due = self.due.unwrap_or_else(|| self.alarm.wheel().after(self.write_timeout));
        if self.alarm.wheel().now() >= due {
            self.patience.stalled.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        let cut = self.patience.cut.due(context.waker());
        if !was_asked && self.alarm.wheel().now() >= cut {
            return Poll::Ready(()); // a body that was asked has its say first
        }
        self.due = Some(due);
        self.alarm.set(due.min(cut), context.waker());
        Poll::Pending
    }
}
