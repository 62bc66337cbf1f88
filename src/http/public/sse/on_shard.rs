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

use super::subscriber::{Events, Fault};
use crate::{
    event::{Event, Scope},
    fanout::Subscription,
    http::Product,
    net::{Wire, Written},
    shard::{Arrivals, Follower, Given, Ledgers, Lent, MOST_BYTES, MOST_PIECES, advance, slices},
    sse,
};

/// A subscriber with its socket.
#[derive(Debug)]
pub(crate) struct Stream {
    wire: Wire,
    events: Events,
    /// What the socket has not taken yet.
    rest: Option<Box<Rest>>,
    /// Bytes that the client has sent although nobody asked.
    heard: usize,
    must_register: bool,
    has_ended: bool,
    /// It has everything, and can take more.
    is_following: bool,
}

#[derive(Debug)]
struct Rest {
    pieces: VecDeque<Bytes>,
    /// Tick at which the socket must have taken something.
    due: u64,
}

impl Stream {
    /// A stream whose head has been sent.
    pub(crate) fn new(wire: Wire, events: Events) -> Self {
        Self { wire, events, rest: None, heard: 0, must_register: true, has_ended: false, is_following: false }
    }

    /// Keeps what the socket has not taken.
    fn keep(&mut self, pieces: VecDeque<Bytes>, write_timeout: Duration) {
        self.is_following = false;
        self.events.is_stuck();
        self.rest = Some(Box::new(Rest { pieces, due: self.events.wheel().after(write_timeout) }));
    }

    /// Takes what is due, within the bounds of one write. Whether that was all.
    fn gather(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> bool {
        let mut bytes = 0;
        while pieces.len() < MOST_PIECES && bytes < MOST_BYTES {
            let piece = match self.events.poll_next(context) {
                Poll::Ready(Some(piece)) => piece.chunk(),
                Poll::Ready(None) => {
                    self.has_ended = true;
                    pieces.push_back(sse::encode_chunk(b""));
                    return true;
                }
                Poll::Pending => return true,
            };
            bytes += piece.len();
            pieces.push_back(piece);
        }
        false
    }

    /// Writes what is left of an earlier write, if anything is. Whether the stream goes on, once all of it is written.
    fn write_rest(&mut self, context: &mut Context<'_>, lent: &mut Lent) -> Poll<bool> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(true) };
        loop {
            let ready = match write(&mut self.wire, &mut rest.pieces) {
                Ok(_) if rest.pieces.is_empty() && !self.wire.owes() => {
                    self.rest = None;
                    return Poll::Ready(true);
                }
                Ok(sent) => {
                    lent.bytes += sent;
                    if sent > 0 {
                        rest.due = self.events.wheel().after(lent.write_timeout);
                    }
                    self.wire.socket().poll_write_ready(context)
                }
                Err(error) => Poll::Ready(Err(error)),
            };
            match ready {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    note(&mut self.events, &error);
                    return Poll::Ready(false);
                }
                Poll::Pending => break,
            }
        }
        if self.events.wheel().now() >= rest.due {
            self.events.fails(Fault::Stalled);
            return Poll::Ready(false);
        }
        match self.events.must_go(rest.due, context) {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// Whether the client has ended the connection. What it sends otherwise is not looked at; one that does not stop is not
    /// read any more, and its end shows when it is written to.
    fn has_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        for _ in 0..READS {
            if self.heard >= MOST_HEARD {
                return false;
            }
            let mut is_told = false;
            match self.wire.try_hear(&mut is_told) {
                Ok(0) => return true,
                Ok(bytes) => self.heard += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nothing has happened since its waker was left there: that is where it still is.
                    if !is_told && !self.must_register {
                        return false;
                    }
                    self.must_register = false;
                    if self.wire.socket().poll_read_ready(context).is_pending() {
                        return false;
                    }
                }
                Err(error) => {
                    note(&mut self.events, &error);
                    return true;
                }
            }
        }
        context.waker().wake_by_ref();
        self.must_register = true;
        false
    }
}

impl Follower for Stream {
    fn product(&self) -> &Arc<Product> {
        self.events.product()
    }

    fn subscription(&mut self) -> &mut Subscription {
        self.events.subscription()
    }

    /// It has said what it wants in its request.
    fn wish(&mut self) -> Option<Scope> {
        None
    }

    fn poll(&mut self, context: &mut Context<'_>, lent: &mut Lent) -> Poll<()> {
        self.is_following = false;
        if self.has_hung_up(context) {
            return Poll::Ready(());
        }
        for _ in 0..WRITES {
            match self.write_rest(context, lent) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            if self.has_ended {
                return Poll::Ready(());
            }
            let is_all = self.gather(context, &mut lent.pieces);
            match write(&mut self.wire, &mut lent.pieces) {
                Ok(sent) => lent.bytes += sent,
                Err(error) => {
                    note(&mut self.events, &error);
                    return Poll::Ready(());
                }
            }
            if !lent.pieces.is_empty() || self.wire.owes() {
                self.keep(lent.pieces.drain(..).collect(), lent.write_timeout);
            }
            if is_all && self.rest.is_none() && !self.has_ended {
                self.is_following = self.events.is_following();
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref(); // others are to have their turn
        Poll::Pending
    }

    /// Written as it lies there.
    fn give(&mut self, arrivals: Arrivals<'_>, lent: &mut Lent, ledgers: &mut Ledgers) -> Given {
        let now = Instant::now();
        if !self.is_following || self.events.is_over(now) {
            return self.look_into_the_log(arrivals.place());
        }
        let before = self.events.place();
        let mut slices = [IoSlice::new(&[]); MOST_PIECES];
        let (mut count, mut bytes, mut is_all) = (0, 0, true);
        for event in arrivals.events {
            let Some(slice) = slices.get_mut(count).filter(|_| bytes < MOST_BYTES) else {
                is_all = false;
                break;
            };
            if self.events.take(event) {
                *slice = IoSlice::new(event.chunk());
                (count, bytes) = (count + 1, bytes + event.chunk().len());
                ledgers.sse.note(event, now);
            }
        }
        if count == 0 {
            return Given::Done;
        }
        let Written { taken, sent } = match self.wire.try_write(slices.split_at(count).0) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Written::default(),
            Err(error) => {
                note(&mut self.events, &error);
                return Given::Ended;
            }
        };
        lent.bytes += sent;
        self.events.has_spoken();
        if taken < bytes || self.wire.owes() {
            let through = self.events.place();
            let is_taken = |it: &&Arc<Event>| it.place() > before && it.place() <= through && self.events.may_see(it);
            let mut rest = arrivals.events.iter().filter(is_taken).map(|event| event.chunk().clone()).collect();
            advance(&mut rest, taken);
            self.keep(rest, lent.write_timeout);
        }
        if !is_all {
            self.look_into_the_log(0);
        }
        if is_all && self.rest.is_none() { Given::Done } else { Given::Look }
    }

    fn look_into_the_log(&mut self, place: u64) -> Given {
        self.is_following = false;
        self.events.look_into_the_log(place);
        match self.rest {
            None => Given::Look,
            Some(_) => Given::Done, // once its socket can be written
        }
    }

    fn fails(&mut self) {
        self.events.fails(Fault::Error);
    }
}

/// Writes pieces until the socket is full, and returns how many bytes it took; what was not taken stays.
fn write(wire: &mut Wire, pieces: &mut VecDeque<Bytes>) -> io::Result<usize> {
    let mut total = 0;
    while !pieces.is_empty() || wire.owes() {
        let (slices, used) = slices(pieces);
        match wire.try_write(slices.split_at(used).0) {
            Ok(Written { taken, sent }) => {
                advance(pieces, taken);
                total += sent;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// The kernel's own user time-out means the same as ours.
fn note(events: &mut Events, error: &io::Error) {
    if error.kind() == ErrorKind::TimedOut {
        events.fails(Fault::Stalled);
    }
}

/// Writes after which others have their turn.
const WRITES: usize = 4;

/// Reads after which others have their turn.
const READS: usize = 4;

/// What a client may send on its stream and still be read.
const MOST_HEARD: usize = 64 * 1024;
