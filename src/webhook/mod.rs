//! The connector's push mode with a durable outbox: every registered webhook has a worker of its
//! own.
//!
//! In: registrations from the configuration and from operators. Out: their definitions and status.
//! Events do not pass through this file.
//!
//! ```text
//! log ─► fanout ─► subscription ─► worker ─► outbox ─► sender ─► receiver
//!                                    └─► store: position, owed deliveries, dead letters
//! ```
//!
//! Workers share the log and the store, and no queue: a webhook with a slow receiver delays no
//! other. docs/design/webhook.md has the invariants.
//!
//! May use: `config`, `event`, `store`, `wall_clock`, `webhook_delivery`.

mod context;
mod definition;
mod list;
mod operate;
mod outbox;
mod reader;
mod reconcile;
mod registry;
mod sample;
mod sender;
mod signature;
mod status;
mod store_sync;
mod worker;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub(crate) use self::registry::{WebhookDependencies, Webhooks};
pub(crate) use crate::store::DeadLetterSelection;
use crate::{
    config::WebhookConfig,
    event::{Kind, Only, Scope},
    wall_clock::{self, WallTime},
    webhook_delivery::{DeadLetter, Delivery, EndpointState},
};

/// One webhook in the form that the admin API shows.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSummary {
    /// The configuration as registered.
    pub(crate) webhook: Arc<WebhookConfig>,
    /// Origin of the registration.
    pub(crate) source: WebhookSource,
    /// Current state and counts.
    pub(crate) status: WebhookStatus,
}

/// Origin of a webhook's registration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WebhookSource {
    /// The configuration file: the API refuses changes.
    File,
    /// The admin API.
    Api,
}

impl WebhookSource {
    /// Returns the value of the field `source` in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

/// State of a webhook's endpoint, and counts of its deliveries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WebhookStatus {
    /// State of the endpoint.
    pub(crate) state: EndpointState,
    /// End of the throttle, or time of the next probe, in Unix milliseconds.
    pub(crate) until: Option<u64>,
    /// Cause of a state other than active.
    pub(crate) problem: Option<String>,
    /// Owed deliveries, requeued dead letters and entries that the reader has not taken yet. An
    /// upper bound: some of these entries may be outside the scope.
    pub(crate) pending: u64,
    /// Arrival time of the oldest owed event in Unix milliseconds, or the time at which the event
    /// was read from the store if its arrival time is unknown.
    pub(crate) oldest_pending: Option<u64>,
    /// Dead letters, without the requeued ones.
    pub(crate) dead: u64,
}

/// State by which the admin API lists deliveries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeliveryState {
    /// Owed, or requeued.
    Pending,
    /// Accepted by the receiver; only the last thousand are listed.
    Delivered,
    /// Given up.
    Dead,
}

/// One page of deliveries of one state, newest first.
#[derive(Debug)]
pub(crate) struct DeliveryPage {
    /// The deliveries of this page.
    pub(crate) deliveries: Vec<ListedDelivery>,
    /// Cursor of the next page, if there is one.
    pub(crate) next_cursor: Option<u64>,
}

/// A delivery in a list.
#[derive(Debug)]
pub(crate) enum ListedDelivery {
    /// Owed, with the due time in Unix milliseconds. Without one, the delivery waits behind another
    /// of its session, or is in flight.
    Pending(Delivery, Option<u64>),
    /// Accepted.
    Delivered(Delivery),
    /// Given up.
    Dead(DeadLetter),
}

/// Consequence of a response, or of its absence, for the delivery.
#[derive(Clone, Debug, PartialEq)]
enum Disposition {
    /// 2xx: delivered.
    Accepted,
    /// Another attempt follows, not earlier than `after` if the receiver asked for that.
    Retry { after: Option<Duration> },
    /// 4xx: the delivery becomes a dead letter without another attempt.
    Refused,
    /// 410: as refused, and the endpoint is disabled.
    Gone,
    /// The egress guard refuses the address: the delivery becomes a dead letter.
    Forbidden,
}

/// One moment on both clocks, read together so that times on one can be converted to the other.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// Monotonic: for waiting.
    instant: Instant,
    /// Wall clock in Unix milliseconds: for what is stored and shown.
    unix_ms: u64,
    /// The same, or the earlier of two times while the wall clock is in doubt: for what has an end.
    earliest_ms: u64,
}

/// Reasons for which an operator's command was refused or not completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    /// No webhook has this id.
    #[error("no such webhook")]
    Unknown,
    /// The id is taken.
    #[error("there is a webhook of this id already")]
    AlreadyExists,
    /// [`MAX_WEBHOOKS`] are registered.
    #[error("there are {} webhooks already; remove one", MAX_WEBHOOKS)]
    TooMany,
    /// The webhooks together name [`MAX_WEBHOOK_VISITORS`].
    #[error(
        "all webhooks together may name {} sessions and users; name fewer",
        MAX_WEBHOOK_VISITORS
    )]
    TooManyVisitors,
    /// The relay has no such product.
    #[error("is none of this relay's products; add it to [[upstreams]] or [[products]]")]
    UnknownProduct,
    /// A webhook keeps its product: its positions count that product's log.
    #[error("cannot be changed; register another webhook")]
    ProductChanged,
    /// The configuration file declares the webhook, so a change through the API would be undone by
    /// the next reload.
    #[error("the configuration file declares this webhook; change it there")]
    DeclaredInFile,
    /// The store cannot be written or read at present.
    #[error("the store cannot be used now; try again")]
    StoreUnavailable,
    /// The relay is shutting down.
    #[error("the relay is shutting down")]
    ShuttingDown,
}

impl WebhookConfig {
    /// Returns the filter for the events of the product that this webhook receives.
    pub(crate) fn scope(&self) -> Scope {
        let kinds = match &self.types {
            Only::Everything => Only::Everything,
            Only::These(types) => Only::These(types.iter().map(|text| Kind::new(text)).collect()),
        };
        Scope { sessions: self.session_ids.clone(), users: self.user_ids.clone(), kinds }
    }
}

impl Now {
    fn read() -> Self {
        let WallTime { unix_ms, earliest_ms, .. } = wall_clock::now();
        Self { instant: Instant::now(), unix_ms, earliest_ms }
    }

    /// Returns this moment for the end of a wait that is stored: while the clock is in doubt, the
    /// earlier of the two times, because a wrong clock must not delay a delivery by days.
    fn for_stored_waits(self) -> Self {
        Self { unix_ms: self.earliest_ms, ..self }
    }

    /// Converts an earlier `instant` to Unix milliseconds; a later one gives this moment.
    fn unix_ms_before(self, instant: Instant) -> u64 {
        let ago = self.instant.saturating_duration_since(instant);
        self.unix_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
    }

    /// Converts a later `instant` to Unix milliseconds; an earlier one gives this moment.
    fn unix_ms_at(self, instant: Instant) -> u64 {
        let ahead = instant.saturating_duration_since(self.instant);
        self.unix_ms.saturating_add(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Registered webhooks at most: each has a worker task and up to `max_in_flight` connections.
const MAX_WEBHOOKS: usize = 1000;

/// Sessions and users that all webhooks may name together: a thousand webhooks of a thousand
/// sessions each would take a gigabyte.
const MAX_WEBHOOK_VISITORS: usize = 65_536;
