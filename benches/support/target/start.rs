//! Starting what is measured, by its kind.

use std::{
    env,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    home::{Home, data_dir},
    kind::{Kind, Naive, Pace},
    nchan, pushpin, relay,
    running::Target,
    spawn::{follow, line_in_time},
};
use crate::support::{Result, tls};

/// A relay's way from one life to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// From SIGTERM to the end of the process.
    pub(crate) stopping: Duration,
    /// From the start of the next to the moment at which it serves.
    pub(crate) starting: Duration,
}

impl Target {
    /// Starts one that reads from `upstream`, or is published to.
    pub(crate) fn start(kind: Kind, upstream: SocketAddr, pace: Pace) -> Result<Self> {
        match kind {
            Kind::Relay | Kind::WebSocket | Kind::Http2 => {
                relay::start(Home::new(upstream, None, "")?)
            }
            Kind::Tls | Kind::TlsHttp2 => relay::start(Home::secure(upstream)?),
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
        }
    }

    /// Starts a relay with a store that reads from `upstream`, with further tables in its
    /// configuration.
    pub(crate) fn durable(upstream: SocketAddr, tables: &str) -> Result<Self> {
        relay::start(Home::new(upstream, Some(data_dir()?), tables)?)
    }

    /// Starts a relay that keeps few events, in memory.
    pub(crate) fn forgetful(upstream: SocketAddr, events: usize) -> Result<Self> {
        relay::start(Home::forgetful(upstream, events)?)
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

    /// Ends it in order and starts it again on what it has kept. The upstream must take it back.
    /// What it has complained of so far goes into `remarks`.
    ///
    /// # Errors
    ///
    /// When it does not end well, or does not start.
    pub(crate) fn restart(mut self, remarks: &mut Vec<String>) -> Result<(Self, Restart)> {
        let home = self.home.take().ok_or("only a relay can be restarted")?;
        let stopping = self.stop(remarks)?;
        let began = Instant::now();
        let target = relay::start(home)?;
        Ok((target, Restart { stopping, starting: began.elapsed() }))
    }
}

/// Makes this executable the reference: followed by the upstream's address and its pace.
pub(crate) const BARE: &str = "--bare";

/// Makes this executable the obvious server: followed by the upstream's address and how it listens.
pub(crate) const NAIVE: &str = "--naive";
