//! Set-up of one run: an upstream, and a relay with a store and webhooks.

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

/// A relay that is connected to its upstream.
#[derive(Debug)]
pub(crate) struct Rig {
    // Dropped in this order: the relay is killed before its upstream ends, which it would log.
    target: Target,
    upstream: Stream,
    sent: u64,
}

impl Rig {
    /// Starts both; `hooks` are the addresses of the receivers.
    pub(crate) fn start(hooks: &[SocketAddr]) -> Result<Self> {
        let tables: String =
            hooks.iter().enumerate().map(|(nth, address)| table(nth, *address)).collect();
        let upstream = Upstream::listen()?;
        let target = Target::durable(upstream.address()?, &(tables + EGRESS))?;
        let upstream = upstream.accept()?;
        Ok(Self { target, upstream, sent: 0 })
    }

    /// Returns the private memory of the relay.
    pub(crate) fn private_mib(&self) -> Result<f64> {
        Ok(process::private_kib(self.target.pid())? / 1024.0)
    }

    /// Watches the private memory of the relay.
    pub(crate) fn watch(&self) -> process::Peak {
        process::Peak::watch(self.target.pid())
    }

    /// Returns the CPU time that the relay has used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        process::cpu(self.target.pid())
    }

    /// Returns the number of sent events.
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

    /// Sends events at the rate of this receiver, with a bounded number on the way.
    pub(crate) fn send_to_sink(&mut self, sink: &Sink, series: Series, count: u64) -> Result<()> {
        let base = self.sent - sink.received();
        let end = self.sent + count;
        while self.sent < end {
            let limit = end.min(base + sink.received() + MAX_UNSETTLED);
            self.send_up_to(series, limit)?;
            thread::sleep(POLL_INTERVAL);
        }
        sink.wait_for(end - base)
    }

    /// Sends events at the rate of the store, and waits until all are stored.
    pub(crate) fn fill_store(&mut self, series: Series, count: u64) -> Result<()> {
        let (before, base, end) = (self.stored()?, self.sent, self.sent + count);
        let mut moved = (before, Instant::now());
        loop {
            let stored = self.stored()?;
            if stored - before >= count {
                return Ok(());
            }
            if stored > moved.0 {
                moved = (stored, Instant::now());
            }
            if moved.1.elapsed() > STANDSTILL {
                return Err(format!(
                    "the store holds {} of {count} events and takes no more",
                    stored - before
                )
                .into());
            }
            self.send_up_to(series, end.min(base + (stored - before) + MAX_UNSETTLED))?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends up to the event `last`, many in one write.
    fn send_up_to(&mut self, series: Series, last: u64) -> Result<()> {
        while self.sent < last {
            let next = last.min(self.sent + BATCH);
            self.upstream.send_batch(series, self.sent + 1..=next)?;
            self.sent = next;
        }
        Ok(())
    }

    fn metrics(&self) -> Result<Metrics> {
        Metrics::read(self.target.admin.ok_or("a relay has metrics")?)
    }

    fn stored(&self) -> Result<u64> {
        let events = format!(r#"autoplay_relay_log_events{{product_id="{PRODUCT}",tier="disk"}}"#);
        Ok(self.metrics()?.sum(&events) as u64)
    }

    /// Returns the pending deliveries of the webhook of this number.
    pub(crate) fn pending(&self, nth: usize) -> Result<u64> {
        Ok(self.metrics()?.sum(&format!(r#"autoplay_relay_webhook_pending{{webhook="hook-{nth}""#))
            as u64)
    }

    /// Returns the faults of the relay.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let mut faults = self.target.complaints();
        faults.extend(self.target.has_ended().map(|status| format!("the relay ended: {status}")));
        if self.upstream.was_reconnected() {
            faults.push("the relay connected to its upstream a second time".to_owned());
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

/// Events sent and not stored or delivered: many commits' worth, and a fraction of what the relay
/// holds in memory.
const MAX_UNSETTLED: u64 = 8192;

/// Events in one write.
const BATCH: u64 = 64;

const POLL_INTERVAL: Duration = Duration::from_millis(2);

const STANDSTILL: Duration = Duration::from_secs(10);
