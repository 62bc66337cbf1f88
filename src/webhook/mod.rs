//! The connector's push mode, durable: every registered webhook, each with a worker of its own.
//!
//! In: what the configuration and operators register. Out: what is known of each. Nothing here touches the events.
//!
//! ```text
//! log ─► fanout ─► subscription ─► worker ─► outbox ─► sender ─► receiver        one worker per webhook, nothing shared
//!                                    └─► store: position and exceptions
//! ```
//!
//! May use: `config`, `delivery`, `event`, `fanout`, `log`, `metrics`.

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

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

pub(crate) use self::registry::{WebhookDependencies, Webhooks};
pub(crate) use crate::store::DeadLetterSelection;
use crate::{
    config::WebhookConfig,
    event::{Kind, Only, Scope},
    webhook_delivery::{DeadLetter, Delivery, EndpointState},
};

/// A webhook as operators see it.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSummary {
    /// As it was registered.
    pub(crate) webhook: Arc<WebhookConfig>,
    /// By whom.
    pub(crate) source: WebhookSource,
    /// How it stands.
    pub(crate) status: WebhookStatus,
}

/// Who has registered a webhook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WebhookSource {
    /// The configuration: the API cannot change it.
    File,
    /// The admin API.
    Api,
}

impl WebhookSource {
    /// As it stands in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

/// How a webhook stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WebhookStatus {
    /// Its endpoint.
    pub(crate) state: EndpointState,
    /// Until when it is throttled, or when it is probed next, in Unix milliseconds.
    pub(crate) until: Option<u64>,
    /// What led to a state other than active.
    pub(crate) problem: Option<String>,
    /// Deliveries that are owed.
    pub(crate) pending: u64,
    /// When the event of the oldest of them came, or was read from the store if nobody knows that, in Unix milliseconds.
    pub(crate) oldest_pending: Option<u64>,
    /// Dead letters.
    pub(crate) dead: u64,
}

/// What has become of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeliveryState {
    /// It is owed.
    Pending,
    /// It was accepted: one of the last.
    Delivered,
    /// It was given up.
    Dead,
}

/// Some deliveries of one state, newest first.
#[derive(Debug)]
pub(crate) struct DeliveryPage {
    /// The deliveries.
    pub(crate) deliveries: Vec<ListedDelivery>,
    /// Set if there are more: where they begin.
    pub(crate) next_cursor: Option<u64>,
}

/// A delivery in a list.
#[derive(Debug)]
pub(crate) enum ListedDelivery {
    /// It is owed, and due at this time, in Unix milliseconds; none while it waits for its turn or is under way.
    Pending(Delivery, Option<u64>),
    /// It was accepted.
    Delivered(Delivery),
    /// It was given up.
    Dead(DeadLetter),
}

/// What an answer, or the lack of one, means for a delivery.
#[derive(Clone, Debug, PartialEq)]
enum Disposition {
    /// 2xx: it is delivered.
    Accepted,
    /// Try again, but not before this has passed if the receiver asks for that.
    Retry { after: Option<Duration> },
    /// 4xx: never again.
    Refused,
    /// 410: never again, and nothing else either.
    Gone,
    /// The address is not one that webhooks may reach: never again.
    Forbidden,
}

/// One moment, on both clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// To wait by.
    instant: Instant,
    /// To write down, in Unix milliseconds.
    unix_ms: u64,
}

/// Why an operator's order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    /// There is no such webhook.
    #[error("no such webhook")]
    Unknown,
    /// There is one of this id already.
    #[error("there is a webhook of this id already")]
    AlreadyExists,
    /// There are as many as there may be.
    #[error("there are {} webhooks already; remove one", MAX_WEBHOOKS)]
    TooMany,
    /// The relay has no such product.
    #[error("is none of this relay's products; add it to [[upstreams]]")]
    UnknownProduct,
    /// A webhook stays with its product.
    #[error("cannot be changed; register another webhook")]
    ProductChanged,
    /// The file declares it.
    #[error("the configuration file declares this webhook; change it there")]
    DeclaredInFile,
    /// The store cannot be written or read now.
    #[error("the store cannot be used now; try again")]
    StoreUnavailable,
    /// The relay is leaving.
    #[error("the relay is leaving")]
    ShuttingDown,
}

impl WebhookConfig {
    /// Which of its product's events it gets.
    pub(crate) fn scope(&self) -> Scope {
        let kinds = match &self.types {
            Only::Everything => Only::Everything,
            Only::These(types) => Only::These(types.iter().map(|text| Kind::new(text)).collect()),
        };
        Scope { sessions: self.session_ids.clone(), kinds }
    }
}

impl Now {
    fn read() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { instant: Instant::now(), unix_ms }
    }

    /// The other clock's time at `instant`, which has passed.
    fn unix_ms_before(self, instant: Instant) -> u64 {
        let ago = self.instant.saturating_duration_since(instant);
        self.unix_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
    }

    /// The other clock's time at `instant`.
    fn unix_ms_at(self, instant: Instant) -> u64 {
        let ahead = instant.saturating_duration_since(self.instant);
        self.unix_ms.saturating_add(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Each has a worker and connections of its own.
const MAX_WEBHOOKS: usize = 1000;
