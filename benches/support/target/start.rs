//! Starts targets by their kind.

use std::{
    env,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    centrifugo,
    kind::{Kind, Naive, Pace},
    nchan, pushpin, relay,
    relay_files::{RelayFiles, data_dir},
    running::Target,
    spawn::{follow, line_in_time},
};
use crate::support::{Result, tls};

/// Times of a relay's restart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// From SIGTERM to the end of the process.
    pub(crate) stopping: Duration,
    /// From the start of the next process to the moment at which it serves.
    pub(crate) starting: Duration,
}

impl Target {
    /// Starts a target that reads from `upstream`, or that events are published to.
    pub(crate) fn start(kind: Kind, upstream: SocketAddr, pace: Pace) -> Result<Self> {
        match kind {
            Kind::Relay | Kind::WebSocket | Kind::Http2 => {
                relay::start(RelayFiles::new(upstream, None, "")?)
            }
            Kind::Tls | Kind::TlsHttp2 => relay::start(RelayFiles::secure(upstream)?),
            Kind::Durable => Self::durable(upstream, ""),
            Kind::Bare => Self::own(&[BARE, &upstream.to_string(), &pace.to_string()]),
            Kind::Naive => Self::own(&[NAIVE, &upstream.to_string(), &Naive::Plain.to_string()]),
            Kind::NaiveHttp2 => {
                Self::own(&[NAIVE, &upstream.to_string(), &Naive::Auto.to_string()])
            }
            Kind::NaiveTls | Kind::NaiveTlsHttp2 => {
                tls::issue()?;
                Self::own(&[NAIVE, &upstream.to_string(), &Naive::Tls.to_string()])
            }
            Kind::Nchan => nchan::start(),
            Kind::Pushpin => pushpin::start(),
            Kind::Centrifugo => centrifugo::start(),
        }
    }

    /// Starts a relay with a store that reads from `upstream`, with further tables in its
    /// configuration.
    pub(crate) fn durable(upstream: SocketAddr, tables: &str) -> Result<Self> {
        relay::start(RelayFiles::new(upstream, Some(data_dir()?), tables)?)
    }

    /// Starts a relay with a small log in memory.
    pub(crate) fn with_small_log(upstream: SocketAddr, events: usize) -> Result<Self> {
        relay::start(RelayFiles::with_small_log(upstream, events)?)
    }

    /// Starts a relay with its log in memory that sends no heartbeat.
    pub(crate) fn without_heartbeats(upstream: SocketAddr) -> Result<Self> {
        relay::start(RelayFiles::without_heartbeats(upstream)?)
    }

    /// Starts this executable as another process, which prints its address.
    fn own(arguments: &[&str]) -> Result<Self> {
        let mut child =
            Command::new(env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?;
        let complaints = Arc::default();
        let output = child.stdout.take().ok_or("the target has no output")?;
        let line = follow(output, &complaints, |line| line.parse::<SocketAddr>().is_ok());
        let address = line_in_time(&mut child, &line, &complaints)?.parse()?;
        let mut target = Self::of(child, complaints);
        target.address = address;
        Ok(target)
    }

    /// Shuts it down gracefully and starts it again with its files. The upstream must accept it
    /// again. Adds its complaints so far to `remarks`.
    ///
    /// # Errors
    ///
    /// If it fails to end or to start.
    pub(crate) fn restart(mut self, remarks: &mut Vec<String>) -> Result<(Self, Restart)> {
        let relay_files = self.relay_files.take().ok_or("only a relay can be restarted")?;
        let stopping = self.stop(remarks)?;
        let began = Instant::now();
        let target = relay::start(relay_files)?;
        Ok((target, Restart { stopping, starting: began.elapsed() }))
    }
}

/// Makes this executable the reference server: followed by the upstream's address and its pace.
pub(crate) const BARE: &str = "--bare";

/// Makes this executable the naive server: followed by the upstream's address and its protocols.
pub(crate) const NAIVE: &str = "--naive";
