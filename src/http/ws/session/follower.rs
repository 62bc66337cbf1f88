//! A session on a socket of its own, as its lane sees it.
//!
//! May use: `event`, `fanout`, `net`.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::Session;
use crate::{
    event::{Event, Scope},
    fanout::Subscription,
    http::{
        Product,
        lane::{Follower, Given, Ledgers, Lent, MOST_BYTES, MOST_PIECES},
    },
    net::Guarded,
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

    fn give(&mut self, arrivals: &[Arc<Event>], lent: &mut Lent, ledgers: &mut Ledgers) -> Given {
        if !self.is_following || self.visitor.is_over() {
            return self.look_into_the_log(arrivals.first().map_or(0, |event| event.place()));
        }
        let now = Instant::now();
        let (mut bytes, mut is_all) = (0, true);
        for event in arrivals {
            if bytes >= MOST_BYTES || lent.pieces.len() == MOST_PIECES {
                is_all = false;
                break;
            }
            if let Some(frame) = self.visitor.take(event) {
                bytes += frame.len();
                lent.pieces.push_back(frame);
                ledgers.ws.note(event, now);
            }
        }
        if bytes == 0 {
            return Given::Done;
        }
        lent.bytes += bytes;
        self.visitor.has_spoken();
        // If the socket is full, it is polled, and waits for room then.
        if self.write(&mut Context::from_waker(Waker::noop()), &mut lent.pieces).is_err() {
            return Given::Ended;
        }
        if !self.rest.is_empty() || !is_all {
            self.look_into_the_log(0);
            return Given::Look;
        }
        Given::Done
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
