//! Label values of subscribers' metrics. Names are interface.
//!
//! May use: no other module.

/// Transport of a connected subscriber.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Transport {
    /// Server-Sent Events.
    Sse,
    /// WebSocket.
    WebSocket,
}

impl Transport {
    /// Returns the transport as metric labels and the admin API spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::WebSocket => "ws",
        }
    }
}

/// Reasons for which a subscriber was shed.
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
    /// The relay is draining.
    Draining,
    /// The process may not open another file.
    NoFileDescriptor,
    /// There are as many connections as the limit on open files, or `server.max_subscribers`,
    /// allows.
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

    /// Returns the reason as metric labels spell it.
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

/// Listener on which a request was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefusingListener {
    /// For subscribers and publishers.
    Public,
    /// For operators.
    Admin,
}

impl RefusingListener {
    pub(super) const ALL: [Self; 2] = [Self::Public, Self::Admin];

    /// Returns the listener as metric labels spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Admin => "admin",
        }
    }
}

/// Reasons for which a request was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefusalReason {
    /// A credential is demanded, and the request has none.
    NoCredential,
    /// The credential is not known, or no longer.
    BadCredential,
    /// The credential, the host or the origin is for something else.
    NotAllowed,
}

impl RefusalReason {
    pub(super) const ALL: [Self; 3] = [Self::NoCredential, Self::BadCredential, Self::NotAllowed];

    /// Returns the reason as metric labels spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::BadCredential => "bad_credential",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// Reasons of disconnects.
pub(super) const DISCONNECT_REASONS: [&str; 9] =
    ["client", "stalled", "drain", "expired", "revoked", "removed", "rotated", "kicked", "error"];
