//! The streams of one product on one lane, and what has arrived for them.
//!
//! May use: `event`, `fanout`, `metrics`.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use prometheus::{IntCounter, local::LocalHistogram};
use tokio::time::Instant;

use crate::{
    event::{Event, Scope},
    fanout::{Followers, Subscription},
    http::Product,
};

/// Those who follow one product.
#[derive(Debug)]
pub(super) struct Flock {
    pub(super) product: Arc<Product>,
    followers: Followers,
    size: usize,
    /// What is being given to them.
    pub(super) arrivals: Vec<Arc<Event>>,
    /// Who has not been given it yet.
    pub(super) concerned: VecDeque<usize>,
    /// More has arrived.
    pub(super) is_called: bool,
    /// It stands in its crowd's list of those that have something to give.
    pub(super) is_listed: bool,
    pub(super) ledger: Ledger,
}

impl Flock {
    /// Nobody yet; `waker` is called when something has arrived.
    pub(super) fn new(product: &Arc<Product>, lane: usize, waker: Waker) -> Self {
        Self {
            product: Arc::clone(product),
            followers: Followers::new(&product.fanout, lane, waker),
            size: 0,
            arrivals: Vec::new(),
            concerned: VecDeque::new(),
            is_called: false,
            is_listed: false,
            ledger: Ledger { count: 0, lag: product.sse.lag.local(), delivered: product.sse.delivered.clone() },
        }
    }

    /// One more.
    pub(super) fn join(&mut self, number: usize, subscription: &mut Subscription) {
        self.size += 1;
        self.followers.join(number, subscription);
    }

    /// One less; whether that was the last.
    pub(super) fn leave(&mut self, number: usize, scope: &Scope) -> bool {
        self.size -= 1;
        self.followers.leave(number, scope);
        self.size == 0
    }

    /// Takes what has arrived, once what came before has been given. Visits each whom something is for, and is told whether that is
    /// to be given to it.
    pub(super) fn look(&mut self, mut visit: impl FnMut(usize, News) -> bool) {
        let Self { followers, arrivals, concerned, .. } = self;
        if !concerned.is_empty() || !std::mem::take(&mut self.is_called) {
            return;
        }
        arrivals.clear();
        let torn_at = followers.take(arrivals);
        // A relay before this one may still be telling what was, which is not for who asked for news.
        let history_through = self.product.log.history_through();
        let history = arrivals.first().map(|event| event.place()).filter(|place| *place <= history_through);
        if let Some(place) = torn_at.or(history) {
            arrivals.clear();
            followers.everybody(|number| {
                visit(number, News::InTheLog(place));
            });
            return;
        }
        for (at, event) in arrivals.iter().enumerate() {
            followers.concerned(event, |number| {
                if visit(number, News::Arrived(at)) {
                    concerned.push_back(number);
                }
            });
        }
    }

    /// The place up to which everything has been given, if nothing waits.
    pub(super) fn position(&self) -> Option<u64> {
        if self.is_called || !self.concerned.is_empty() { None } else { self.followers.position() }
    }
}

/// Where somebody finds what is for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// From this place on in the log.
    InTheLog(u64),
    /// From this number on among the arrivals.
    Arrived(usize),
}

/// What has been delivered, until it is told to everybody.
#[derive(Debug)]
pub(super) struct Ledger {
    count: u64,
    lag: LocalHistogram,
    delivered: IntCounter,
}

impl Ledger {
    /// An event that is delivered at `now`, as soon as it has come.
    pub(super) fn note(&mut self, event: &Event, now: Instant) {
        self.count += 1;
        if let Some(received) = event.received() {
            self.lag.observe(now.saturating_duration_since(received).as_secs_f64());
        }
    }

    /// Tells it.
    pub(super) fn flush(&mut self) {
        self.delivered.inc_by(std::mem::take(&mut self.count));
        self.lag.flush();
    }
}
