//! The targets: programs, protocols of their subscribers, and differences of their work.

use std::{
    fmt::{self, Display},
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use super::{centrifugo, nchan, pushpin};

/// A target: a program and its use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `autoplay-relay serve`, with the log in memory.
    Relay,
    /// `autoplay-relay serve`, with a store beside the build.
    Durable,
    /// `Relay`, with subscribers over WebSocket.
    WebSocket,
    /// The simplest program that could do the relay's job.
    Bare,
    /// `Relay`, with subscribers over HTTP/2 with prior knowledge.
    Http2,
    /// `autoplay-relay serve` with TLS, with subscribers over HTTP/1.1.
    Tls,
    /// `Tls`, with subscribers over HTTP/2.
    TlsHttp2,
    /// An obvious server.
    Naive,
    /// `Naive` over HTTP/2 with prior knowledge.
    NaiveHttp2,
    /// `Naive` with TLS over HTTP/1.1.
    NaiveTls,
    /// `Naive` with TLS over HTTP/2.
    NaiveTlsHttp2,
    /// nginx with nchan.
    Nchan,
    /// Pushpin.
    Pushpin,
    /// Centrifugo.
    Centrifugo,
}

/// Write strategy of `bare`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pace {
    /// One write for each event and subscriber.
    Each,
    /// One write for each subscriber with all pending events.
    Gather,
}

/// The protocols that `naive` serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Naive {
    /// HTTP/1.1 by `axum::serve`.
    Plain,
    /// HTTP/1.1 or HTTP/2.
    Auto,
    /// HTTP/1.1 or HTTP/2 over TLS.
    Tls,
}

/// Address and protocol for subscribers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    /// Address.
    pub(crate) address: SocketAddr,
    /// Protocol.
    pub(crate) protocol: Protocol,
    /// Whether events have the relay's ids, and every block has data.
    pub(crate) is_strict: bool,
    /// Name of the parameter by which a subscriber of one session asks for it.
    pub(crate) filter: &'static str,
}

/// The protocol of a subscriber.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// Server-Sent Events over HTTP/1.1.
    Sse,
    /// Centrifugo's Server-Sent Events over HTTP/1.1: a path, a query and messages of its own.
    CentrifugoSse,
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
    /// All targets, in the order of the report's columns.
    pub(crate) const ALL: [Self; 14] = [
        Self::Relay,
        Self::Durable,
        Self::WebSocket,
        Self::Bare,
        Self::Naive,
        Self::Nchan,
        Self::Pushpin,
        Self::Centrifugo,
        Self::Http2,
        Self::NaiveHttp2,
        Self::Tls,
        Self::NaiveTls,
        Self::TlsHttp2,
        Self::NaiveTlsHttp2,
    ];

    /// Returns true if an error of this target is a fault, and not a finding.
    pub(crate) fn must_be_correct(self) -> bool {
        use Kind::{Bare, Durable, Http2, Relay, Tls, TlsHttp2, WebSocket};
        matches!(self, Relay | Durable | WebSocket | Http2 | Tls | TlsHttp2 | Bare)
    }

    /// Returns what is missing on this machine to run the target.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Nchan => nchan::missing(),
            Self::Pushpin => pushpin::missing(),
            Self::Centrifugo => centrifugo::missing(),
            _ => None,
        }
    }

    /// Returns how the work of the target differs from the relay's.
    pub(crate) fn difference(self) -> Option<&'static str> {
        match self {
            Self::Relay | Self::Durable => None,
            Self::Http2 | Self::TlsHttp2 => Some("the relay again; 100 streams on each connection"),
            Self::Tls => Some("the relay again; its own certificate on P-256, TLS 1.3"),
            Self::NaiveHttp2 | Self::NaiveTls | Self::NaiveTlsHttp2 => Some(
                "naive again, with hyper-util's auto builder, and tokio-rustls as it is for TLS",
            ),
            Self::WebSocket => {
                Some("the relay again; frames have no chunks around them, payloads stand in JSON")
            }
            Self::Bare => {
                Some("parses no HTTP, keeps no events, checks no credentials, announces no gaps")
            }
            Self::Naive => Some(
                "keeps 1 024 events for all subscribers, and skips those that a slow subscriber has not read",
            ),
            Self::Nchan => Some(nchan::DIFFERENCE),
            Self::Pushpin => Some(pushpin::DIFFERENCE),
            Self::Centrifugo => Some(centrifugo::DIFFERENCE),
        }
    }

    /// Returns the endpoint for subscribers of a target with this address.
    pub(crate) fn endpoint(self, address: SocketAddr) -> Endpoint {
        let protocol = match self {
            Self::WebSocket => Protocol::WebSocket,
            Self::Centrifugo => Protocol::CentrifugoSse,
            Self::Http2 | Self::NaiveHttp2 => Protocol::Http2,
            Self::Tls | Self::NaiveTls => Protocol::Tls,
            Self::TlsHttp2 | Self::NaiveTlsHttp2 => Protocol::TlsHttp2,
            _ => Protocol::Sse,
        };
        Endpoint { address, protocol, is_strict: self.must_be_correct(), filter: "session_id" }
    }
}

impl Kind {
    /// Returns true if subscribers use TLS or HTTP/2, which only `load/streams.rs` supports.
    pub(crate) fn is_layered(self) -> bool {
        let protocol = self.endpoint((Ipv4Addr::LOCALHOST, 0).into()).protocol;
        matches!(protocol, Protocol::Http2 | Protocol::Tls | Protocol::TlsHttp2)
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
            Self::Centrifugo => "centrifugo",
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
