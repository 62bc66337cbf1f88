//! The subscribers of one product on one lane, and what has arrived for them.
//!
//! May use: `event`, `fanout`, `metrics`.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::Bytes;
use prometheus::{IntCounter, local::LocalHistogram};
use tokio::time::Instant;

use super::Arrivals;
use crate::{
    event::{Event, Scope},
    fanout::{Arrived, Followers, Subscription},
    http::Product,
    metrics::DeliveryMetrics,
};

/// Those who follow one product.
#[derive(Debug)]
pub(super) struct Flock {
    pub(super) product: Arc<Product>,
    followers: Followers,
    size: usize,
    through: u64,
    /// What is being given to them.
    arrivals: Vec<Arc<Event>>,
    /// As many as there are arrivals.
    messages: Vec<Option<Bytes>>,
    /// Who has not been given it yet.
    pub(super) concerned: VecDeque<usize>,
    /// More has arrived.
    pub(super) is_called: bool,
    /// It stands in its crowd's list of those that have something to give.
    pub(super) is_listed: bool,
    pub(super) ledgers: Ledgers,
}

impl Flock {
    /// Nobody yet; `waker` is called when something has arrived.
    pub(super) fn new(product: &Arc<Product>, lane: usize, waker: Waker) -> Self {
        Self {
            product: Arc::clone(product),
            followers: Followers::new(&product.fanout, lane, waker),
            size: 0,
            through: 0,
            arrivals: Vec::new(),
            messages: Vec::new(),
            concerned: VecDeque::new(),
            is_called: false,
            is_listed: false,
            ledgers: Ledgers { sse: Ledger::of(&product.sse), ws: Ledger::of(&product.ws) },
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

    /// One of them wants something else from now on, and looks into the log for it.
    pub(super) fn change_scope(&mut self, number: usize, subscription: &mut Subscription, scope: Scope) {
        self.followers.change_scope(number, subscription, scope);
    }

    /// Takes what has arrived, once what came before has been given. Visits each whom something is for, and is told whether that is
    /// to be given to it.
    pub(super) fn look(&mut self, mut visit: impl FnMut(usize, News) -> bool) {
        let Self { followers, arrivals, messages, concerned, .. } = self;
        if !concerned.is_empty() || !std::mem::take(&mut self.is_called) {
            return;
        }
        // They are given, or concerned nobody: the fan-out gets back an empty list.
        arrivals.clear();
        messages.clear();
        let mut look = |number, place| {
            visit(number, News::InTheLog(place));
        };
        let first = match followers.take(arrivals) {
            Arrived::Events => arrivals.first().map(|event| event.place()),
            Arrived::Marks(marks) => {
                let news = marks.iter().map(|mark| (mark.session.as_ref(), &mark.kind));
                followers.concerned(news, |at, number| marks.get(at).into_iter().for_each(|it| look(number, it.place)));
                marks.first().map(|mark| mark.place)
            }
            Arrived::Torn(place) => {
                followers.everybody(|number| look(number, place));
                Some(place)
            }
        };
        self.through = self.through.max(first.unwrap_or_default().saturating_sub(1));
        let place = |at: usize| arrivals.get(at).map_or(0, |event| event.place());
        let news = arrivals.iter().map(|event| (event.session(), event.kind()));
        // A relay before this one may still be telling what was, which is not for who asked for news.
        if first.is_some_and(|first| first <= self.product.log.history_through()) {
            followers.concerned(news, |at, number| look(number, place(at)));
            return arrivals.clear();
        }
        messages.resize(arrivals.len(), None);
        followers.concerned(news, |at, number| {
            if visit(number, News::Arrived(at)) {
                concerned.push_back(number);
            }
        });
    }

    /// What is being given, from its number `first` on, and where it is noted.
    pub(super) fn arrivals(&mut self, first: usize) -> (Arrivals<'_>, &mut Ledgers) {
        let events = self.arrivals.get(first..).unwrap_or_default();
        let messages = self.messages.get_mut(first..).unwrap_or_default();
        (Arrivals { events, messages }, &mut self.ledgers)
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn keeps_nothing(&self) -> bool {
        self.arrivals.is_empty() && self.messages.is_empty()
    }

    /// What has arrived has been given to all whom it concerned.
    pub(super) fn is_done(&mut self) -> bool {
        if self.concerned.is_empty() {
            // Not kept until something comes: it may be erased meanwhile.
            self.arrivals.clear();
            self.messages.clear();
        }
        self.concerned.is_empty()
    }

    /// The place up to which everything has been given, to those who have not been told to look into the log.
    pub(super) fn through(&mut self) -> u64 {
        if !self.is_called && self.concerned.is_empty() {
            self.through = self.through.max(self.followers.position().unwrap_or_default());
        }
        self.through
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

/// What has been delivered in each way, until it is told to everybody.
#[derive(Debug)]
pub(crate) struct Ledgers {
    pub(crate) sse: Ledger,
    pub(crate) ws: Ledger,
}

impl Ledgers {
    /// Tells it.
    pub(super) fn flush(&mut self) {
        self.sse.flush();
        self.ws.flush();
    }
}

/// What has been delivered in one way.
#[derive(Debug)]
pub(crate) struct Ledger {
    count: u64,
    lag: LocalHistogram,
    delivered: IntCounter,
}

impl Ledger {
    fn of(metrics: &DeliveryMetrics) -> Self {
        Self { count: 0, lag: metrics.lag.local(), delivered: metrics.delivered.clone() }
    }

    /// An event that is delivered at `now`, as soon as it has come.
    pub(crate) fn note(&mut self, event: &Event, now: Instant) {
        self.count += 1;
        if let Some(received) = event.received() {
            self.lag.observe(now.saturating_duration_since(received).as_secs_f64());
        }
    }

    fn flush(&mut self) {
        if self.count > 0 {
            self.delivered.inc_by(std::mem::take(&mut self.count));
            self.lag.flush();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.flush();
    }
}
