//! When a connection is polled, and what becomes of what it says then.

use std::task::ready;

use super::*;
use crate::{
    net::{
        tests::{Bell, patient},
        write_coalescing::{
            Corked, cork,
            tests::{Pipe, writes},
        },
    },
    timer_wheel::Wheel,
};

#[test]
fn one_stream_is_written_for_at_once_and_several_are_together() {
    let mut connection = Case::new(Pipe::default(), |corked, context| {
        for _ in 0..2 {
            ready!(Pin::new(&mut *corked).poll_write(context, &[b'x'; 10])).unwrap();
        }
        Poll::Pending
    });
    let _first = connection.streams.open();
    assert!(connection.poll().is_pending());
    assert_eq!((connection.writes(), connection.has_rung()), (vec![10, 10], false));
    let _second = connection.streams.open();
    for turn in 1..3 {
        assert!(connection.poll().is_pending());
        assert_eq!((connection.writes().len(), connection.has_rung()), (1 + turn, true), "behind the others first");
        assert!(connection.poll().is_pending());
        assert_eq!((connection.writes().split_off(1 + turn), connection.has_rung()), (vec![20], false));
    }
}

#[test]
fn what_no_room_was_for_is_written_later_though_the_streams_have_gone() {
    let mut is_said = false;
    let mut connection = Case::new(Pipe::that_takes([4, 0]), move |corked, context| {
        if !std::mem::replace(&mut is_said, true) {
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
fn what_a_connection_has_said_at_its_end_is_written() {
    let mut connection = Case::new(Pipe::default(), |corked, context| {
        ready!(Pin::new(corked).poll_write(context, &[b'x'; 10])).unwrap();
        Poll::Ready(Ok(()))
    });
    let _streams = [connection.streams.open(), connection.streams.open()];
    assert!(connection.poll().is_pending() && connection.poll().is_ready());
    assert_eq!(connection.writes(), [10]);
}

#[test]
fn a_connection_whose_socket_fails_behind_its_back_has_ended() {
    let mut connection = Case::new(Pipe::that_is_shut(), |corked, context| {
        ready!(Pin::new(corked).poll_write(context, &[b'x'; 10])).unwrap();
        Poll::Pending
    });
    let _streams = [connection.streams.open(), connection.streams.open()];
    assert!(connection.poll().is_pending() && connection.poll().is_ready());
}

/// A connection on which this is said at each turn.
struct Case<F> {
    http2: Http2<Speaker<F>, Pipe>,
    streams: Arc<Streams>,
    bell: Arc<Bell>,
}

impl<F: Say> Case<F> {
    fn new(pipe: Pipe, say: F) -> Self {
        let (corked, cork) = cork(pipe);
        let streams = Arc::new(Streams::default());
        let http2 = Http2::new(Speaker { corked, say }, cork, Arc::clone(&streams), &patient(&Wheel::new()));
        Self { http2, streams, bell: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Result<(), hyper::Error>> {
        let waker = Waker::from(Arc::clone(&self.bell));
        Pin::new(&mut self.http2).poll(&mut Context::from_waker(&waker))
    }

    /// Whether it has woken itself since this was asked last.
    fn has_rung(&self) -> bool {
        self.bell.0.swap(false, SeqCst)
    }

    fn writes(&self) -> Vec<usize> {
        writes(&self.http2.cork)
    }
}

struct Speaker<F> {
    corked: Corked<Pipe>,
    say: F,
}

trait Say: FnMut(&mut Corked<Pipe>, &mut Context<'_>) -> Poll<Result<(), hyper::Error>> + Unpin {}

impl<F: FnMut(&mut Corked<Pipe>, &mut Context<'_>) -> Poll<Result<(), hyper::Error>> + Unpin> Say for F {}

impl<F: Say> Future for Speaker<F> {
    type Output = Result<(), hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { corked, say } = &mut *self;
        say(corked, context)
    }
}

impl<F: Say> Graceful for Speaker<F> {
    fn end_gracefully(self: Pin<&mut Self>) {}
}
