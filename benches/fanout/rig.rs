//! One run's set-up: an upstream and a target, and what is read off the target.

use std::{
    ops::RangeInclusive,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    load::{Audience, Load},
    outcome::Outcome,
    support::{
        Result,
        metrics::Metrics,
        payload::{PRODUCT, Series},
        process,
        publisher::Publisher,
        target::{
            kind::{Door, Kind, Pace},
            running::Target,
            start::Restart,
        },
        upstream::{Flood, Stream, Upstream},
    },
};

/// A target with its events' source connected.
#[derive(Debug)]
pub(crate) struct Rig {
    // In this order: the target is killed before its upstream is gone and it has to complain.
    target: Target,
    source: Source,
    kind: Kind,
    disturbance: f64,
}

/// Where the events come from.
#[derive(Debug)]
enum Source {
    /// A connector that the target reads.
    Stream(Stream),
    /// Somebody who publishes them.
    Publisher(Publisher),
}

impl Source {
    /// # Errors
    ///
    /// When there is none, because events are published.
    fn stream(&mut self) -> Result<&mut Stream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Publisher(_) => Err("the target reads no stream".into()),
        }
    }
}

impl Rig {
    /// Starts both.
    pub(crate) fn start(kind: Kind, pace: Pace) -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::start(kind, upstream.address()?, pace)?;
        Self::connect(kind, target, upstream)
    }

    /// Starts a relay that keeps few events, and its upstream.
    pub(crate) fn forgetful(kind: Kind, events: usize) -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::forgetful(upstream.address()?, events)?;
        Self::connect(kind, target, upstream)
    }

    fn connect(kind: Kind, target: Target, upstream: Upstream) -> Result<Self> {
        let source = match target.publishing {
            Some(publishing) => Source::Publisher(Publisher::open(publishing)?),
            None => Source::Stream(upstream.accept()?),
        };
        Ok(Self { target, source, kind, disturbance: 0.0 })
    }

    /// Where subscribers go.
    pub(crate) fn door(&self) -> Door {
        self.kind.door(self.target.address)
    }

    /// The target's process.
    pub(crate) fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// Memory that the target has for itself.
    pub(crate) fn private_kib(&self) -> Result<f64> {
        process::private_kib(self.target.pid())
    }

    /// The target's CPU time while `work` was done.
    pub(crate) fn cpu_of<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(Duration, T)> {
        let pid = self.target.pid();
        let start = Instant::now();
        let (before, others) = (process::family_cpu(pid)?, others_cpu()?);
        let done = work(self).map_err(|error| match self.target.has_ended() {
            Some(status) => format!("the target ended ({status}): {error}").into(),
            None => error,
        })?;
        let others = others_cpu()?.saturating_sub(others).div_duration_f64(start.elapsed());
        self.disturbance = self.disturbance.max(others);
        Ok((process::family_cpu(pid)?.saturating_sub(before), done))
    }

    /// Sends the whole series and waits until everybody has it. Returns how late the upstream was
    /// at the worst.
    pub(crate) fn send_all(
        &mut self,
        load: &Load,
        audience: Audience,
        per_second: u64,
    ) -> Result<Duration> {
        self.send(load, audience, 1..=audience.series.events, per_second)
    }

    /// Sends some of the series and waits until everybody has it.
    pub(crate) fn send(
        &mut self,
        load: &Load,
        audience: Audience,
        events: RangeInclusive<u64>,
        per_second: u64,
    ) -> Result<Duration> {
        let last = *events.end();
        let (series, per_second) = (audience.series, per_second as f64);
        let late = match &mut self.source {
            Source::Stream(stream) => stream.send(series, events, per_second)?,
            Source::Publisher(publisher) => {
                publisher.send(series, audience.own_session, events, per_second)?
            }
        };
        load.wait_for(audience.deliveries_through(last))?;
        Ok(late)
    }

    /// Sends events of the series from `first` on while `work` is done. Returns the last of them.
    pub(crate) fn send_while<T>(
        &mut self,
        series: Series,
        first: u64,
        per_second: u64,
        work: impl FnOnce(Door) -> Result<T>,
    ) -> Result<(u64, T)> {
        let (door, upstream) = (self.door(), self.source.stream()?);
        let (is_done, mut last) = (AtomicBool::new(false), first - 1);
        let done = thread::scope(|scope| {
            let events = (first..)
                .take_while(|_| !is_done.load(Ordering::Relaxed))
                .inspect(|event| last = *event);
            let sender = scope.spawn(|| upstream.send(series, events, per_second as f64));
            let done = work(door);
            is_done.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| "the upstream's thread panicked")??;
            done
        })?;
        Ok((last, done))
    }

    /// Sends events of the series as fast as the target's store takes them, so that none leaves
    /// memory before it is kept. Returns when all are in the store.
    pub(crate) fn pour(&mut self, series: Series, events: RangeInclusive<u64>) -> Result<()> {
        let (first, last) = events.into_inner();
        let before = self.kept()?;
        let (mut sent, mut moved) = (first - 1, (before, Instant::now()));
        loop {
            let kept = self.kept()?;
            if kept >= before + (last + 1 - first) {
                return Ok(());
            }
            if kept > moved.0 {
                moved = (kept, Instant::now());
            }
            if moved.1.elapsed() > STANDSTILL {
                return Err(format!(
                    "the store has kept {} of {sent} events and takes no more",
                    kept - before
                )
                .into());
            }
            let room = last.min(first - 1 + (kept - before) + MOST_UNKEPT);
            while sent < room {
                let next = room.min(sent + POURED_AT_ONCE);
                self.source.stream()?.pour(series, sent + 1..=next)?;
                sent = next;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Sends events as they come due, without waiting for the target: a connector with its queue.
    pub(crate) fn flood(
        &mut self,
        series: Series,
        events: RangeInclusive<u64>,
        per_second: f64,
    ) -> Result<Flood> {
        self.source.stream()?.flood(series, events, per_second)
    }

    /// How many entries the target's store has.
    pub(crate) fn kept(&self) -> Result<u64> {
        let metrics = self.metrics()?.ok_or("the target has no metrics")?;
        Ok(metrics
            .sum(&format!(r#"autoplay_relay_log_events{{product_id="{PRODUCT}",tier="disk"}}"#))
            as u64)
    }

    /// What the target's metrics say, if it has any.
    pub(crate) fn metrics(&self) -> Result<Option<Metrics>> {
        self.target.admin.map(Metrics::read).transpose()
    }

    /// How many subscribers the target says it has, if it says anything.
    pub(crate) fn subscribers(&self) -> Result<Option<f64>> {
        Ok(self.metrics()?.map(|metrics| metrics.sum("autoplay_relay_subscribers{")))
    }

    /// The files that the target keeps.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        self.target.files()
    }

    /// Ends the target in order and starts it again on what it has kept.
    pub(crate) fn restart(self, outcome: &mut Outcome) -> Result<(Self, Restart)> {
        let Self { target, source, kind, disturbance } = self;
        let Source::Stream(upstream) = source else {
            return Err("the target reads no stream".into());
        };
        let (target, restart) = target.restart(&mut outcome.remarks)?;
        let source = Source::Stream(upstream.closed().accept()?);
        Ok((Self { target, source, kind, disturbance }, restart))
    }

    /// Ends the target in order, for what has watched it to write down what it saw.
    pub(crate) fn stop(self, outcome: &mut Outcome) -> Result<()> {
        self.target.stop(&mut outcome.remarks)?;
        Ok(())
    }

    /// Whatever is wrong with the target goes into the books. Then it is killed.
    pub(crate) fn finish(mut self, outcome: &mut Outcome) {
        if let Some(status) = self.target.has_ended() {
            outcome.faults.words.push(format!("the target ended: {status}"));
        }
        if self.source.stream().is_ok_and(|stream| stream.was_reconnected()) {
            outcome.faults.words.push("the target came a second time for its events".to_owned());
        }
        outcome.remarks.extend(self.target.complaints());
        outcome.note("cores busy with other things", self.disturbance);
    }
}

/// What the machine has worked for neither this process nor the target, which this process has
/// started.
fn others_cpu() -> Result<Duration> {
    Ok(process::machine_cpu()?.saturating_sub(process::family_cpu(std::process::id())?))
}

/// Events on the way into the store: many commits' worth, and a fraction of what the relay holds in
/// memory.
const MOST_UNKEPT: u64 = 16_384;

/// Events in one write of the upstream.
const POURED_AT_ONCE: u64 = 64;

/// A fraction of the time in which the store takes [`MOST_UNKEPT`] events.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// When the store takes nothing for this long, it takes nothing any more.
const STANDSTILL: Duration = Duration::from_secs(10);
