//! The words of webhooks: what is owed to one, how attempts to deliver it went, and what became of
//! it.
//!
//! Plain values, shared by those who keep them, send them, show them and count them. Nothing here
//! waits, locks or logs.
//!
//! May use: `event`.

use bytes::Bytes;

use crate::event::{EventId, Kind, SessionId};

/// One event that one webhook is, or was, to get.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    /// The event's place in its product's log. Names the delivery within its webhook, and orders
    /// it.
    pub(crate) position: u64,
    /// The event's id: `webhook-id`, and what the admin API calls the delivery.
    pub(crate) event_id: EventId,
    /// What the payload's `type` says.
    pub(crate) kind: Kind,
    /// The session it belongs to, if any: deliveries of one session keep their order.
    pub(crate) session: Option<SessionId>,
    /// When it became owed, in Unix milliseconds.
    pub(crate) created_at: u64,
    /// What has been tried so far, oldest first.
    pub(crate) attempts: Vec<Attempt>,
}

/// One try to deliver.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
pub(crate) struct Attempt {
    /// When it began, in Unix milliseconds.
    pub(crate) at: u64,
    /// How long it took.
    pub(crate) duration_ms: u64,
    /// How it went.
    pub(crate) outcome: Outcome,
    /// What the receiver answered, if it did.
    pub(crate) status: Option<u16>,
    /// What went wrong and what to do, without secrets and without the receiver's words.
    pub(crate) error: Option<Box<str>>,
}

/// How an attempt went.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// 2xx.
    Accepted,
    /// 4xx.
    Refused,
    /// 5xx, or any other status.
    Failed,
    /// No complete answer within the webhook's `timeout`.
    Timeout,
    /// No connection, no TLS, or the connection was lost before the answer was complete.
    Connect,
    /// The host's name has no address.
    Dns,
    /// The address is not public and not in `egress.allow_networks`.
    EgressRefused,
}

impl Outcome {
    /// Every outcome, for metrics that show a zero before the first.
    pub(crate) const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Refused,
        Self::Failed,
        Self::Timeout,
        Self::Connect,
        Self::Dns,
        Self::EgressRefused,
    ];

    /// As it stands in metric labels and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Dns => "dns",
            Self::EgressRefused => "egress_refused",
        }
    }
}

/// A delivery that was given up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeadLetter {
    /// What was to be delivered, with all attempts.
    pub(crate) delivery: Delivery,
    /// Why it was given up.
    pub(crate) reason: DeadLetterReason,
    /// When, in Unix milliseconds.
    pub(crate) died_at: u64,
    /// The body, byte for byte.
    pub(crate) payload: Bytes,
}

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeadLetterReason {
    /// The receiver answered with a 4xx that says not to come again.
    Refused,
    /// `1 + max_retries` attempts have failed.
    Exhausted,
    /// The address is not one that webhooks may reach.
    EgressRefused,
    /// It was owed for longer than events are kept.
    Expired,
}

impl DeadLetterReason {
    const ALL: [Self; 4] = [Self::Refused, Self::Exhausted, Self::EgressRefused, Self::Expired];

    /// As it stands in the store and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
            Self::EgressRefused => "egress_refused",
            Self::Expired => "expired",
        }
    }

    /// The reason that is written as `text`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// How a webhook's endpoint stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndpointState {
    /// It gets what comes.
    Active,
    /// It has asked to be left alone for a while.
    Throttled,
    /// It has failed again and again: one delivery at a time tries whether it is back.
    Open,
    /// It said 410, or an operator has said so: nothing is sent until it is enabled.
    Disabled,
}

impl EndpointState {
    /// Every state, for metrics.
    pub(crate) const ALL: [Self; 4] = [Self::Active, Self::Throttled, Self::Open, Self::Disabled];

    /// As it stands in metric labels and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Throttled => "throttled",
            Self::Open => "open",
            Self::Disabled => "disabled",
        }
    }
}
