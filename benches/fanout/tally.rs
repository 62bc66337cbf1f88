//! The books: what each subscriber got, checked to the byte and in order, and how late it came.

use crate::{
    histogram::Histogram,
    payload::{Template, number},
    response::Block,
};

/// What one subscriber has seen.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Which of all subscribers it is.
    pub(crate) number: usize,
    /// The one session it listens to; none for all.
    pub(crate) session: Option<String>,
    /// Events it got.
    pub(crate) received: u64,
    last_sequence: u64,
    last_id: u64,
}

impl Ledger {
    /// A subscriber who has seen nothing.
    pub(crate) fn new(number: usize, session: Option<String>) -> Self {
        Self { number, session, received: 0, last_sequence: 0, last_id: 0 }
    }
}

/// What many subscribers have seen together.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    template: Template,
    measured_from: u64,
    /// Events that arrived, at all of them.
    pub(crate) received: u64,
    /// What should not have happened.
    pub(crate) faults: Faults,
    /// From sent to received, in microseconds.
    pub(crate) latency: Histogram,
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
    /// Gap notices.
    pub(crate) gaps: u64,
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
            faults: Faults::default(),
            latency: Histogram::new(),
            last_us: vec![0; events as usize + 1],
        }
    }

    /// Enters what `ledger`'s subscriber received.
    pub(crate) fn enter(&mut self, ledger: &mut Ledger, block: Block<'_>, now_us: u64) {
        match block.name {
            None => self.event(ledger, block, now_us),
            Some(b"gap") => self.faults.gaps += 1,
            Some(b"heartbeat") => {}
            Some(_) => self.faults.damaged += 1,
        }
    }

    fn event(&mut self, ledger: &mut Ledger, block: Block<'_>, now_us: u64) {
        let id = block.id.and_then(sequence_of_id);
        let event = block.data.and_then(|data| self.template.read(data));
        let (Some(id), Some(event)) = (id, event) else {
            self.faults.damaged += 1;
            return;
        };
        let is_foreign = ledger.session.as_ref().is_some_and(|own| own.as_bytes() != event.session);
        let is_misordered = event.sequence <= ledger.last_sequence || id <= ledger.last_id;
        self.faults.foreign += u64::from(is_foreign);
        self.faults.misordered += u64::from(is_misordered);
        ledger.last_sequence = event.sequence;
        ledger.last_id = id;
        ledger.received += 1;
        self.received += 1;
        if event.sequence < self.measured_from {
            return;
        }
        let late = now_us.saturating_sub(event.sent_us);
        self.latency.record(late);
        if let Some(last) = self.last_us.get_mut(event.sequence as usize) {
            *last = (*last).max(u32::try_from(late).unwrap_or(u32::MAX));
        }
    }

    /// Adds another's entries.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.latency.merge(&other.latency);
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
    pub(crate) fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("lost", self.lost),
            ("out of order or twice", self.misordered),
            ("of another session", self.foreign),
            ("damaged", self.damaged),
            ("gap notices", self.gaps),
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
        self.ended += other.ended;
        self.words.extend_from_slice(&other.words);
    }
}

/// The part of `<epoch>-<sequence>` that counts within one run.
fn sequence_of_id(id: &[u8]) -> Option<u64> {
    let dash = id.iter().position(|byte| *byte == b'-')?;
    number(&id[dash + 1..])
}
