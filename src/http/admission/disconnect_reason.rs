//! Reasons for which a subscriber is disconnected.
//!
//! May use: nothing.

/// Why a subscriber is told to leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum DisconnectReason {
    /// The relay is leaving.
    Drain = 1,
    /// It has been connected for `server.max_connection_age`.
    Rotated = 2,
    /// Its token expires.
    Expired = 3,
    /// An operator has ended it.
    Kicked = 4,
    /// Its key counts no more.
    Revoked = 5,
    /// Its product is served no more.
    Removed = 6,
}

impl DisconnectReason {
    pub(super) const NONE_YET: u8 = 0;
    pub(super) const ALL: [Self; 6] =
        [Self::Drain, Self::Rotated, Self::Expired, Self::Kicked, Self::Revoked, Self::Removed];

    /// Whether it must not get another event. Who is only to go elsewhere gets what there is first.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Self::Expired | Self::Kicked) || self.is_immediate()
    }

    /// Whether it has to be gone within a second: not even what is in the log already is for it.
    pub(crate) fn is_immediate(self) -> bool {
        matches!(self, Self::Revoked | Self::Removed)
    }

    /// As it stands in metric labels.
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
