//! When a connection is polled, and when the bytes of such a poll are written.

use std::{
    sync::atomic::Ordering::SeqCst,
    task::{Waker, ready},
};

use super::*;
use crate::{
    net::{
        tests::{WakeFlag, lenient_settings},
        write_coalescing::{
            CorkedIo, cork,
            tests::{ScriptedTransport, writes},
        },
    },
    timer_wheel::TimerWheel,
};

#[test]
fn one_stream_is_written_for_at_once_and_several_are_together() {
    let mut connection = Http2Harness::new(ScriptedTransport::default(), |corked, context| {
        for _ in 0..2 {
            ready!(Pin::new(&mut *corked).poll_write(context, &[b'x'; 10])).unwrap();
        }
        Poll::Pending
    });
    let _first = connection.streams.open();
    assert!(connection.poll().is_pending());
    assert_eq!((connection.writes(), connection.take_woken()), (vec![10, 10], false));
    let _second = connection.streams.open();
    for turn in 1..3 {
        assert!(connection.poll().is_pending());
        assert_eq!(
            (connection.writes().len(), connection.take_woken()),
            (1 + turn, true),
            "behind the others first"
        );
        assert!(connection.poll().is_pending());
        assert_eq!(
            (connection.writes().split_off(1 + turn), connection.take_woken()),
            (vec![20], false)
        );
    }
}

#[test]
fn bytes_that_the_socket_refused_are_written_after_the_streams_have_ended() {
    let mut has_written = false;
    let mut connection =
        Http2Harness::new(ScriptedTransport::accepting([4, 0]), move |corked, context| {
            if !std::mem::replace(&mut has_written, true) {
                ready!(Pin::new(corked).poll_write(context, &[b'x'; 10])).unwrap();
            }
            Poll::Pending
        });
    let streams = [connection.streams.open(), connection.streams.open()];
    assert!(connection.poll().is_pending() && connection.poll().is_pending());
    assert_eq!(connection.writes(), [4]);
    drop(streams);
    assert!(connection.poll().is_pending());
    assert_eq!(connection.writes(), [4, 6]);
}

#[test]
fn the_last_bytes_of_an_ending_connection_are_written() {
    let mut connection = Http2Harness::new(ScriptedTransport::default(), |corked, context| {
        ready!(Pin::new(corked).poll_write(context, &[b'x'; 10])).unwrap();
        Poll::Ready(Ok(()))
    });
    let _streams = [connection.streams.open(), connection.streams.open()];
    assert!(connection.poll().is_pending() && connection.poll().is_ready());
    assert_eq!(connection.writes(), [10]);
}

#[test]
fn a_connection_ends_when_a_held_write_fails() {
    let mut connection = Http2Harness::new(ScriptedTransport::shut_down(), |corked, context| {
        ready!(Pin::new(corked).poll_write(context, &[b'x'; 10])).unwrap();
        Poll::Pending
    });
    let _streams = [connection.streams.open(), connection.streams.open()];
    assert!(connection.poll().is_pending() && connection.poll().is_ready());
}

/// Connection that runs `script` at each poll.
struct Http2Harness<F> {
    http2: Http2Connection<ScriptedConnection<F>, ScriptedTransport>,
    streams: Arc<OpenStreams>,
    wake_flag: Arc<WakeFlag>,
}

impl<F: PollScript> Http2Harness<F> {
    fn new(pipe: ScriptedTransport, script: F) -> Self {
        let (corked, cork) = cork(pipe);
        let streams = Arc::new(OpenStreams::default());
        let http2 = Http2Connection::new(
            ScriptedConnection { corked, script },
            cork,
            Arc::clone(&streams),
            &lenient_settings(&TimerWheel::new()),
        );
        Self { http2, streams, wake_flag: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Result<(), hyper::Error>> {
        let waker = Waker::from(Arc::clone(&self.wake_flag));
        Pin::new(&mut self.http2).poll(&mut Context::from_waker(&waker))
    }

    /// Returns whether the connection has woken itself since the last call.
    fn take_woken(&self) -> bool {
        self.wake_flag.0.swap(false, SeqCst)
    }

    fn writes(&self) -> Vec<usize> {
        writes(&self.http2.cork)
    }
}

struct ScriptedConnection<F> {
    corked: CorkedIo<ScriptedTransport>,
    script: F,
}

type PollResult = Poll<Result<(), hyper::Error>>;

trait PollScript:
    FnMut(&mut CorkedIo<ScriptedTransport>, &mut Context<'_>) -> PollResult + Unpin
{
}

impl<F> PollScript for F where
    F: FnMut(&mut CorkedIo<ScriptedTransport>, &mut Context<'_>) -> PollResult + Unpin
{
}

impl<F: PollScript> Future for ScriptedConnection<F> {
    type Output = Result<(), hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { corked, script } = &mut *self;
        script(corked, context)
    }
}

impl<F: PollScript> GracefulConnection for ScriptedConnection<F> {
    fn start_graceful_shutdown(self: Pin<&mut Self>) {}
}
