//! The books: what each subscriber got, checked to the byte and in order, and how late it came.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use crate::{
    response::Block,
    support::{
        histogram::Histogram,
        payload::{Template, now_us, number},
        target::kind::Door,
    },
};

/// Where somebody comes back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// Of the ids.
    pub(crate) epoch: u64,
    /// The last event it has; 0 for none.
    pub(crate) after: u64,
    /// The relay was started anew behind this event, and says so with one gap notice.
    pub(crate) gap_behind: u64,
}

impl Display for Resume {
    /// As `last_event_id` has it. Up to the gap, the numbers of events and of ids are the same.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.after {
            0 => formatter.write_str("0"),
            after => write!(formatter, "{}-{after}", self.epoch),
        }
    }
}

/// What one subscriber has seen.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Which of all subscribers it is.
    pub(crate) number: usize,
    /// The one session it listens to; none for all.
    pub(crate) session: Option<String>,
    /// Events it got.
    pub(crate) received: u64,
    /// Where it came back to.
    pub(crate) resume: Option<Resume>,
    /// Events it has to get before it has caught up.
    behind: u64,
    came_us: u64,
    last_sequence: u64,
    epoch: u64,
    last_id: u64,
    /// The event behind which a gap is to be announced, until it is.
    gap_behind: Option<u64>,
    /// Whether its events have the relay's ids, and nothing comes without data.
    is_strict: bool,
    misses: Misses,
}

/// Whether somebody may miss events.
#[derive(Clone, Copy, Debug, Default)]
struct Misses {
    may_be: bool,
    /// A gap was announced behind the last event.
    is_announced: bool,
    /// Events that were missing where a gap was announced.
    announced: u64,
}

impl Ledger {
    /// A subscriber who has seen nothing and comes now, or comes back and is `behind` by so many
    /// events.
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
            came_us: now_us(),
            last_sequence: after,
            epoch: resume.map_or(0, |resume| resume.epoch),
            last_id: after,
            gap_behind: resume.map(|resume| resume.gap_behind),
            is_strict: true,
            misses: Misses::default(),
        }
    }

    /// The same, coming in there, and perhaps allowed to miss what it is told that it misses.
    pub(crate) fn at(self, door: Door, may_miss: bool) -> Self {
        Self {
            is_strict: door.is_strict,
            misses: Misses { may_be: may_miss, ..self.misses },
            ..self
        }
    }

    /// Notes a gap notice. False when there should be none.
    fn gap(&mut self) -> bool {
        if self.gap_behind == Some(self.last_sequence) {
            self.gap_behind = None;
            return true;
        }
        self.misses.is_announced = self.misses.may_be;
        self.misses.may_be
    }

    /// What should have happened by the end and did not, when `expected` events should have come.
    pub(crate) fn close(&self, expected: u64, faults: &mut Faults) {
        faults.lost += expected.saturating_sub(self.received + self.misses.announced);
        faults.unannounced += u64::from(self.gap_behind.is_some());
    }

    /// Begins to take its time.
    pub(crate) fn comes(&mut self) {
        self.came_us = now_us();
    }

    /// How long it has been there.
    pub(crate) fn since_it_came(&self) -> Duration {
        Duration::from_micros(now_us().saturating_sub(self.came_us))
    }

    /// The last event it got.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The epoch of the last id it got.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// What many subscribers have seen together.
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
    /// What should not have happened.
    pub(crate) faults: Faults,
    /// From sent to received, in microseconds.
    pub(crate) latency: Histogram,
    /// The same of the events before those that are measured.
    pub(crate) latency_before: Histogram,
    /// How long those who came back took to have caught up, in microseconds.
    pub(crate) caught_up_us: Histogram,
    /// For each event the latest it came to any of them, in microseconds.
    pub(crate) last_us: Vec<u32>,
}

/// What should not have happened, and how often.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Events that somebody did not get.
    pub(crate) lost: u64,
    /// Events whose number or id was not above the one before: out of order, or seen twice.
    pub(crate) misordered: u64,
    /// Events of a session that was not asked for.
    pub(crate) foreign: u64,
    /// Payloads that were not what was sent.
    pub(crate) damaged: u64,
    /// Gap notices where nothing was missing.
    pub(crate) gaps: u64,
    /// Gap notices that somebody did not get.
    pub(crate) unannounced: u64,
    /// Streams that ended before they were left.
    pub(crate) ended: u64,
    /// Anything else, in words.
    pub(crate) words: Vec<String>,
}

impl Tally {
    /// Empty books on `events` events, timing those from the number `measured_from` on.
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

    /// Empty books on events that are only checked.
    pub(crate) fn untimed() -> Self {
        Self::new(0, u64::MAX)
    }

    /// Enters what `ledger`'s subscriber received.
    pub(crate) fn enter(&mut self, ledger: &mut Ledger, block: Block<'_>, now_us: u64) {
        match block.name {
            // a comment, or the time before reconnecting
            None if block.data.is_none() && !ledger.is_strict => {}
            None => self.event(ledger, block, now_us),
            Some(b"gap") if ledger.gap() => self.gaps += 1,
            Some(b"gap") => self.faults.gaps += 1,
            Some(b"heartbeat") => {}
            Some(_) => self.faults.damaged += 1,
        }
    }

    fn event(&mut self, ledger: &mut Ledger, block: Block<'_>, now_us: u64) {
        let id = block.id.and_then(parts_of_id);
        let event = block.data.and_then(|data| self.template.read(data));
        // Ids of others are their own affair: theirs are taken to grow with the events.
        let id = id
            .filter(|_| ledger.is_strict)
            .or_else(|| (!ledger.is_strict).then_some((0, ledger.last_id + 1)));
        let (Some((epoch, id)), Some(event)) = (id, event) else {
            self.faults.damaged += 1;
            return;
        };
        if std::mem::take(&mut ledger.misses.is_announced) {
            let missed = event.sequence.saturating_sub(ledger.last_sequence + 1);
            ledger.misses.announced += missed;
            self.missed += missed;
        }
        let is_foreign = ledger.session.as_ref().is_some_and(|own| own.as_bytes() != event.session);
        let is_misordered =
            event.sequence <= ledger.last_sequence || (epoch, id) <= (ledger.epoch, ledger.last_id);
        self.faults.foreign += u64::from(is_foreign);
        self.faults.misordered += u64::from(is_misordered);
        ledger.last_sequence = event.sequence;
        (ledger.epoch, ledger.last_id) = (epoch, id);
        ledger.received += 1;
        self.received += 1;
        if ledger.received == ledger.behind {
            self.caught_up_us.record(now_us.saturating_sub(ledger.came_us));
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

    /// Adds another's entries.
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

    /// How late the last subscriber had each event that was measured.
    pub(crate) fn last(&self) -> Histogram {
        let mut last = Histogram::new();
        for late in self.last_us.iter().skip(self.measured_from as usize) {
            last.record(u64::from(*late));
        }
        last
    }
}

impl Faults {
    /// Whether nothing of the kind happened.
    pub(crate) fn is_none(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0) && self.words.is_empty()
    }

    /// By name.
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

    /// Adds another's.
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

/// `<epoch>-<sequence>`.
fn parts_of_id(id: &[u8]) -> Option<(u64, u64)> {
    let dash = id.iter().position(|byte| *byte == b'-')?;
    Some((number(&id[..dash])?, number(&id[dash + 1..])?))
}
