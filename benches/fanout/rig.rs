//! One run's set-up: an upstream and a target, and what is read off the target.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crate::{
    Result,
    load::{Audience, Load},
    process,
    report::Outcome,
    target::{Kind, Pace, Target},
    upstream::{Stream, Upstream},
};

/// A target with its upstream connected.
#[derive(Debug)]
pub(crate) struct Rig {
    // In this order: the target is killed before its upstream is gone and it has to complain.
    target: Target,
    upstream: Stream,
    disturbance: f64,
}

impl Rig {
    /// Starts both.
    pub(crate) fn start(kind: Kind, pace: Pace) -> Result<Self> {
        let upstream = Upstream::listen()?;
        let target = Target::start(kind, upstream.address()?, pace)?;
        let upstream = upstream.accept()?;
        Ok(Self { target, upstream, disturbance: 0.0 })
    }

    /// Where subscribers go.
    pub(crate) fn address(&self) -> SocketAddr {
        self.target.address
    }

    /// Memory that the target has for itself.
    pub(crate) fn private_kib(&self) -> Result<f64> {
        process::private_kib(self.target.pid())
    }

    /// The target's CPU time while `work` was done.
    pub(crate) fn cpu_of<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(Duration, T)> {
        let pid = self.target.pid();
        let start = Instant::now();
        let (before, others) = (process::cpu(pid)?, others_cpu(pid)?);
        let done = work(self).map_err(|error| match self.target.has_ended() {
            Some(status) => format!("the target ended ({status}): {error}").into(),
            None => error,
        })?;
        let others = others_cpu(pid)?.saturating_sub(others).div_duration_f64(start.elapsed());
        self.disturbance = self.disturbance.max(others);
        Ok((process::cpu(pid)?.saturating_sub(before), done))
    }

    /// Sends the whole series and waits until everybody has it. Returns how late the upstream was at the worst.
    pub(crate) fn send_all(&mut self, load: &Load, audience: Audience, per_second: u64) -> Result<Duration> {
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
        let late = self.upstream.send(audience.series, events, per_second as f64)?;
        load.wait_for(audience.deliveries() * last / audience.series.events)?;
        Ok(late)
    }

    /// How many subscribers the target says it has, if it says anything.
    pub(crate) fn subscribers(&self) -> Result<Option<f64>> {
        let Some(admin) = self.target.admin else {
            return Ok(None);
        };
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let samples = answer.lines().filter(|line| line.starts_with("autoplay_relay_subscribers{"));
        let values = samples.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok());
        Ok(Some(values.sum()))
    }

    /// Whatever is wrong with the target goes into the books. Then it is killed.
    pub(crate) fn finish(mut self, outcome: &mut Outcome) {
        if let Some(status) = self.target.has_ended() {
            outcome.faults.words.push(format!("the target ended: {status}"));
        }
        if self.upstream.was_reconnected() {
            outcome.faults.words.push("the target came a second time for its events".to_owned());
        }
        outcome.remarks.extend(self.target.complaints());
        outcome.note("cores busy with other things", self.disturbance);
    }
}

/// What the machine has worked for neither the target nor this process.
fn others_cpu(target: u32) -> Result<Duration> {
    let ours = process::cpu(target)? + process::cpu(std::process::id())?;
    Ok(process::machine_cpu()?.saturating_sub(ours))
}
