//! Label values of subscribers' metrics.
//!
//! May use: nothing.

/// How a subscriber is connected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Transport {
    /// Server-Sent Events.
    Sse,
    /// WebSocket.
    WebSocket,
    /// One page at a time.
    Page,
}

impl Transport {
    /// As it stands in metric labels and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::WebSocket => "ws",
            Self::Page => "page",
        }
    }
}

/// Why a subscriber was turned away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShedReason {
    /// `server.max_subscribers` are connected.
    MaxSubscribers,
    /// `server.max_subscribers_per_ip` are connected from this address.
    PerIp,
    /// `server.max_subscribers_per_key` are connected with this key.
    PerKey,
    /// More than `server.max_connects_per_second` came within a second.
    ConnectRate,
    /// The relay is leaving.
    Draining,
    /// The process may open no further file.
    NoFileDescriptor,
    /// There are as many connections as the limit on open files, or `server.max_subscribers`, leaves room for.
    MaxConnections,
}

impl ShedReason {
    pub(super) const ALL: [Self; 7] = [
        Self::MaxSubscribers,
        Self::PerIp,
        Self::PerKey,
        Self::ConnectRate,
        Self::Draining,
        Self::NoFileDescriptor,
        Self::MaxConnections,
    ];

    /// As it stands in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MaxSubscribers => "max_subscribers",
            Self::PerIp => "per_ip",
            Self::PerKey => "per_key",
            Self::ConnectRate => "connect_rate",
            Self::Draining => "draining",
            Self::NoFileDescriptor => "no_file_descriptor",
            Self::MaxConnections => "max_connections",
        }
    }
}

/// Of subscribers that leave.
pub(super) const DISCONNECT_REASONS: [&str; 9] =
    ["client", "stalled", "drain", "expired", "revoked", "removed", "rotated", "kicked", "error"];
