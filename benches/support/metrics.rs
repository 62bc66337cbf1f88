//! The target's metrics, in Prometheus' text format.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::support::Result;

/// All samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// Scrapes the metrics.
    pub(crate) fn read(admin: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(Self(answer))
    }

    /// Returns the sum of all samples whose name and labels begin with this text.
    pub(crate) fn sum(&self, beginning: &str) -> f64 {
        self.samples(beginning).map(|(_, value)| value).sum()
    }

    /// Returns the mean of a histogram without labels; NaN if it is empty.
    pub(crate) fn mean(&self, histogram: &str) -> f64 {
        self.sum(&format!("{histogram}_sum")) / self.sum(&format!("{histogram}_count"))
    }

    /// Returns the value that this part of a histogram without labels does not exceed, as if values
    /// were spread evenly within a bucket; infinite beyond the last bucket.
    pub(crate) fn quantile(&self, histogram: &str, part: f64) -> f64 {
        let rank = part * self.sum(&format!("{histogram}_count"));
        let (mut from, mut below) = (0.0, 0.0);
        for (name, count) in self.samples(&format!("{histogram}_bucket{{")) {
            let to = name
                .split('"')
                .nth(1)
                .and_then(|le| le.trim_start_matches('+').parse().ok())
                .unwrap_or(f64::NAN);
            if count >= rank {
                return from + (to - from) * (rank - below) / (count - below);
            }
            (from, below) = (to, count);
        }
        f64::NAN
    }

    fn samples(&self, beginning: &str) -> impl Iterator<Item = (&str, f64)> {
        let samples = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        let is_wanted = move |(name, _): &(&str, &str)| name.starts_with(beginning);
        samples.filter(is_wanted).filter_map(|(name, value)| Some((name, value.parse().ok()?)))
    }
}
