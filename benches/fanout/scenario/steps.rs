//! L: the highest rate without a loss and in time.

use std::thread;

use super::size::{SESSIONS, SETTLE, Size};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::Series,
        target::kind::{Kind, Pace},
    },
    tally::Tally,
};

/// Every event to all subscribers, at rates that increase from step to step up to the first unclean
/// one, then at a far higher rate.
pub(super) struct Steps {
    subscribers: usize,
    offers: &'static [u64],
    seconds: u64,
    beyond: u64,
}

/// Results of one step.
struct Step {
    tally: Tally,
    deliveries: u64,
    late_ms: f64,
}

impl Steps {
    pub(super) fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(200, 50),
            offers: size.choose(&OFFERS, &OFFERS[..1]),
            seconds: size.choose(3, 2),
            beyond: size.choose(100_000, 20_000),
        }
    }

    pub(super) fn title(&self) -> String {
        let offers: Vec<String> = self.offers.iter().map(u64::to_string).collect();
        format!(
            "L: {} subscribers, {} events/s of 1 KiB to all, {} s each, until one loses an event or p99 is over {MAX_LATE_MS} ms",
            self.subscribers,
            offers.join(", "),
            self.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut clean: Option<(u64, Step)> = None;
        let mut first_unclean = None;
        for &offer in self.offers {
            let step = self.offer(
                Rig::start(kind, Pace::Gather)?,
                kind,
                offer,
                offer * self.seconds,
                &mut outcome,
            )?;
            if !step.is_clean() {
                first_unclean = Some((offer, step));
                break;
            }
            clean = Some((offer, step));
        }
        let subscribers = self.subscribers as f64;
        outcome.compare(
            "last clean offer, events/s",
            clean.as_ref().map_or(0.0, |(offer, _)| *offer as f64),
        );
        let carried = clean.as_ref().map_or(0.0, |(offer, _)| *offer as f64 * subscribers);
        outcome.compare("the same in deliveries/s", carried);
        outcome.note(
            "p99 at it, ms",
            clean.map_or(f64::NAN, |(_, step)| millis(&step.tally.latency, 0.99)),
        );
        let (offer, step) = first_unclean.unzip();
        outcome.note("first unclean offer, events/s", offer.map_or(f64::NAN, |offer| offer as f64));
        let seen = |look: fn(&Step) -> f64| step.as_ref().map_or(f64::NAN, look);
        outcome.note("p99 there, ms", seen(|step| millis(&step.tally.latency, 0.99)));
        outcome.note("source held up there, ms", seen(|step| step.late_ms));
        outcome.note("events missing there, announced", seen(|step| step.tally.missed as f64));
        outcome
            .note("events missing there, unannounced", seen(|step| step.tally.faults.lost as f64));
        if matches!(kind, Kind::Relay | Kind::WebSocket) {
            self.go_beyond(kind, &mut outcome)?;
        }
        Ok(outcome)
    }

    /// Offers far too much to a relay with a small log, and checks that every missing event is
    /// announced. With a log of the usual size, the machine is too slow for events to be missed.
    fn go_beyond(&self, kind: Kind, outcome: &mut Outcome) -> Result<()> {
        let step =
            self.offer(Rig::with_small_log(kind, FEW)?, kind, BEYOND, self.beyond, outcome)?;
        outcome.note("offered beyond, events/s", BEYOND as f64);
        outcome.note("source held up beyond, ms", step.late_ms);
        outcome.note("received beyond", step.tally.received as f64);
        outcome.note("gaps announced beyond", step.tally.gaps as f64);
        outcome.note("events missing beyond, announced", step.tally.missed as f64);
        outcome.note("events missing beyond, unannounced", step.tally.faults.lost as f64);
        outcome.faults.merge(&step.tally.faults);
        Ok(())
    }

    fn offer(
        &self,
        mut rig: Rig,
        kind: Kind,
        per_second: u64,
        events: u64,
        outcome: &mut Outcome,
    ) -> Result<Step> {
        let workload = Workload {
            subscribers: self.subscribers,
            own_session: false,
            series: Series { sessions: SESSIONS, events },
            measured_from: 1,
            resume: None,
            may_miss: announces_losses(kind),
        };
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLE);
        let (_, late) = rig.cpu_of(|rig| rig.send_all(&load, workload, per_second))?;
        let tally = load.finish()?;
        // Log lines about the overload are expected.
        let mut own = Outcome::default();
        rig.finish(&mut own);
        outcome.faults.merge(&own.faults);
        Ok(Step { tally, deliveries: workload.deliveries(), late_ms: late.as_secs_f64() * 1000.0 })
    }
}

impl Step {
    fn is_clean(&self) -> bool {
        let is_in_time =
            millis(&self.tally.latency, 0.99) <= MAX_LATE_MS && self.late_ms <= MAX_LATE_MS;
        self.tally.received == self.deliveries && self.tally.faults.is_none() && is_in_time
    }
}

/// Returns whether the target announces lost events. `bare` buffers without bound; others skip.
fn announces_losses(kind: Kind) -> bool {
    matches!(kind, Kind::Relay | Kind::Durable | Kind::WebSocket)
}

/// Events per second.
const OFFERS: [u64; 9] = [1000, 2500, 5000, 7500, 10_000, 15_000, 20_000, 30_000, 40_000];

/// Size of the small log.
const FEW: usize = 256;

/// Several times the rate that two cores carry.
const BEYOND: u64 = 40_000;

/// The goal of D.
const MAX_LATE_MS: f64 = 200.0;
