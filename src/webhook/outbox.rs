//! What one webhook is owed, in which order it is tried, and how its endpoint stands: a state machine without I/O.
//!
//! In: events as they are read, answers, orders of operators, the time. Out: what to send next, and what to write down.
//!
//! ```text
//!            take                   next                  settle
//! log ─────────────► lane ─ head ─────────► running ─┬─ accepted ──► delivered (the last 1000)
//!        one lane per  ▲                             ├─ retry ─────► waiting ──┐
//!        session       └─────────────────────────────┴─────────────────────────┘
//!                                                    └─ given up ──► dead letter (in the store)
//! ```
//!
//! May use: `backoff`, `delivery`, `event`, the store's words.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Now, Verdict};
use crate::{
    delivery::{Attempt, DeadLetter, Delivery, EndpointState},
    event::{Event, SessionId},
    log::store::{Changes, Owed},
};

/// How hard a webhook is tried, and where what it is owed can be read again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Attempts after the first.
    pub(super) max_retries: u32,
    /// The wait before the first retry, which doubles from there.
    pub(super) initial_backoff: Duration,
    /// The longest wait.
    pub(super) max_backoff: Duration,
    /// Deliveries that are under way, or settled and not yet written down.
    pub(super) max_in_flight: usize,
    /// Where events are.
    pub(super) keeping: Keeping,
}

/// Where the events are that are owed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keeping {
    /// In the store: few need to be held here.
    InStore,
    /// Here alone. Beyond so many bytes the oldest becomes a dead letter.
    InMemory { most_bytes: u64 },
}

/// What one webhook is owed.
#[derive(Debug)]
pub(super) struct Outbox {}

/// How an endpoint stands, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standing {
    /// In one word.
    pub(super) state: EndpointState,
    /// Until when it is throttled, or when it is probed next.
    pub(super) until: Option<Instant>,
    /// What led to it, if it is not active.
    pub(super) problem: Option<String>,
}

impl Outbox {
    /// The outbox of a webhook that has come to `position`, and is owed these before it.
    pub(super) fn new(policy: Policy, position: u64, owed: Vec<Owed>, now: Now) -> Self {
        todo!()
    }

    /// Goes on under another policy.
    pub(super) fn change(&mut self, policy: Policy) {
        todo!()
    }

    /// Whether another event may be taken.
    pub(super) fn has_room(&self) -> bool {
        todo!()
    }

    /// Takes over an event that is owed, behind everything so far.
    pub(super) fn take(&mut self, event: Arc<Event>, now: Now) {
        todo!()
    }

    /// Notes that everything up to `place` has been taken or is not for this webhook.
    pub(super) fn pass(&mut self, place: u64) {
        todo!()
    }

    /// Everything up to this place has been passed.
    pub(super) fn position(&self) -> u64 {
        todo!()
    }

    /// The lowest place whose event is to be sent soon, but is not held here.
    pub(super) fn wants(&self) -> Option<u64> {
        todo!()
    }

    /// Holds an event, if it is owed and not held yet.
    pub(super) fn load(&mut self, event: &Arc<Event>) {
        todo!()
    }

    /// Notes that the event at `place` cannot be read any more, and tells whether that was owed.
    pub(super) fn is_gone(&mut self, place: u64) -> bool {
        todo!()
    }

    /// What is to be sent now. It is under way until it is settled.
    pub(super) fn next(&mut self, now: Now) -> Option<Arc<Event>> {
        todo!()
    }

    /// When [`Outbox::next`] may give something although nothing else has happened.
    pub(super) fn due(&self) -> Option<Instant> {
        todo!()
    }

    /// Notes how an attempt went.
    pub(super) fn settle(&mut self, place: u64, attempt: Attempt, verdict: &Verdict, now: Now) {
        todo!()
    }

    /// What is to be written down, if anything is that should not wait. One at a time: [`Outbox::committed`] or
    /// [`Outbox::not_committed`] follows.
    pub(super) fn changes(&mut self) -> Option<Changes> {
        todo!()
    }

    /// Everything that is not written down yet, also what can wait.
    pub(super) fn all_changes(&mut self) -> Option<Changes> {
        todo!()
    }

    /// Notes that the last changes are in the store.
    pub(super) fn committed(&mut self) {
        todo!()
    }

    /// Notes that these could not be written. They come again, with what has happened since.
    pub(super) fn not_committed(&mut self, changes: Changes) {
        todo!()
    }

    /// Notes that the store has forgotten everything.
    pub(super) fn rewrite(&mut self) {
        todo!()
    }

    /// Notes that the store has made dead letters of everything owed up to `through`.
    pub(super) fn expire(&mut self, through: u64) {
        todo!()
    }

    /// How many dead letters may be taken for another delivery.
    pub(super) fn room_for_letters(&self) -> usize {
        todo!()
    }

    /// Takes dead letters for another delivery.
    pub(super) fn redeliver(&mut self, letters: Vec<DeadLetter>, now: Now) {
        todo!()
    }

    /// Makes the endpoint active; what waits is tried at once.
    pub(super) fn enable(&mut self) {
        todo!()
    }

    /// Sends nothing until it is enabled.
    pub(super) fn disable(&mut self, problem: &str) {
        todo!()
    }

    /// How the endpoint stands.
    pub(super) fn standing(&self) -> Standing {
        todo!()
    }

    /// Forgets what is owed of a session, and what was delivered.
    pub(super) fn erase(&mut self, session: &SessionId) {
        todo!()
    }

    /// How many deliveries are owed, without those of dead letters; and when the oldest became so, in Unix milliseconds.
    pub(super) fn owed(&self) -> (u64, Option<u64>) {
        todo!()
    }

    /// Deliveries that are owed, newest first: at most `most` before the place `before`; with when each is due, in Unix
    /// milliseconds, unless it waits for its turn or is under way.
    pub(super) fn pending(&self, before: Option<u64>, most: usize, now: Now) -> Vec<(Delivery, Option<u64>)> {
        todo!()
    }

    /// The delivery at `place` that is owed, or a dead letter on its way.
    pub(super) fn get(&self, place: u64) -> Option<&Delivery> {
        todo!()
    }

    /// Deliveries that were accepted, newest first, each with its number: at most `most` before the number `before`.
    pub(super) fn delivered(&self, before: Option<u64>, most: usize) -> Vec<(u64, Delivery)> {
        todo!()
    }
}
