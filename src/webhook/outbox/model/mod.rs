//! Model test of the outbox: every owed delivery ends as accepted, dead, erased or expired, in
//! order, and is never delivered twice without a reason.
//!
//! Random schedules of events, outcomes, commits that succeed or fail, crashes, reloads and
//! commands of operators. A schedule is known by its seed.

mod harness;
mod store_steps;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use self::harness::*;
use super::*;
use crate::{
    event::{ErasedEvents, EventId, Kind, SessionId},
    store::{DeliveryChange, WebhookChanges},
    webhook::Disposition,
    webhook_delivery::{Attempt, DeadLetter, DeadLetterReason, Outcome},
};

impl OutboxModel {
    fn advance(&mut self) {
        let due = self.outbox.next_due_at().map(|due| due - self.base.instant);
        self.elapsed = match due {
            Some(due) if self.rng.bool() => self.elapsed.max(due.as_millis() as u64 + 1),
            _ => self.elapsed + self.rng.u64(0..3000),
        };
    }

    fn step(&mut self) {
        match self.rng.u32(0..1000) {
            0..80 => {
                let count = self.rng.usize(1..20);
                self.append(count);
            }
            80..250 => {
                let limit = self.rng.usize(1..20);
                self.enqueue(limit);
            }
            250..430 => {
                let limit = self.rng.usize(1..10);
                self.send(limit);
            }
            430..640 => self.answer(),
            640..720 => self.load(),
            720..790 => self.begin_commit(false),
            790..805 => self.begin_commit(true),
            805..870 => {
                let succeeds = self.rng.u32(0..10) > 0;
                self.finish_commit(succeeds);
            }
            870..920 => self.advance(),
            920..930 => self.crash(),
            930..937 => self.reload(),
            937..942 => self.outbox.disable("an operator said so"),
            942..955 => self.enable(),
            955..960 => self.expire(),
            960..970 => self.report_expiry(),
            970..974 => self.erase(),
            974..978 => self.requeue(),
            978..985 => self.redeliver(),
            985 => self.stall_store(),
            986..992 => self.is_receiver_down = !self.is_receiver_down,
            992..994 => self.lose_store_file(),
            _ => self.commit_all_and_check(),
        }
    }

    /// Makes the receiver accept everything, and asserts that every delivery goes out in a bounded
    /// number of steps.
    fn drain(&mut self) {
        self.outbox.enable();
        let max_steps = 200 + 4 * self.log.len();
        for _ in 0..max_steps {
            self.requeue();
            self.redeliver();
            self.enqueue(usize::MAX);
            self.load();
            self.send(usize::MAX);
            for attempt in std::mem::take(&mut self.in_flight) {
                self.settle(attempt, 200, &Disposition::Accepted);
            }
            self.finish_commit(true);
            while self.outbox.journal.is_due() {
                self.begin_commit(false);
                self.finish_commit(true);
            }
            self.report_expiry();
            self.advance();
            // A dead letter may still be in a batch.
            let is_written =
                self.committing.is_none() && !self.outbox.journal.has_changes(self.outbox.cursor);
            if self.outbox.items.is_empty() && self.store.dead_letters.is_empty() && is_written {
                break;
            }
        }
        let left: Vec<_> = self.outbox.items.keys().collect();
        assert!(
            left.is_empty(),
            "seed {}: stuck: {left:?}, {:?}",
            self.seed,
            self.outbox.endpoint_status()
        );
        assert!(self.store.dead_letters.is_empty(), "seed {}: dead for ever", self.seed);
        self.enqueue(usize::MAX);
        self.commit_all_and_check();
    }

    fn check_deliveries(&mut self) {
        self.counted_lost += self.outbox.take_lost_count();
        for (index, entry) in self.log.iter().enumerate() {
            let position = index as u64 + 1;
            let is_settled = self.accepted.contains(&position)
                || self.lost_with_file.contains(&position)
                || entry.is_erased;
            let is_counted = entry.is_ours && !is_settled && self.counted_lost > 0;
            self.counted_lost -= u64::from(is_counted);
            assert!(
                !entry.is_ours || is_settled || is_counted,
                "seed {}: {position} is lost",
                self.seed
            );
        }
        let mut seen = BTreeSet::new();
        let mut latest = [0; SESSIONS.len()];
        for position in self
            .accepted
            .iter()
            .filter(|position| seen.insert(**position) && !self.ever_dead.contains(position))
        {
            let session = self.entry(*position).session;
            let is_in_order = session == 0 || latest[session] < *position;
            assert!(
                is_in_order,
                "seed {}: {position} after {} of its session",
                self.seed, latest[session]
            );
            latest[session] = *position;
        }
        let counts = self.outbox.counts;
        assert!(
            counts.loaded == 0
                && counts.loaded_bytes == 0
                && counts.in_flight == 0
                && counts.in_flight_retries == 0,
            "{counts:?}"
        );
    }
}

/// Prints the seed also if the outbox itself panics.
struct SeedReporter(u64);

impl Drop for SeedReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("AUTOPLAY_RELAY_SEED={} begins with what failed", self.0);
        }
    }
}

#[test]
fn everything_owed_is_delivered_in_order_or_accounted_for_through_failures_and_crashes() {
    let schedules = if std::env::var_os("AUTOPLAY_RELAY_LONG").is_some() { 20_000 } else { 300 };
    let first: u64 =
        std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + schedules {
        let mut model = OutboxModel::begin(seed);
        let _seed_reporter = SeedReporter(seed);
        for _ in 0..model.rng.usize(10..500) {
            model.step();
        }
        model.drain();
        model.check_deliveries();
    }
}
