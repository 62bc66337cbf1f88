//! Reasons for which a subscriber is disconnected.
//!
//! May use: no other module.

/// Reason for which a subscriber is disconnected, stored as `u8` in an atomic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum DisconnectReason {
    /// The relay shuts down.
    Drain = 1,
    /// The connection has reached `server.max_connection_age`.
    Rotated = 2,
    /// Its token expires.
    Expired = 3,
    /// An operator has disconnected it.
    Kicked = 4,
    /// Its key or token is no longer accepted.
    Revoked = 5,
    /// Its product is no longer served.
    Removed = 6,
}

impl DisconnectReason {
    /// Value of the atomic while there is no reason. No variant has it.
    pub(super) const NONE_YET: u8 = 0;
    pub(super) const ALL: [Self; 6] =
        [Self::Drain, Self::Rotated, Self::Expired, Self::Kicked, Self::Revoked, Self::Removed];

    /// Returns true if the subscriber may not stay until it has read everything: a WebSocket is
    /// closed without another event, and a blocked stream is cut off soon. For other reasons the
    /// subscriber first gets what the log has for it.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Self::Expired | Self::Kicked) || self.is_immediate()
    }

    /// Returns true if the subscriber has to be gone within a second, over SSE as well, without
    /// what the log already has for it.
    pub(crate) fn is_immediate(self) -> bool {
        matches!(self, Self::Revoked | Self::Removed)
    }

    /// Returns the value of the metrics label `reason`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Rotated => "rotated",
            Self::Expired => "expired",
            Self::Kicked => "kicked",
            Self::Revoked => "revoked",
            Self::Removed => "removed",
        }
    }
}
