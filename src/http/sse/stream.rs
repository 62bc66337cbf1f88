//! A stream on a socket of its own: pieces gathered into one write, and everything that can end it.
//!
//! May use: `net` (the socket), `sse`, `wheel`.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Read},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::events::Events;
use crate::{
    net::{Place, Socket},
    sse,
};

/// A subscriber with its socket.
#[derive(Debug)]
pub(super) struct Stream {
    socket: TcpStream,
    /// Among the connections of the listener, as long as the socket is open.
    _place: Place,
    events: Events,
    /// What the socket has not taken yet.
    rest: VecDeque<Bytes>,
    /// Tick at which the socket must have taken something, while it is full.
    write_due: u64,
    is_new: bool,
    has_ended: bool,
}

impl Stream {
    /// A stream whose head has been sent.
    pub(super) fn new(socket: Socket, events: Events) -> Self {
        let Socket { stream: socket, place: _place } = socket;
        Self { socket, _place, events, rest: VecDeque::new(), write_due: 0, is_new: true, has_ended: false }
    }

    /// Writes what there is, and tells whether that was the end. If it was not, `context` is woken when there is more to do.
    ///
    /// `pieces` is empty, and will be so again: it is lent, so that a stream that sleeps needs none of its own.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        write_timeout: Duration,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<()> {
        if self.has_hung_up(context) {
            return Poll::Ready(());
        }
        for _ in 0..HANDOVERS {
            if !self.rest.is_empty() {
                match self.write_rest(context, write_timeout) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.has_ended {
                return Poll::Ready(());
            }
            let is_all = self.gather(context, pieces);
            let written = self.write(pieces);
            if !pieces.is_empty() {
                self.rest.extend(pieces.drain(..));
                self.write_due = self.events.wheel().after(write_timeout);
            }
            if written.is_err() {
                return Poll::Ready(());
            }
            if is_all && self.rest.is_empty() && !self.has_ended {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref(); // others are to have their turn
        Poll::Pending
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

    /// Writes pieces until the socket is full; what it did not take stays.
    fn write(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !pieces.is_empty() {
            let written = match pieces.as_slices() {
                ([piece], []) => self.socket.try_write(piece),
                _ => {
                    let mut slices = [IoSlice::new(&[]); MOST_PIECES];
                    let used =
                        pieces.iter().zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
                    self.socket.try_write_vectored(slices.get(..used).unwrap_or_default())
                }
            };
            match written {
                Ok(written) => advance(pieces, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what is left of an earlier write. Whether the stream goes on, once all of it is written.
    fn write_rest(&mut self, context: &mut Context<'_>, write_timeout: Duration) -> Poll<bool> {
        loop {
            let before = self.rest.iter().map(Bytes::len).sum::<usize>();
            let mut rest = std::mem::take(&mut self.rest);
            let written = self.write(&mut rest);
            self.rest = rest;
            if let Err(error) = written {
                self.note(&error);
                return Poll::Ready(false);
            }
            if self.rest.is_empty() {
                self.rest = VecDeque::new(); // it seldom comes to this: no room is kept for it
                return Poll::Ready(true);
            }
            if self.rest.iter().map(Bytes::len).sum::<usize>() < before {
                self.write_due = self.events.wheel().after(write_timeout);
            }
            match self.socket.poll_write_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => break,
            }
        }
        if self.events.wheel().now() >= self.write_due {
            self.events.has_stalled();
            return Poll::Ready(false);
        }
        match self.events.must_go(self.write_due, context) {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// Whether the client has ended the connection. What it sends otherwise is not looked at.
    fn has_hung_up(&mut self, context: &mut Context<'_>) -> bool {
        let mut buffer = [0; 256];
        for _ in 0..READS {
            let mut is_told = false;
            let read = self.socket.try_io(Interest::READABLE, || {
                is_told = true;
                (&*SockRef::from(&self.socket)).read(&mut buffer)
            });
            match read {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nothing has happened since its waker was left there: that is where it still is.
                    if !is_told && !self.is_new {
                        return false;
                    }
                    self.is_new = false;
                    if self.socket.poll_read_ready(context).is_pending() {
                        return false;
                    }
                }
                Err(error) => {
                    self.note(&error);
                    return true;
                }
            }
        }
        context.waker().wake_by_ref();
        self.is_new = true;
        false
    }

    /// The kernel's own user time-out means the same as ours.
    fn note(&mut self, error: &io::Error) {
        if error.kind() == ErrorKind::TimedOut {
            self.events.has_stalled();
        }
    }
}

/// Takes away what has been written.
fn advance(pieces: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(piece) = pieces.front_mut() {
        if written < piece.len() {
            return piece.advance(written);
        }
        written -= piece.len();
        pieces.pop_front();
    }
}

/// Pieces in one write: as many as the subscription hands over, and a heartbeat.
const MOST_PIECES: usize = 32;

/// Bytes after which a write takes no further piece.
const MOST_BYTES: usize = 32 * 1024;

/// Writes after which others have their turn.
const HANDOVERS: usize = 4;

/// Reads after which others have their turn.
const READS: usize = 4;
