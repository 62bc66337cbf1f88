//! K: few events to few subscribers, to count instructions: see `benches/callgrind.sh`.

use std::thread;

use super::size::{SESSIONS, SETTLE};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{
        Result,
        payload::Series,
        target::kind::{Kind, Pace},
    },
};

/// Each event finds every thread asleep, also under a tool that makes the relay fifty times as
/// slow.
pub(super) struct Counted {
    events: u64,
}

impl Counted {
    pub(super) fn few() -> Self {
        Self { events: 500 }
    }

    /// Returns a thousand events more than [`Counted::few`]: the difference is their cost.
    pub(super) fn more() -> Self {
        Self { events: 1500 }
    }

    pub(super) fn title(&self) -> String {
        format!(
            "K: {SUBSCRIBERS} subscribers, {} events of 1 KiB to all at {PER_SECOND} events/s",
            self.events
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let workload = Workload {
            subscribers: SUBSCRIBERS,
            own_session: false,
            series: Series { sessions: SESSIONS, events: self.events },
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLE);
        rig.send_all(&load, workload, PER_SECOND)?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        rig.stop(&mut outcome)?;
        Ok(outcome)
    }
}

const SUBSCRIBERS: usize = 20;

const PER_SECOND: u64 = 50;
