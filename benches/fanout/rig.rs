//! Set-up of one run: an upstream, a target, and the measurements of the target.

use std::{
    ops::RangeInclusive,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    support::{
        Result,
        metrics::Metrics,
        payload::{PRODUCT, Series},
        process,
        publisher::Publisher,
        target::{
            kind::{Endpoint, Kind, Pace},
            running::Target,
            start::Restart,
        },
        upstream::{Flood, Stream, Upstream},
    },
};

/// A target that is connected to the source of its events.
#[derive(Debug)]
pub(crate) struct Rig {
    // Dropped in this order: the target is killed before its upstream ends, which it would log.
    target: Target,
    source: Source,
    kind: Kind,
    disturbance: f64,
}

/// The source of the events.
#[derive(Debug)]
enum Source {
    /// A connector that the target reads.
    Stream(Stream),
    /// A publisher.
    Publisher(Publisher),
}

impl Source {
    /// # Errors
    ///
    /// If the events are published.
    fn stream(&mut self) -> Result<&mut Stream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Publisher(_) => Err("the target reads no stream".into()),
        }
    }
}

impl Rig {
    /// Starts the target and its upstream.
    pub(crate) fn start(kind: Kind, pace: Pace) -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::start(kind, upstream.address()?, pace)?;
        Self::connect(kind, target, upstream)
    }

    /// Starts a relay whose log holds few events, and its upstream.
    pub(crate) fn with_small_log(kind: Kind, events: usize) -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::with_small_log(upstream.address()?, events)?;
        Self::connect(kind, target, upstream)
    }

    /// Starts a relay that sends no heartbeat, and its upstream.
    pub(crate) fn without_heartbeats() -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::without_heartbeats(upstream.address()?)?;
        Self::connect(Kind::Relay, target, upstream)
    }

    fn connect(kind: Kind, target: Target, upstream: Upstream) -> Result<Self> {
        let source = match target.publishing {
            Some(publishing) => Source::Publisher(Publisher::open(publishing)?),
            None => Source::Stream(upstream.accept()?),
        };
        Ok(Self { target, source, kind, disturbance: 0.0 })
    }

    /// Returns the address and protocol for subscribers.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.kind.endpoint(self.target.address)
    }

    /// Returns the process id of the target.
    pub(crate) fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// Returns the private memory of the target.
    pub(crate) fn private_kib(&self) -> Result<f64> {
        process::private_kib(self.target.pid())
    }

    /// Returns the CPU time of the target during `work`.
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

    /// Sends the whole series and waits until all subscribers have received it. Returns the maximum
    /// delay of the upstream.
    pub(crate) fn send_all(
        &mut self,
        load: &Load,
        workload: Workload,
        per_second: u64,
    ) -> Result<Duration> {
        self.send(load, workload, 1..=workload.series.events, per_second)
    }

    /// Sends a part of the series and waits until all subscribers have received it. Returns the
    /// maximum delay of the upstream.
    pub(crate) fn send(
        &mut self,
        load: &Load,
        workload: Workload,
        events: RangeInclusive<u64>,
        per_second: u64,
    ) -> Result<Duration> {
        let last = *events.end();
        let (series, per_second) = (workload.series, per_second as f64);
        let late = match &mut self.source {
            Source::Stream(stream) => stream.send(series, events, per_second)?,
            Source::Publisher(publisher) => {
                publisher.send(series, workload.own_session, events, per_second)?
            }
        };
        load.wait_for(workload.deliveries_through(last))?;
        Ok(late)
    }

    /// Sends the whole series, each event after all subscribers have received the one before and
    /// every thread of the target sleeps again.
    pub(crate) fn send_one_by_one(&mut self, load: &Load, workload: Workload) -> Result<()> {
        self.wait_until_asleep(load, 0)?;
        for event in 1..=workload.series.events {
            // The first event of a call is due at once, at any rate.
            self.source.stream()?.send(workload.series, event..=event, 1.0)?;
            self.wait_until_asleep(load, workload.deliveries_through(event))?;
        }
        Ok(())
    }

    /// Waits until this many deliveries have been received and the target has nothing to do.
    fn wait_until_asleep(&self, load: &Load, deliveries: u64) -> Result<()> {
        let start = Instant::now();
        while load.received() < deliveries || !process::is_asleep(self.pid())? {
            if start.elapsed() > STANDSTILL {
                let received = load.received();
                return Err(format!("{received} of {deliveries} deliveries, no rest").into());
            }
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Sends events of the series from `first` on during `work`. Returns the last of them.
    pub(crate) fn send_while<T>(
        &mut self,
        series: Series,
        first: u64,
        per_second: u64,
        work: impl FnOnce(Endpoint) -> Result<T>,
    ) -> Result<(u64, T)> {
        let (endpoint, upstream) = (self.endpoint(), self.source.stream()?);
        let (is_done, mut last) = (AtomicBool::new(false), first - 1);
        let done = thread::scope(|scope| {
            let events = (first..)
                .take_while(|_| !is_done.load(Ordering::Relaxed))
                .inspect(|event| last = *event);
            let sender = scope.spawn(|| upstream.send(series, events, per_second as f64));
            let done = work(endpoint);
            is_done.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| "the upstream's thread panicked")??;
            done
        })?;
        Ok((last, done))
    }

    /// Sends events of the series at the rate of the target's store, so that no event is evicted
    /// from memory before it is persisted. Returns once all are stored.
    pub(crate) fn fill_store(&mut self, series: Series, events: RangeInclusive<u64>) -> Result<()> {
        let (first, last) = events.into_inner();
        let before = self.stored()?;
        let (mut sent, mut moved) = (first - 1, (before, Instant::now()));
        loop {
            let stored = self.stored()?;
            if stored >= before + (last + 1 - first) {
                return Ok(());
            }
            if stored > moved.0 {
                moved = (stored, Instant::now());
            }
            if moved.1.elapsed() > STANDSTILL {
                return Err(format!(
                    "the store holds {} of {sent} events and takes no more",
                    stored - before
                )
                .into());
            }
            let limit = last.min(first - 1 + (stored - before) + MAX_UNSTORED);
            while sent < limit {
                let next = limit.min(sent + BATCH);
                self.source.stream()?.send_batch(series, sent + 1..=next)?;
                sent = next;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends events when they are due, without waiting for the target, like a connector with its
    /// queue.
    pub(crate) fn flood(
        &mut self,
        series: Series,
        events: RangeInclusive<u64>,
        per_second: f64,
    ) -> Result<Flood> {
        self.source.stream()?.flood(series, events, per_second)
    }

    /// Returns the number of entries in the target's store.
    pub(crate) fn stored(&self) -> Result<u64> {
        let metrics = self.metrics()?.ok_or("the target has no metrics")?;
        Ok(metrics
            .sum(&format!(r#"autoplay_relay_log_events{{product_id="{PRODUCT}",tier="disk"}}"#))
            as u64)
    }

    /// Returns the target's metrics, if it has any.
    pub(crate) fn metrics(&self) -> Result<Option<Metrics>> {
        self.target.admin.map(Metrics::read).transpose()
    }

    /// Returns the number of subscribers by the target's metrics, if it has any.
    pub(crate) fn subscribers(&self) -> Result<Option<f64>> {
        Ok(self.metrics()?.map(|metrics| metrics.sum("autoplay_relay_subscribers{")))
    }

    /// Returns the files of the target's store.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        self.target.files()
    }

    /// Shuts the target down gracefully and starts it again with its store.
    pub(crate) fn restart(self, outcome: &mut Outcome) -> Result<(Self, Restart)> {
        let Self { target, source, kind, disturbance } = self;
        let Source::Stream(upstream) = source else {
            return Err("the target reads no stream".into());
        };
        let (target, restart) = target.restart(&mut outcome.remarks)?;
        let source = Source::Stream(upstream.reopen().accept()?);
        Ok((Self { target, source, kind, disturbance }, restart))
    }

    /// Shuts the target down gracefully, so that a tool that runs it can write its results.
    pub(crate) fn stop(self, outcome: &mut Outcome) -> Result<()> {
        self.target.stop(&mut outcome.remarks)?;
        Ok(())
    }

    /// Adds the target's faults to `outcome`, and kills it.
    pub(crate) fn finish(mut self, outcome: &mut Outcome) {
        if let Some(status) = self.target.has_ended() {
            outcome.faults.words.push(format!("the target ended: {status}"));
        }
        if self.source.stream().is_ok_and(|stream| stream.was_reconnected()) {
            outcome
                .faults
                .words
                .push("the target connected to its upstream a second time".to_owned());
        }
        outcome.remarks.extend(self.target.complaints());
        outcome.note("cores busy with other things", self.disturbance);
    }
}

/// Returns the CPU time of all processes other than this one and its descendants, which include the
/// target.
fn others_cpu() -> Result<Duration> {
    Ok(process::machine_cpu()?.saturating_sub(process::family_cpu(std::process::id())?))
}

/// Maximum of events sent and not stored: many commits' worth, and a fraction of what the relay
/// holds in memory.
const MAX_UNSTORED: u64 = 16_384;

/// Events in one write of the upstream.
const BATCH: u64 = 64;

/// A fraction of the time in which the store takes [`MAX_UNSTORED`] events.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Short compared to the time that an event takes.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// A store that takes no event for this long will not take any more, and a target that has not
/// slept for this long will not sleep.
const STANDSTILL: Duration = Duration::from_secs(10);
