//! The checks: each subscriber's events, to the byte and in order, and their latency.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use crate::{
    response::Block,
    support::{
        histogram::Histogram,
        payload::{Template, now_us, number},
        target::{
            centrifugo,
            kind::{Endpoint, Protocol},
        },
    },
};

/// Position from which a subscriber resumes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// Epoch of the ids.
    pub(crate) epoch: u64,
    /// The last event that the subscriber has; 0 for none.
    pub(crate) after: u64,
    /// The relay was restarted after this event, and announces that with one gap notice.
    pub(crate) gap_behind: u64,
}

impl Display for Resume {
    /// Writes the value of `last_event_id`. Up to the gap, events and ids have the same numbers.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.after {
            0 => formatter.write_str("0"),
            after => write!(formatter, "{}-{after}", self.epoch),
        }
    }
}

/// Events that one subscriber has received.
#[derive(Debug)]
pub(crate) struct SubscriberRecord {
    /// Number of the subscriber.
    pub(crate) number: usize,
    /// Its session filter; `None` for every event.
    pub(crate) session: Option<String>,
    /// Number of received events.
    pub(crate) received: u64,
    /// The position from which it resumed.
    pub(crate) resume: Option<Resume>,
    /// Events to receive before it is caught up.
    behind: u64,
    start_us: u64,
    last_sequence: u64,
    epoch: u64,
    last_id: u64,
    /// The event after which a gap is to be announced, until it is.
    gap_behind: Option<u64>,
    /// Whether its events have the relay's ids, and every block has data.
    is_strict: bool,
    /// Whether its events stand in messages of Centrifugo.
    is_wrapped: bool,
    misses: Misses,
}

/// Missed events of a subscriber.
#[derive(Clone, Copy, Debug, Default)]
struct Misses {
    is_allowed: bool,
    /// A gap was announced after the last event.
    is_announced: bool,
    /// Events that were missing where a gap was announced.
    announced: u64,
}

impl SubscriberRecord {
    /// Returns the record of a subscriber that starts now without events, or resumes and lags
    /// `behind` by this many events.
    pub(crate) fn new(
        number: usize,
        session: Option<String>,
        resume: Option<Resume>,
        behind: u64,
    ) -> Self {
        let after = resume.map_or(0, |resume| resume.after);
        Self {
            number,
            session,
            received: 0,
            resume,
            behind,
            start_us: now_us(),
            last_sequence: after,
            epoch: resume.map_or(0, |resume| resume.epoch),
            last_id: after,
            gap_behind: resume.map(|resume| resume.gap_behind),
            is_strict: true,
            is_wrapped: false,
            misses: Misses::default(),
        }
    }

    /// Sets the endpoint, and whether the subscriber may miss announced events.
    pub(crate) fn at(self, endpoint: Endpoint, may_miss: bool) -> Self {
        Self {
            is_strict: endpoint.is_strict,
            is_wrapped: endpoint.protocol == Protocol::CentrifugoSse,
            misses: Misses { is_allowed: may_miss, ..self.misses },
            ..self
        }
    }

    /// Records a gap notice, and returns false if no gap was due.
    fn gap(&mut self) -> bool {
        if self.gap_behind == Some(self.last_sequence) {
            self.gap_behind = None;
            return true;
        }
        self.misses.is_announced = self.misses.is_allowed;
        self.misses.is_allowed
    }

    /// Adds the events and notices that are missing at the end, of `expected` events.
    pub(crate) fn close(&self, expected: u64, faults: &mut Faults) {
        faults.lost += expected.saturating_sub(self.received + self.misses.announced);
        faults.unannounced += u64::from(self.gap_behind.is_some());
    }

    /// Starts the clock of the subscriber.
    pub(crate) fn start_timing(&mut self) {
        self.start_us = now_us();
    }

    /// Returns the time since the clock was started.
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_micros(now_us().saturating_sub(self.start_us))
    }

    /// Returns the last event that it received.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Returns the epoch of the last id that the subscriber received.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// Totals over many subscribers.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    template: Template,
    measured_from: u64,
    /// Events that arrived, at all of them.
    pub(crate) received: u64,
    /// Gaps that were announced where they may be.
    pub(crate) gaps: u64,
    /// Events that were missing there.
    pub(crate) missed: u64,
    /// Violations of the delivery guarantees.
    pub(crate) faults: Faults,
    /// Time from sending to receipt, in microseconds.
    pub(crate) latency: Histogram,
    /// Latency of the events before the measured ones, in microseconds.
    pub(crate) latency_before: Histogram,
    /// Time until resumed subscribers were caught up, in microseconds.
    pub(crate) caught_up_us: Histogram,
    /// For each event the highest latency of all subscribers, in microseconds.
    pub(crate) last_us: Vec<u32>,
}

/// Counts of faults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Events that a subscriber did not receive.
    pub(crate) lost: u64,
    /// Events whose number or id was not above the one before: out of order, or repeated.
    pub(crate) misordered: u64,
    /// Events of a session that was not requested.
    pub(crate) foreign: u64,
    /// Payloads that differ from the sent ones.
    pub(crate) damaged: u64,
    /// Gap notices without a missing event.
    pub(crate) gaps: u64,
    /// Gap notices that a subscriber did not receive.
    pub(crate) unannounced: u64,
    /// Streams that ended before the subscriber closed them.
    pub(crate) ended: u64,
    /// Other faults, in words.
    pub(crate) words: Vec<String>,
}

impl Tally {
    /// Returns an empty tally of `events` events that times those from the number `measured_from`
    /// on.
    pub(crate) fn new(events: u64, measured_from: u64) -> Self {
        Self {
            template: Template::new(),
            measured_from,
            received: 0,
            gaps: 0,
            missed: 0,
            faults: Faults::default(),
            latency: Histogram::new(),
            latency_before: Histogram::new(),
            caught_up_us: Histogram::new(),
            last_us: vec![0; events as usize + 1],
        }
    }

    /// Returns an empty tally that checks events without timing them.
    pub(crate) fn untimed() -> Self {
        Self::new(0, u64::MAX)
    }

    /// Checks and counts a block that the subscriber of `record` received.
    pub(crate) fn check(&mut self, record: &mut SubscriberRecord, block: Block<'_>, now_us: u64) {
        let data = match record.is_wrapped {
            true => block.data.and_then(centrifugo::payload),
            false => block.data,
        };
        let block = Block { data, ..block };
        match block.name {
            // a comment, a `retry:` line, or a message without an event
            None if block.data.is_none() && !record.is_strict => {}
            None => self.event(record, block, now_us),
            Some(b"gap") if record.gap() => self.gaps += 1,
            Some(b"gap") => self.faults.gaps += 1,
            Some(b"heartbeat") => {}
            Some(_) => self.faults.damaged += 1,
        }
    }

    fn event(&mut self, record: &mut SubscriberRecord, block: Block<'_>, now_us: u64) {
        let id = block.id.and_then(parts_of_id);
        let event = block.data.and_then(|data| self.template.read(data));
        // Ids of other servers are not checked: they count as increasing.
        let id = id
            .filter(|_| record.is_strict)
            .or_else(|| (!record.is_strict).then_some((0, record.last_id + 1)));
        let (Some((epoch, id)), Some(event)) = (id, event) else {
            self.faults.damaged += 1;
            return;
        };
        if std::mem::take(&mut record.misses.is_announced) {
            let missed = event.sequence.saturating_sub(record.last_sequence + 1);
            record.misses.announced += missed;
            self.missed += missed;
        }
        let is_foreign = record.session.as_ref().is_some_and(|own| own.as_bytes() != event.session);
        let is_misordered =
            event.sequence <= record.last_sequence || (epoch, id) <= (record.epoch, record.last_id);
        self.faults.foreign += u64::from(is_foreign);
        self.faults.misordered += u64::from(is_misordered);
        record.last_sequence = event.sequence;
        (record.epoch, record.last_id) = (epoch, id);
        record.received += 1;
        self.received += 1;
        if record.received == record.behind {
            self.caught_up_us.record(now_us.saturating_sub(record.start_us));
        }
        let late = now_us.saturating_sub(event.sent_us);
        if event.sequence < self.measured_from {
            self.latency_before.record(late);
            return;
        }
        self.latency.record(late);
        if let Some(last) = self.last_us.get_mut(event.sequence as usize) {
            *last = (*last).max(u32::try_from(late).unwrap_or(u32::MAX));
        }
    }

    /// Adds the counts of another tally.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.gaps += other.gaps;
        self.missed += other.missed;
        self.latency.merge(&other.latency);
        self.latency_before.merge(&other.latency_before);
        self.caught_up_us.merge(&other.caught_up_us);
        for (mine, theirs) in self.last_us.iter_mut().zip(&other.last_us) {
            *mine = (*mine).max(*theirs);
        }
        self.faults.merge(&other.faults);
    }

    /// Returns the latency of the last subscriber over all measured events.
    pub(crate) fn last(&self) -> Histogram {
        let mut last = Histogram::new();
        for late in self.last_us.iter().skip(self.measured_from as usize) {
            last.record(u64::from(*late));
        }
        last
    }
}

impl Faults {
    /// Returns true if there is no fault.
    pub(crate) fn is_none(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0) && self.words.is_empty()
    }

    /// Returns the counts by name.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 7] {
        [
            ("lost", self.lost),
            ("out of order or twice", self.misordered),
            ("of another session", self.foreign),
            ("damaged", self.damaged),
            ("gap notices", self.gaps),
            ("gaps not announced", self.unannounced),
            ("streams ended", self.ended),
        ]
    }

    /// Adds the faults of another run.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.lost += other.lost;
        self.misordered += other.misordered;
        self.foreign += other.foreign;
        self.damaged += other.damaged;
        self.gaps += other.gaps;
        self.unannounced += other.unannounced;
        self.ended += other.ended;
        self.words.extend_from_slice(&other.words);
    }
}

/// Parses `<epoch>-<sequence>`.
fn parts_of_id(id: &[u8]) -> Option<(u64, u64)> {
    let dash = id.iter().position(|byte| *byte == b'-')?;
    Some((number(&id[..dash])?, number(&id[dash + 1..])?))
}
