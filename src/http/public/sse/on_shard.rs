//! SSE connection on a shard: frames gathered into write batches, partial writes, deadlines and the
//! end of the stream.
//!
//! In: frames of an [`SseSubscriber`], queued events, readiness of the socket. Out: chunks of the
//! HTTP/1.1 body that hyper began.
//!
//! ```text
//! poll:    discard input ─► flush unwritten ─► fill batch ─► write ─┬─ all accepted: next batch
//! deliver: caught up? ─► slices of the events ─► one write ─────────┴─ rest: unwritten
//! ```
//!
//! May use: `event`, `feed`, `net`, `shard`, `sse`, `subscription`.

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
    feed::Feed,
    net::{DetachedConnection, Written},
    shard::{
        DeliveryOutcome, MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, MetricsBuffers, QueuedEvents,
        ShardSubscriber, WriteScratch, advance, io_slices,
    },
    sse,
    subscription::Subscription,
};

/// An SSE subscriber and its socket.
#[derive(Debug)]
pub(crate) struct SseConnection {
    connection: DetachedConnection,
    subscriber: SseSubscriber,
    /// Rest of a partial write. Boxed: few connections have one at any time.
    unwritten: Option<Box<UnwrittenBatch>>,
    /// Bytes of the client that have been discarded.
    ignored_bytes: usize,
    /// No waker is registered for the socket's input.
    must_register_read: bool,
    /// The last chunk is in the batch, or written.
    has_ended: bool,
    /// The subscriber has every entry, and the socket has accepted all of them.
    is_caught_up: bool,
}

#[derive(Debug)]
struct UnwrittenBatch {
    buffers: VecDeque<Bytes>,
    /// Tick by which the socket must have accepted more.
    write_due: u64,
}

impl SseConnection {
    /// Returns a connection whose response head has been sent.
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

    /// Keeps the rest of a partial write, and starts the write deadline.
    fn keep_unwritten(&mut self, batch: VecDeque<Bytes>, write_timeout: Duration) {
        self.is_caught_up = false;
        self.subscriber.record_backlog();
        self.unwritten = Some(Box::new(UnwrittenBatch {
            buffers: batch,
            write_due: self.subscriber.wheel().tick_after(write_timeout),
        }));
    }

    /// Takes frames from the subscriber, within the bounds of one write, and returns whether that
    /// was all there is.
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

    /// Writes the rest of an earlier write, if there is one.
    ///
    /// Returns `Ready(true)` once all of it is written, `Ready(false)` when the stream has to end,
    /// and `Pending` while the socket is full.
    fn flush_unwritten(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut WriteScratch,
    ) -> Poll<bool> {
        let Some(unwritten) = &mut self.unwritten else { return Poll::Ready(true) };
        loop {
            // With TLS the session accepts bytes before the socket does, so an empty list is not
            // enough: records may still wait for the socket.
            let ready = match write_batch(&mut self.connection, &mut unwritten.buffers) {
                Ok(_) if unwritten.buffers.is_empty() && !self.connection.has_unsent_records() => {
                    self.unwritten = None;
                    return Poll::Ready(true);
                }
                Ok(sent) => {
                    scratch.written_bytes += sent;
                    // Progress restarts the deadline: a slow reader is not a stalled one.
                    if sent > 0 {
                        unwritten.write_due =
                            self.subscriber.wheel().tick_after(scratch.write_timeout);
                    }
                    // `try_write` registers no waker. If the socket has become writable in
                    // between, this returns `Ready` and the loop writes again.
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

    /// Returns whether the client has closed the connection.
    ///
    /// Other input is discarded. After [`MAX_IGNORED_BYTES`] the socket is not read any more, and a
    /// close shows as an error of the next write.
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
                    // tokio answered from the cached readiness without a system call: nothing has
                    // arrived since the waker was registered, so the waker is still registered.
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
        // The bound is used up and the socket may have more: poll again, and then register, for the
        // last readiness event has used the waker up.
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

    /// Returns `None`: an SSE subscriber sets its scope in the request only.
    fn take_requested_scope(&mut self) -> Option<Scope> {
        None
    }

    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()> {
        self.is_caught_up = false;
        if self.check_peer_closed(context) {
            return Poll::Ready(());
        }
        // Nothing is read from the log before the earlier write is complete: a stalled client pins
        // one write batch.
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
        context.waker().wake_by_ref(); // the shard's other subscribers first
        Poll::Pending
    }

    /// Writes the events from their own buffers, without a reference count.
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
        // A partial write is rebuilt from the positions in between, so that the common case, where
        // the socket accepts everything, collects no list of events.
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
                // All of it becomes unwritten; the poll that follows waits for the socket.
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
            // The batch has more than one write takes; 0 keeps the subscription's own position.
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
            // The socket's readiness wakes it; polling it before would only find the socket full.
            Some(_) => DeliveryOutcome::Handled,
        }
    }

    fn mark_panicked(&mut self) {
        self.subscriber.record_fault(StreamFault::Error);
    }
}

/// Writes buffers until the socket is full, and returns the bytes that the socket accepted.
///
/// The unwritten rest stays in `batch`. With TLS, records that the session owes are sent even if
/// `batch` is empty.
///
/// # Errors
///
/// The socket's, except `WouldBlock`.
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

/// Records a stalled client if the kernel's `TCP_USER_TIMEOUT` has ended the connection: it is set
/// to the same time as the relay's write deadline.
fn record_io_error(subscriber: &mut SseSubscriber, error: &io::Error) {
    if error.kind() == ErrorKind::TimedOut {
        subscriber.record_fault(StreamFault::Stalled);
    }
}

/// Writes after which the shard's other subscribers get their turn: 128 KiB at about 32 KiB each.
const MAX_WRITES_PER_POLL: usize = 4;

/// Reads after which the shard's other subscribers get their turn.
const MAX_READS_PER_POLL: usize = 4;

/// Input that is discarded before the socket is read no more: a client has nothing to send here,
/// and with TLS each record costs a decryption.
const MAX_IGNORED_BYTES: usize = 64 * 1024;
