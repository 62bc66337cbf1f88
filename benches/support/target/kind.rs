//! Which programs are measured, how subscribers come to them, and what is not the same work.

use std::{
    fmt::{self, Display},
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use super::{nchan, pushpin};

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

impl Kind {
    /// Whether subscribers come by TLS or HTTP/2, which only what connects them all can.
    pub(crate) fn is_layered(self) -> bool {
        let way = self.door((Ipv4Addr::LOCALHOST, 0).into()).way;
        matches!(way, Way::Http2 | Way::Tls | Way::TlsHttp2)
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
