//! What is measured: a process of its own, told where its events come from, asked where it listens.
//!
//! One file for each: how it is configured and started, and how events come to it. Who does not fetch them from an upstream has
//! them published.

pub(crate) mod bare;
pub(crate) mod naive;
mod nchan;
mod pushpin;
mod relay;
mod spawn;

use std::{
    env,
    fmt::{self, Display},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::{
    relay::{Home, data_dir},
    spawn::{Complaints, follow, line_in_time},
};
use crate::{Result, publisher::Publishing, tls};

/// Which program, and how it is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `autoplay-relay serve`, with the log in memory.
    Relay,
    /// `autoplay-relay serve`, with a store beside the build.
    Durable,
    /// The first, whose subscribers come by WebSocket.
    WebSocket,
    /// The least that could do its job.
    Bare,
    /// The first, whose subscribers come by HTTP/2, with prior knowledge.
    Http2,
    /// `autoplay-relay serve` with TLS, whose subscribers come by HTTP/1.1.
    Tls,
    /// The same, whose subscribers come by HTTP/2.
    TlsHttp2,
    /// What one would write in an hour.
    Naive,
    /// The same by HTTP/2, with prior knowledge.
    NaiveHttp2,
    /// The same with TLS, by HTTP/1.1.
    NaiveTls,
    /// The same with TLS, by HTTP/2.
    NaiveTlsHttp2,
    /// nginx with nchan.
    Nchan,
    /// Pushpin.
    Pushpin,
}

/// How `bare` writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pace {
    /// One write for each event and subscriber.
    Each,
    /// One write for each subscriber with all events that have come meanwhile.
    Gather,
}

/// How `naive` listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Naive {
    /// As axum does.
    Plain,
    /// As HTTP/1.1 or 2.
    Auto,
    /// The same behind TLS.
    Tls,
}

/// How subscribers come in, and what they find.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    /// Where.
    pub(crate) address: SocketAddr,
    /// Speaking what.
    pub(crate) way: Way,
    /// Whether events have the relay's ids, and nothing comes without data.
    pub(crate) is_strict: bool,
}

/// What a subscriber speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Server-Sent Events over HTTP/1.1.
    Sse,
    /// WebSocket over HTTP/1.1.
    WebSocket,
    /// Server-Sent Events over HTTP/2 with prior knowledge.
    Http2,
    /// Server-Sent Events over HTTP/1.1 and TLS.
    Tls,
    /// Server-Sent Events over HTTP/2 and TLS.
    TlsHttp2,
}

/// A running one. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    /// Where subscribers go.
    pub(crate) address: SocketAddr,
    /// Where metrics are, if it has any.
    pub(crate) admin: Option<SocketAddr>,
    /// How events come to it, if it does not fetch them.
    pub(crate) publishing: Option<Publishing>,
    complaints: Complaints,
    home: Option<Home>,
    /// The files of one that is no relay.
    files: Option<TempDir>,
}

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

    /// Starts a relay with a store that reads from `upstream`, with further tables in its configuration.
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

    /// A process, with nothing known of it yet.
    fn of(child: Child, complaints: Complaints) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self { child, address, admin: None, publishing: None, complaints, home: None, files: None }
    }

    /// Ends it in order and starts it again on what it has kept. The upstream must take it back. What it has complained of
    /// so far goes into `remarks`.
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

    /// Ends it in order. Returns how long that took.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub(crate) fn stop(mut self, remarks: &mut Vec<String>) -> Result<Duration> {
        let began = Instant::now();
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let ended = self.child.wait()?;
        if !told.success() || !ended.success() {
            return Err(format!("the relay did not end in order: {ended}").into());
        }
        let stopping = began.elapsed();
        remarks.extend(self.complaints());
        Ok(stopping)
    }

    /// The files that it keeps.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let data = self
            .home
            .as_ref()
            .and_then(|home| home.data.as_ref())
            .ok_or("the target keeps no files")?;
        fs::read_dir(data)?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Its process. There may be others below it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Warnings and errors it has logged so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, if it did.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(status.to_string())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        spawn::end(&mut self.child);
    }
}

/// Makes this executable the reference: followed by the upstream's address and its pace.
pub(crate) const BARE: &str = "--bare";

/// Makes this executable the obvious server: followed by the upstream's address and how it listens.
pub(crate) const NAIVE: &str = "--naive";

impl Kind {
    /// All, in the order of the report's columns.
    pub(crate) const ALL: [Self; 13] = [
        Self::Relay,
        Self::Durable,
        Self::WebSocket,
        Self::Bare,
        Self::Naive,
        Self::Nchan,
        Self::Pushpin,
        Self::Http2,
        Self::NaiveHttp2,
        Self::Tls,
        Self::NaiveTls,
        Self::TlsHttp2,
        Self::NaiveTlsHttp2,
    ];

    /// Whether what it does wrong is a fault, and not a finding.
    pub(crate) fn is_held_to_account(self) -> bool {
        use Kind::{Bare, Durable, Http2, Relay, Tls, TlsHttp2, WebSocket};
        matches!(self, Relay | Durable | WebSocket | Http2 | Tls | TlsHttp2 | Bare)
    }

    /// What is missing on this machine for it to run.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Nchan => nchan::missing(),
            Self::Pushpin => pushpin::missing(),
            _ => None,
        }
    }

    /// What is not the same work as the relay's.
    pub(crate) fn difference(self) -> Option<&'static str> {
        match self {
            Self::Relay | Self::Durable => None,
            Self::Http2 | Self::TlsHttp2 => Some("the relay again; 100 streams on each connection"),
            Self::Tls => Some("the relay again; its own certificate on P-256, TLS 1.3"),
            Self::NaiveHttp2 | Self::NaiveTls | Self::NaiveTlsHttp2 => Some(
                "naive again, with hyper-util's auto builder, and tokio-rustls as it comes for TLS",
            ),
            Self::WebSocket => {
                Some("the relay again; frames have no chunks around them, payloads stand in JSON")
            }
            Self::Bare => Some("parses no HTTP, keeps nothing, checks nobody, announces nothing"),
            Self::Naive => Some(
                "keeps 1 024 events for all to share, and skips what a slow subscriber has not read of them",
            ),
            Self::Nchan => Some(nchan::DIFFERENCE),
            Self::Pushpin => Some(pushpin::DIFFERENCE),
        }
    }

    /// How subscribers of one that listens there come in.
    pub(crate) fn door(self, address: SocketAddr) -> Door {
        let way = match self {
            Self::WebSocket => Way::WebSocket,
            Self::Http2 | Self::NaiveHttp2 => Way::Http2,
            Self::Tls | Self::NaiveTls => Way::Tls,
            Self::TlsHttp2 | Self::NaiveTlsHttp2 => Way::TlsHttp2,
            _ => Way::Sse,
        };
        Door { address, way, is_strict: self.is_held_to_account() }
    }
}

impl Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Relay => "relay",
            Self::Durable => "durable",
            Self::WebSocket => "websocket",
            Self::Bare => "bare",
            Self::Http2 => "h2",
            Self::Tls => "tls",
            Self::TlsHttp2 => "tls-h2",
            Self::Naive => "naive",
            Self::NaiveHttp2 => "naive-h2",
            Self::NaiveTls => "naive-tls",
            Self::NaiveTlsHttp2 => "naive-tls-h2",
            Self::Nchan => "nchan",
            Self::Pushpin => "pushpin",
        })
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or(())
    }
}

impl Kind {
    /// Whether subscribers come by TLS or HTTP/2, which only what connects them all can.
    pub(crate) fn is_layered(self) -> bool {
        let way = self.door((Ipv4Addr::LOCALHOST, 0).into()).way;
        matches!(way, Way::Http2 | Way::Tls | Way::TlsHttp2)
    }
}

impl Display for Naive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plain => "plain",
            Self::Auto => "auto",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for Naive {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        [Self::Plain, Self::Auto, Self::Tls]
            .into_iter()
            .find(|naive| naive.to_string() == text)
            .ok_or(())
    }
}

impl Display for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Each => "each",
            Self::Gather => "gather",
        })
    }
}

impl FromStr for Pace {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        [Self::Each, Self::Gather].into_iter().find(|pace| pace.to_string() == text).ok_or(())
    }
}
