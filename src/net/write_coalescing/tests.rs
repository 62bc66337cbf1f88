//! Which writes are held, when they go out, and that all bytes arrive, in order.

use std::{collections::VecDeque, task::Waker};

use proptest::prelude::*;

use super::*;

proptest! {
    /// Polls each step once, as a caller does that drops a pending future: no accepted byte may
    /// depend on a step being repeated.
    #[test]
    fn what_is_accepted_arrives_in_order_and_nothing_is_left_behind_what_is_done(
        steps in prop::collection::vec(any_step(), 1..60),
        takes in prop::collection::vec(
            prop_oneof![2 => Just(0), 1 => 1_usize..50, 2 => 1000_usize..20_000],
            0..60,
        ),
    ) {
        let (mut corked, handle) = cork(ScriptedTransport::accepting(takes));
        let (mut accepted, mut is_corked, mut flushed) = (0, false, 0);
        for step in steps {
            let mut is_all_out = false;
            let done = match step {
                CorkStep::SetCorked(corked_now) => {
                    handle.set_corked(corked_now);
                    is_corked = corked_now;
                    true
                }
                CorkStep::Write(lengths) => match write(&mut corked, accepted, &lengths) {
                    Poll::Ready(bytes) => {
                        accepted += bytes;
                        prop_assert!(bytes > 0);
                        is_all_out = !is_corked;
                        true
                    }
                    Poll::Pending => false,
                },
                CorkStep::Flush => {
                    let is_done = flush(&mut corked);
                    prop_assert!(is_done || !is_corked, "no need to wait for what the pull does");
                    flushed = if is_done { accepted } else { flushed };
                    is_all_out = is_done && !is_corked;
                    is_done
                }
                CorkStep::FlushHeld => {
                    is_all_out = flush_held(&handle);
                    prop_assert!(
                        !is_all_out || handle.0.lock().io.flushed_bytes >= flushed,
                        "a flush is owed"
                    );
                    prop_assert!(
                        !is_all_out || handle.0.lock().held.capacity() == 0,
                        "a connection that sleeps keeps no buffer"
                    );
                    is_all_out
                }
            };
            let mut transport = handle.0.lock();
            let is_awaited = transport.io.waker.take().is_some();
            prop_assert!(done || is_awaited, "the caller would never be woken");
            prop_assert!(transport.held.capacity() <= MAX_HELD_BYTES);
            prop_assert_eq!(
                transport.io.taken.len() + transport.held.len() - transport.written_bytes,
                accepted
            );
            prop_assert!(!is_all_out || transport.io.taken.len() == accepted, "something is held");
        }
        while !shutdown(&mut corked) {}
        let transport = handle.0.lock();
        prop_assert_eq!(&transport.io.taken, &text(0, accepted));
        prop_assert_eq!(transport.io.flushed_bytes, accepted);
    }
}

#[test]
fn held_bytes_are_sent_in_one_write_once_uncorked() {
    let (mut corked, handle) = cork(ScriptedTransport::default());
    handle.set_corked(true);
    for frame in 0..100 {
        assert_eq!(write(&mut corked, frame * 100, &[9, 91]), Poll::Ready(100));
        assert!(flush(&mut corked));
    }
    assert!(writes(&handle).is_empty());
    assert!(flush_held(&handle));
    assert_eq!(
        (writes(&handle), handle.0.lock().io.flushed_bytes),
        (vec![100 * 100], 100 * 100),
        "and the flush is made good"
    );
    assert!(flush_held(&handle));
    assert_eq!(
        (writes(&handle).len(), handle.0.lock().io.flushes),
        (1, 1),
        "there is nothing to do any more"
    );
}

#[test]
fn more_bytes_than_may_be_held_are_sent_in_pieces_of_the_bound() {
    let (mut corked, handle) = cork(ScriptedTransport::default());
    handle.set_corked(true);
    for frame in 0..10 {
        assert_eq!(write(&mut corked, frame * 4096, &[4096]), Poll::Ready(4096));
    }
    assert!(flush_held(&handle));
    assert_eq!(writes(&handle), [MAX_HELD_BYTES, MAX_HELD_BYTES, 2 * 4096]);
}

#[test]
fn a_write_over_the_bound_is_passed_uncopied_after_held_bytes() {
    let (mut corked, handle) = cork(ScriptedTransport::default());
    handle.set_corked(true);
    assert_eq!(write(&mut corked, 0, &[9, MAX_HELD_BYTES]), Poll::Ready(9 + MAX_HELD_BYTES));
    assert_eq!((writes(&handle), handle.0.lock().held.capacity()), (vec![9 + MAX_HELD_BYTES], 0));
    assert_eq!(write(&mut corked, 9 + MAX_HELD_BYTES, &[5]), Poll::Ready(5));
    assert_eq!(
        write(&mut corked, 14 + MAX_HELD_BYTES, &[MAX_HELD_BYTES + 1]),
        Poll::Ready(MAX_HELD_BYTES + 1)
    );
    assert_eq!(writes(&handle), [9 + MAX_HELD_BYTES, 5, MAX_HELD_BYTES + 1]);
    assert!(flush(&mut corked));
    assert_eq!(handle.0.lock().io.flushes, 0);
    assert!(flush_held(&handle));
    let transport = handle.0.lock();
    assert_eq!(
        (transport.io.flushes, &transport.io.taken),
        (1, &text(0, 15 + 2 * MAX_HELD_BYTES)),
        "that flush is made good"
    );
}

#[test]
fn without_the_cork_nothing_is_held() {
    let (mut corked, handle) = cork(ScriptedTransport::default());
    assert_eq!(write(&mut corked, 0, &[100]), Poll::Ready(100));
    assert!(flush(&mut corked));
    handle.set_corked(true);
    handle.set_corked(false);
    assert_eq!(write(&mut corked, 100, &[9, 91]), Poll::Ready(100));
    assert!(flush(&mut corked));
    let transport = handle.0.lock();
    assert_eq!(
        (&transport.io.writes[..], transport.io.flushes, transport.held.capacity()),
        (&[100, 100][..], 2, 0)
    );
}

#[test]
fn a_shutdown_writes_held_bytes_first() {
    let (mut corked, handle) = cork(ScriptedTransport::accepting([0, 60]));
    handle.set_corked(true);
    assert_eq!(write(&mut corked, 0, &[100]), Poll::Ready(100));
    assert!(!shutdown(&mut corked));
    assert!(!handle.0.lock().io.is_shut);
    assert!(shutdown(&mut corked));
    let transport = handle.0.lock();
    assert_eq!((transport.io.flushed_bytes, transport.io.is_shut), (100, true));
}

#[test]
fn a_transport_that_is_closed_is_an_error_of_the_pull() {
    let (mut corked, handle) = cork(ScriptedTransport::shut_down());
    handle.set_corked(true);
    assert_eq!(write(&mut corked, 0, &[100]), Poll::Ready(100));
    let pulled = handle.poll_flush_held(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(pulled, Poll::Ready(Err(error)) if error.kind() == ErrorKind::WriteZero));
}

/// Transport that takes as many bytes as its script says.
#[derive(Debug, Default)]
pub(in crate::net) struct ScriptedTransport {
    capacities: VecDeque<usize>,
    taken: Vec<u8>,
    /// Number of accepted bytes that have been flushed.
    flushed_bytes: usize,
    writes: Vec<usize>,
    flushes: usize,
    /// Waker of the last caller that got `Pending`.
    waker: Option<Waker>,
    is_shut: bool,
}

impl ScriptedTransport {
    /// Returns a transport that accepts `takes` bytes at its next calls, where zero means
    /// `Pending`, and everything after these.
    pub(in crate::net) fn accepting(takes: impl Into<VecDeque<usize>>) -> Self {
        Self { capacities: takes.into(), ..Self::default() }
    }

    pub(in crate::net) fn shut_down() -> Self {
        Self { is_shut: true, ..Self::default() }
    }

    fn poll_capacity(&mut self, context: &Context<'_>) -> Poll<usize> {
        match self.capacities.pop_front() {
            Some(0) => {
                self.waker = Some(context.waker().clone());
                Poll::Pending
            }
            capacity => Poll::Ready(capacity.unwrap_or(usize::MAX)),
        }
    }
}

impl AsyncRead for ScriptedTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for ScriptedTransport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_shut {
            return Poll::Ready(Ok(0));
        }
        let capacity = ready!(self.poll_capacity(context));
        let offered = slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
        let bytes = capacity.min(offered.len());
        self.taken.extend(&offered[..bytes]);
        self.writes.push(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_capacity(context));
        self.flushes += 1;
        self.flushed_bytes = self.taken.len();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_capacity(context));
        self.is_shut = true;
        Poll::Ready(Ok(()))
    }
}

#[derive(Clone, Debug)]
enum CorkStep {
    SetCorked(bool),
    Write(Vec<usize>),
    Flush,
    FlushHeld,
}

fn any_step() -> impl Strategy<Value = CorkStep> {
    let length =
        || prop_oneof![1_usize..200, 1000_usize..9000, MAX_HELD_BYTES - 5..MAX_HELD_BYTES + 5];
    prop_oneof![
        2 => any::<bool>().prop_map(CorkStep::SetCorked),
        6 => prop::collection::vec(length(), 1..3).prop_map(CorkStep::Write),
        2 => Just(CorkStep::Flush),
        2 => Just(CorkStep::FlushHeld),
    ]
}

/// Returns bytes of a text of which no part looks like another.
fn text(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect()
}

fn write(corked: &mut CorkedIo<ScriptedTransport>, from: usize, lengths: &[usize]) -> Poll<usize> {
    let bytes = text(from, lengths.iter().sum());
    let context = &mut Context::from_waker(Waker::noop());
    let corked = Pin::new(corked);
    match lengths {
        [_] => corked.poll_write(context, &bytes),
        [first, ..] => {
            let (head, rest) = bytes.split_at(*first);
            corked.poll_write_vectored(context, &[IoSlice::new(head), IoSlice::new(rest)])
        }
        [] => unreachable!("every write has a length"),
    }
    .map(Result::unwrap)
}

fn flush(corked: &mut CorkedIo<ScriptedTransport>) -> bool {
    completed(Pin::new(corked).poll_flush(&mut Context::from_waker(Waker::noop())))
}

fn shutdown(corked: &mut CorkedIo<ScriptedTransport>) -> bool {
    completed(Pin::new(corked).poll_shutdown(&mut Context::from_waker(Waker::noop())))
}

fn flush_held(handle: &Cork<ScriptedTransport>) -> bool {
    completed(handle.poll_flush_held(&mut Context::from_waker(Waker::noop())))
}

fn completed(polled: Poll<io::Result<()>>) -> bool {
    polled.map(Result::unwrap).is_ready()
}

/// Returns the number of bytes of each write that the transport took.
pub(in crate::net) fn writes(handle: &Cork<ScriptedTransport>) -> Vec<usize> {
    handle.0.lock().io.writes.clone()
}
