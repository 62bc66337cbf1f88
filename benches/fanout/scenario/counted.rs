//! K and Kc: few events, one by one, to count instructions and system calls: see `benches/counts.py`
//! and `benches/callgrind.sh`.

use std::{thread, time::Duration};

use super::size::SESSIONS;
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{Result, payload::Series},
};

/// Each event finds every thread asleep, also under a tool that makes the relay fifty times as slow
/// and on a busy machine: so threads meet in the same order, and the counts repeat.
pub(super) struct Counted {
    name: &'static str,
    subscribers: usize,
    own_session: bool,
    events: u64,
    /// Events that the longer run has in addition.
    more: u64,
}

impl Counted {
    /// Returns K: every event to all subscribers.
    pub(super) fn to_all() -> Self {
        Self { name: "K", subscribers: 20, own_session: false, events: WARM_UP, more: 1000 }
    }

    /// Returns Kc: each event to one subscriber among many. More events than in K, because connects
    /// do not cost exactly the same in two runs, and there are more of them.
    pub(super) fn to_one() -> Self {
        Self { name: "Kc", subscribers: 1000, own_session: true, events: WARM_UP, more: 4000 }
    }

    /// Returns the same with more events: the difference is their cost.
    pub(super) fn with_more(self) -> Self {
        Self { events: self.events + self.more, ..self }
    }

    pub(super) fn title(&self) -> String {
        let (to, how) = match self.own_session {
            true => ("one of them each", " of one session each"),
            false => ("all", ""),
        };
        format!(
            "{}: {} subscribers{how}, {} events of 1 KiB to {to}, one by one",
            self.name, self.subscribers, self.events
        )
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        let sessions = if self.own_session { self.subscribers } else { SESSIONS };
        let workload = Workload {
            subscribers: self.subscribers,
            own_session: self.own_session,
            series: Series { sessions, events: self.events },
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::without_heartbeats()?;
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLED);
        rig.send_one_by_one(&load, workload)?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        rig.stop(&mut outcome)?;
        Ok(outcome)
    }
}

/// Until then the relay has read its configuration a second time, which happens once, some four
/// seconds after its start.
const SETTLED: Duration = Duration::from_secs(6);

/// Events of the shorter run: what is made once is made by then.
const WARM_UP: u64 = 200;
