//! A session on a socket of its own, as its lane sees it.
//!
//! May use: `event`, `fanout`, `net`.

use std::{
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::socket::{Session, write_once};
use crate::{
    event::{Event, Scope},
    fanout::Subscription,
    http::Product,
    net::Guarded,
    shard::{Arrivals, Follower, Given, Ledgers, Lent, MOST_BYTES, MOST_PIECES, advance},
};

impl Follower for Session<Guarded> {
    fn product(&self) -> &Arc<Product> {
        self.visitor.product()
    }

    fn subscription(&mut self) -> &mut Subscription {
        self.visitor.subscription()
    }

    fn wish(&mut self) -> Option<Scope> {
        self.visitor.wish()
    }

    fn poll(&mut self, context: &mut Context<'_>, lent: &mut Lent) -> Poll<()> {
        self.socket.get_mut().ration(READS);
        self.run(context, &mut lent.pieces, &mut lent.bytes)
    }

    /// Written as its lane keeps it.
    fn give(&mut self, arrivals: Arrivals<'_>, lent: &mut Lent, ledgers: &mut Ledgers) -> Given {
        if !self.is_following || self.visitor.is_over() {
            return self.look_into_the_log(arrivals.place());
        }
        let Arrivals { events, messages } = arrivals;
        let (now, before) = (Instant::now(), self.visitor.place());
        let mut slices = [IoSlice::new(&[]); MOST_PIECES];
        let (mut count, mut bytes, mut is_all) = (0, 0, true);
        for (event, message) in events.iter().zip(&mut *messages) {
            let Some(slice) = slices.get_mut(count).filter(|_| bytes < MOST_BYTES) else {
                is_all = false;
                break;
            };
            if self.visitor.take(event) {
                let message = message.get_or_insert_with(|| self.visitor.product().envelopes.of(event));
                *slice = IoSlice::new(message);
                (count, bytes) = (count + 1, bytes + message.len());
                ledgers.ws.note(event, now);
            }
        }
        if count == 0 {
            return Given::Done;
        }
        // If the socket is full, it is polled, and waits for room then.
        let written = match write_once(
            self.socket.get_mut(),
            &mut Context::from_waker(Waker::noop()),
            slices.split_at(count).0,
        ) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_)) => return Given::Ended,
            Poll::Pending => 0,
        };
        lent.bytes += written;
        self.visitor.has_spoken();
        if written < bytes {
            let through = self.visitor.place();
            let is_taken = |it: &Event| it.place() > before && it.place() <= through && self.visitor.may_see(it);
            let taken = events.iter().zip(messages).filter(|(event, _)| is_taken(event));
            self.rest.extend(taken.filter_map(|(_, message)| message.clone()));
            advance(&mut self.rest, written);
        }
        if self.rest.is_empty() && is_all {
            return Given::Done;
        }
        self.look_into_the_log(0);
        Given::Look
    }

    fn look_into_the_log(&mut self, place: u64) -> Given {
        self.is_following = false;
        self.visitor.subscription().look_into_the_log(place);
        match self.is_idle {
            true => Given::Look,
            false => Given::Done, // it is polled in any case, once its socket can be written, or the client has answered
        }
    }

    fn fails(&mut self) {
        self.visitor.blame();
    }
}

/// Reads of the socket after which others have their turn.
const READS: u8 = 4;
