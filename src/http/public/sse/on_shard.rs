//! A stream on a socket of its own: pieces gathered into one write, and everything that can end it.
//!
//! May use: `event`, `net` (the socket), `sse`, `wheel`.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::subscriber::{SseSubscriber, StreamFault};
use crate::{
    event::{Event, Scope},
    fanout::Subscription,
    feed::Feed,
    net::{DetachedConnection, Written},
    shard::{
        DeliveryOutcome, MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, MetricsBuffers, QueuedEvents,
        ShardSubscriber, WriteScratch, advance, io_slices,
    },
    sse,
};

/// A subscriber with its socket.
#[derive(Debug)]
pub(crate) struct SseConnection {
    connection: DetachedConnection,
    subscriber: SseSubscriber,
    /// What the socket has not taken yet.
    unwritten: Option<Box<UnwrittenBatch>>,
    /// Bytes that the client has sent although nobody asked.
    ignored_bytes: usize,
    must_register_read: bool,
    has_ended: bool,
    /// It has everything, and can take more.
    is_caught_up: bool,
}

#[derive(Debug)]
struct UnwrittenBatch {
    buffers: VecDeque<Bytes>,
    /// Tick at which the socket must have taken something.
    write_due: u64,
}

impl SseConnection {
    /// A stream whose head has been sent.
    pub(crate) fn new(connection: DetachedConnection, subscriber: SseSubscriber) -> Self {
        Self {
            connection,
            subscriber,
            unwritten: None,
            ignored_bytes: 0,
            must_register_read: true,
            has_ended: false,
            is_caught_up: false,
        }
    }

    /// Keeps what the socket has not taken.
    fn keep_unwritten(&mut self, batch: VecDeque<Bytes>, write_timeout: Duration) {
        self.is_caught_up = false;
        self.subscriber.record_backlog();
        self.unwritten = Some(Box::new(UnwrittenBatch {
            buffers: batch,
            write_due: self.subscriber.wheel().tick_after(write_timeout),
        }));
    }

    /// Takes what is due, within the bounds of one write. Whether that was all.
    fn fill_batch(&mut self, context: &mut Context<'_>, batch: &mut VecDeque<Bytes>) -> bool {
        let mut bytes = 0;
        while batch.len() < MAX_BATCH_BUFFERS && bytes < MAX_BATCH_BYTES {
            let chunk = match self.subscriber.poll_next(context) {
                Poll::Ready(Some(chunk)) => chunk.into_chunk(),
                Poll::Ready(None) => {
                    self.has_ended = true;
                    batch.push_back(sse::encode_http1_chunk(b""));
                    return true;
                }
                Poll::Pending => return true,
            };
            bytes += chunk.len();
            batch.push_back(chunk);
        }
        false
    }

    /// Writes what is left of an earlier write, if anything is. Whether the stream goes on, once all of it is written.
    fn flush_unwritten(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut WriteScratch,
    ) -> Poll<bool> {
        let Some(unwritten) = &mut self.unwritten else { return Poll::Ready(true) };
        loop {
            let ready = match write_batch(&mut self.connection, &mut unwritten.buffers) {
                Ok(_) if unwritten.buffers.is_empty() && !self.connection.has_unsent_records() => {
                    self.unwritten = None;
                    return Poll::Ready(true);
                }
                Ok(sent) => {
                    scratch.written_bytes += sent;
                    if sent > 0 {
                        unwritten.write_due =
                            self.subscriber.wheel().tick_after(scratch.write_timeout);
                    }
                    self.connection.socket().poll_write_ready(context)
                }
                Err(error) => Poll::Ready(Err(error)),
            };
            match ready {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    record_io_error(&mut self.subscriber, &error);
                    return Poll::Ready(false);
                }
                Poll::Pending => break,
            }
        }
        if self.subscriber.wheel().current_tick() >= unwritten.write_due {
            self.subscriber.record_fault(StreamFault::Stalled);
            return Poll::Ready(false);
        }
        match self.subscriber.check_end(unwritten.write_due, context) {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// Whether the client has ended the connection. What it sends otherwise is not looked at; one that does not stop is not
    /// read any more, and its end shows when it is written to.
    fn check_peer_closed(&mut self, context: &mut Context<'_>) -> bool {
        for _ in 0..MAX_READS_PER_POLL {
            if self.ignored_bytes >= MAX_IGNORED_BYTES {
                return false;
            }
            let mut is_notified = false;
            match self.connection.try_discard_input(&mut is_notified) {
                Ok(0) => return true,
                Ok(bytes) => self.ignored_bytes += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nothing has happened since its waker was left there: that is where it still is.
                    if !is_notified && !self.must_register_read {
                        return false;
                    }
                    self.must_register_read = false;
                    if self.connection.socket().poll_read_ready(context).is_pending() {
                        return false;
                    }
                }
                Err(error) => {
                    record_io_error(&mut self.subscriber, &error);
                    return true;
                }
            }
        }
        context.waker().wake_by_ref();
        self.must_register_read = true;
        false
    }
}

impl ShardSubscriber for SseConnection {
    fn feed(&self) -> &Arc<Feed> {
        self.subscriber.feed()
    }

    fn subscription(&mut self) -> &mut Subscription {
        self.subscriber.subscription()
    }

    /// It has said what it wants in its request.
    fn take_requested_scope(&mut self) -> Option<Scope> {
        None
    }

    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()> {
        self.is_caught_up = false;
        if self.check_peer_closed(context) {
            return Poll::Ready(());
        }
        for _ in 0..MAX_WRITES_PER_POLL {
            match self.flush_unwritten(context, scratch) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            if self.has_ended {
                return Poll::Ready(());
            }
            let is_complete = self.fill_batch(context, &mut scratch.batch);
            match write_batch(&mut self.connection, &mut scratch.batch) {
                Ok(sent) => scratch.written_bytes += sent,
                Err(error) => {
                    record_io_error(&mut self.subscriber, &error);
                    return Poll::Ready(());
                }
            }
            if !scratch.batch.is_empty() || self.connection.has_unsent_records() {
                self.keep_unwritten(scratch.batch.drain(..).collect(), scratch.write_timeout);
            }
            if is_complete && self.unwritten.is_none() && !self.has_ended {
                self.is_caught_up = self.subscriber.is_caught_up();
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref(); // others are to have their turn
        Poll::Pending
    }

    /// Written as it lies there.
    fn deliver(
        &mut self,
        queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome {
        let now = Instant::now();
        if !self.is_caught_up || self.subscriber.is_token_expired(now) {
            return self.fall_back_to_log(queued.first_position());
        }
        let before = self.subscriber.position();
        let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
        let (mut count, mut bytes, mut is_complete) = (0, 0, true);
        for event in queued.events {
            let Some(slice) = slices.get_mut(count).filter(|_| bytes < MAX_BATCH_BYTES) else {
                is_complete = false;
                break;
            };
            if self.subscriber.accept(event) {
                *slice = IoSlice::new(event.http1_chunk());
                (count, bytes) = (count + 1, bytes + event.http1_chunk().len());
                metrics.sse.record_delivery(event, now);
            }
        }
        if count == 0 {
            return DeliveryOutcome::Handled;
        }
        let Written { accepted_bytes: taken, sent_bytes: sent } =
            match self.connection.try_write(slices.split_at(count).0) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Written::default(),
                Err(error) => {
                    record_io_error(&mut self.subscriber, &error);
                    return DeliveryOutcome::Ended;
                }
            };
        scratch.written_bytes += sent;
        self.subscriber.reset_heartbeat();
        if taken < bytes || self.connection.has_unsent_records() {
            let last = self.subscriber.position();
            let was_accepted = |it: &&Arc<Event>| {
                it.position() > before && it.position() <= last && self.subscriber.includes(it)
            };
            let mut unwritten = queued
                .events
                .iter()
                .filter(was_accepted)
                .map(|event| event.http1_chunk().clone())
                .collect();
            advance(&mut unwritten, taken);
            self.keep_unwritten(unwritten, scratch.write_timeout);
        }
        if !is_complete {
            self.fall_back_to_log(0);
        }
        if is_complete && self.unwritten.is_none() {
            DeliveryOutcome::Handled
        } else {
            DeliveryOutcome::NeedsPoll
        }
    }

    fn fall_back_to_log(&mut self, position: u64) -> DeliveryOutcome {
        self.is_caught_up = false;
        self.subscriber.fall_back_to_log(position);
        match self.unwritten {
            None => DeliveryOutcome::NeedsPoll,
            Some(_) => DeliveryOutcome::Handled, // once its socket can be written
        }
    }

    fn mark_panicked(&mut self) {
        self.subscriber.record_fault(StreamFault::Error);
    }
}

/// Writes pieces until the socket is full, and returns how many bytes it took; what was not taken stays.
fn write_batch(
    connection: &mut DetachedConnection,
    batch: &mut VecDeque<Bytes>,
) -> io::Result<usize> {
    let mut total = 0;
    while !batch.is_empty() || connection.has_unsent_records() {
        let (slices, used) = io_slices(batch);
        match connection.try_write(slices.split_at(used).0) {
            Ok(Written { accepted_bytes: taken, sent_bytes: sent }) => {
                advance(batch, taken);
                total += sent;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// The kernel's own user time-out means the same as ours.
fn record_io_error(subscriber: &mut SseSubscriber, error: &io::Error) {
    if error.kind() == ErrorKind::TimedOut {
        subscriber.record_fault(StreamFault::Stalled);
    }
}

/// Writes after which others have their turn.
const MAX_WRITES_PER_POLL: usize = 4;

/// Reads after which others have their turn.
const MAX_READS_PER_POLL: usize = 4;

/// What a client may send on its stream and still be read.
const MAX_IGNORED_BYTES: usize = 64 * 1024;
