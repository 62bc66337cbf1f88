//! Vocabulary of webhooks: deliveries, attempts, dead letters and the state of an endpoint.
//!
//! Plain values, shared by `webhook`, `store`, `http` and `metrics`. Nothing here waits, locks or
//! logs.
//!
//! May use: `event`.

use bytes::Bytes;

use crate::event::{EventId, Kind, SessionId};

/// One event that one webhook is owed or was owed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    /// Position of the event in its product's log. Identifies the delivery within its webhook, and
    /// orders it.
    pub(crate) position: u64,
    /// Id of the event: the `webhook-id` header of Standard Webhooks, and the delivery's name in
    /// the admin API.
    pub(crate) event_id: EventId,
    /// The payload's `type`.
    pub(crate) kind: Kind,
    /// Session of the event, if any: deliveries of one session keep their order.
    pub(crate) session: Option<SessionId>,
    /// Time at which the delivery became owed, in Unix milliseconds.
    pub(crate) created_at: u64,
    /// Attempts so far, oldest first.
    pub(crate) attempts: Vec<Attempt>,
}

/// One attempt to deliver.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
pub(crate) struct Attempt {
    /// Start of the attempt, in Unix milliseconds.
    pub(crate) at: u64,
    /// Duration of the attempt.
    pub(crate) duration_ms: u64,
    /// Outcome of the attempt.
    pub(crate) outcome: Outcome,
    /// Status that the receiver answered with, if it did.
    pub(crate) status: Option<u16>,
    /// The fault and its remedy, without secrets and without text of the receiver.
    pub(crate) error: Option<Box<str>>,
}

/// Outcome of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// 2xx.
    Accepted,
    /// 4xx.
    Refused,
    /// 5xx, or any other status.
    Failed,
    /// No complete head of an answer within the webhook's `timeout`.
    Timeout,
    /// No connection, no TLS, or the connection was lost before the answer was complete.
    Connect,
    /// The host name has no address.
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

    /// Returns the outcome as metric labels and the admin API spell it.
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
    /// The delivery, with all attempts.
    pub(crate) delivery: Delivery,
    /// Reason for which the delivery was given up.
    pub(crate) reason: DeadLetterReason,
    /// Time at which the delivery was given up, in Unix milliseconds.
    pub(crate) died_at: u64,
    /// Body of the request, byte for byte.
    pub(crate) payload: Bytes,
}

/// Reason for which a delivery was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeadLetterReason {
    /// The receiver answered with a 4xx after which no retry is due.
    Refused,
    /// `1 + max_retries` attempts have failed.
    Exhausted,
    /// The address is not one that webhooks may reach.
    EgressRefused,
    /// The delivery was owed for longer than events are kept.
    Expired,
    /// The store's row of the event does not fit its checksum: there is no body to send.
    Damaged,
}

impl DeadLetterReason {
    const ALL: [Self; 5] =
        [Self::Refused, Self::Exhausted, Self::EgressRefused, Self::Expired, Self::Damaged];

    /// Returns the reason as the store and the admin API spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
            Self::EgressRefused => "egress_refused",
            Self::Expired => "expired",
            Self::Damaged => "damaged",
        }
    }

    /// Returns the reason that `text` spells.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// State of a webhook's endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndpointState {
    /// Deliveries are sent as they come.
    Active,
    /// The receiver has asked for a pause with `Retry-After`.
    Throttled,
    /// The circuit breaker is open after repeated failures: one delivery at a time probes the
    /// receiver.
    Open,
    /// The receiver answered 410, or an operator disabled the webhook: nothing is sent until it is
    /// enabled.
    Disabled,
}

impl EndpointState {
    /// Every state, for metrics.
    pub(crate) const ALL: [Self; 4] = [Self::Active, Self::Throttled, Self::Open, Self::Disabled];

    /// Returns the state as metric labels and the admin API spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Throttled => "throttled",
            Self::Open => "open",
            Self::Disabled => "disabled",
        }
    }
}
