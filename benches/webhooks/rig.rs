//! One run's set-up: an upstream, and a relay with a store that pushes to webhooks.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    sink::Sink,
    support::{
        Result,
        metrics::Metrics,
        payload::{PRODUCT, Series},
        process,
        target::running::Target,
        upstream::{Stream, Upstream},
    },
};

/// A relay with its upstream connected.
#[derive(Debug)]
pub(crate) struct Rig {
    // In this order: the relay is killed before its upstream is gone and it has to complain.
    target: Target,
    upstream: Stream,
    sent: u64,
}

impl Rig {
    /// Starts both; `hooks` are where the relay pushes to.
    pub(crate) fn start(hooks: &[SocketAddr]) -> Result<Self> {
        let tables: String =
            hooks.iter().enumerate().map(|(nth, address)| table(nth, *address)).collect();
        let upstream = Upstream::listen()?;
        let target = Target::durable(upstream.address()?, &(tables + EGRESS))?;
        let upstream = upstream.accept()?;
        Ok(Self { target, upstream, sent: 0 })
    }

    /// Memory that the relay has for itself.
    pub(crate) fn private_mib(&self) -> Result<f64> {
        Ok(process::private_kib(self.target.pid())? / 1024.0)
    }

    /// Watches its memory.
    pub(crate) fn watch(&self) -> process::Peak {
        process::Peak::watch(self.target.pid())
    }

    /// CPU time it has used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        process::cpu(self.target.pid())
    }

    /// How many events were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends events at an even rate.
    pub(crate) fn send(&mut self, series: Series, count: u64, per_second: u64) -> Result<()> {
        let events = self.sent + 1..=self.sent + count;
        self.upstream.send(series, events, per_second as f64)?;
        self.sent += count;
        Ok(())
    }

    /// Sends events as fast as this receiver gets them, with some on the way.
    pub(crate) fn pour_to(&mut self, sink: &Sink, series: Series, count: u64) -> Result<()> {
        let base = self.sent - sink.received();
        let end = self.sent + count;
        while self.sent < end {
            let room = end.min(base + sink.received() + ON_THE_WAY);
            self.pour(series, room)?;
            thread::sleep(BETWEEN_LOOKS);
        }
        sink.wait_for(end - base)
    }

    /// Sends events as fast as the store takes them, and waits until all are in it.
    pub(crate) fn pour_into_store(&mut self, series: Series, count: u64) -> Result<()> {
        let (before, base, end) = (self.kept()?, self.sent, self.sent + count);
        let mut moved = (before, Instant::now());
        loop {
            let kept = self.kept()?;
            if kept - before >= count {
                return Ok(());
            }
            if kept > moved.0 {
                moved = (kept, Instant::now());
            }
            if moved.1.elapsed() > STANDSTILL {
                return Err(format!(
                    "the store has kept {} of {count} events and takes no more",
                    kept - before
                )
                .into());
            }
            self.pour(series, end.min(base + (kept - before) + ON_THE_WAY))?;
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Sends up to the event `last`, many in one write.
    fn pour(&mut self, series: Series, last: u64) -> Result<()> {
        while self.sent < last {
            let next = last.min(self.sent + AT_ONCE);
            self.upstream.pour(series, self.sent + 1..=next)?;
            self.sent = next;
        }
        Ok(())
    }

    fn metrics(&self) -> Result<Metrics> {
        Metrics::read(self.target.admin.ok_or("a relay has metrics")?)
    }

    fn kept(&self) -> Result<u64> {
        let events = format!(r#"autoplay_relay_log_events{{product_id="{PRODUCT}",tier="disk"}}"#);
        Ok(self.metrics()?.sum(&events) as u64)
    }

    /// Deliveries that the webhook of this number is owed.
    pub(crate) fn pending(&self, nth: usize) -> Result<u64> {
        Ok(self.metrics()?.sum(&format!(r#"autoplay_relay_webhook_pending{{webhook="hook-{nth}""#))
            as u64)
    }

    /// What is wrong with the relay, if anything is.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let mut faults = self.target.complaints();
        faults.extend(self.target.has_ended().map(|status| format!("the relay ended: {status}")));
        if self.upstream.was_reconnected() {
            faults.push("the relay came a second time for its events".to_owned());
        }
        faults
    }
}

fn table(nth: usize, address: SocketAddr) -> String {
    format!(
        r#"
[[webhooks]]
id = "hook-{nth}"
product_id = "{PRODUCT}"
url = "http://{address}/hook"
secret = "not-a-secret"
max_in_flight = 64
max_retries = 100
initial_backoff = "100ms"
max_backoff = "1s"
"#
    )
}

const EGRESS: &str = "\n[egress]\nallow_networks = [\"127.0.0.0/8\"]\n";

/// Events that have been sent and not been taken: many commits' worth, and a fraction of what the
/// relay holds in memory.
const ON_THE_WAY: u64 = 8192;

/// Events in one write.
const AT_ONCE: u64 = 64;

const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

const STANDSTILL: Duration = Duration::from_secs(10);
