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

mod egress;
mod outbox;
mod sender;
mod signature;
mod worker;

use std::sync::Arc;

pub(crate) use crate::log::store::Which;
use crate::{
    config::{Secret, Webhook},
    delivery::{Attempt, DeadLetter, Delivery, EndpointState},
    event::{EventId, ProductId, SessionId},
};

/// Every registered webhook.
#[derive(Debug)]
pub(crate) struct Webhooks {}

impl Webhooks {
    /// All of them, by id.
    pub(crate) fn list(&self) -> Vec<View> {
        todo!()
    }

    /// One of them.
    pub(crate) fn get(&self, id: &str) -> Option<View> {
        todo!()
    }

    /// Registers a webhook, which gets events from now on. When it returns, that is on its way to the disk.
    ///
    /// # Errors
    ///
    /// When the id is taken, the product unknown, or the store cannot be written.
    pub(crate) async fn create(&self, webhook: Webhook) -> Result<View, WebhookError> {
        todo!()
    }

    /// Changes a webhook that the API has registered. It keeps its place. A former secret signs beside a new one for a while.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, the product is another, or the store cannot be written.
    pub(crate) async fn change(&self, webhook: Webhook) -> Result<View, WebhookError> {
        todo!()
    }

    /// Ends a webhook that the API has registered, with all that is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, or the store cannot be written.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WebhookError> {
        todo!()
    }

    /// Makes a webhook active, whatever it was.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn enable(&self, id: &str) -> Result<View, WebhookError> {
        todo!()
    }

    /// Holds a webhook back until it is enabled.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn disable(&self, id: &str) -> Result<View, WebhookError> {
        todo!()
    }

    /// Sends a signed sample, whatever the state of the webhook is, and returns how it went.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn test(&self, id: &str) -> Result<Attempt, WebhookError> {
        todo!()
    }

    /// Deliveries of one state, newest first: at most `most` of those before `before`.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be read.
    pub(crate) async fn deliveries(
        &self,
        id: &str,
        state: DeliveryState,
        before: Option<u64>,
        most: usize,
    ) -> Result<Page, WebhookError> {
        todo!()
    }

    /// Puts dead letters back into the queue, and returns how many.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be written.
    pub(crate) async fn redeliver(&self, id: &str, which: Which) -> Result<u64, WebhookError> {
        todo!()
    }

    /// Forgets what is owed to any webhook of a session's events, and what it got of them.
    pub(crate) async fn erase(&self, product: &ProductId, session: &SessionId) {
        todo!()
    }
}

/// A webhook as operators see it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// As it was registered.
    pub(crate) webhook: Arc<Webhook>,
    /// By whom.
    pub(crate) source: Source,
    /// How it stands.
    pub(crate) facts: Facts,
}

/// Who has registered a webhook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The configuration: the API cannot change it.
    File,
    /// The admin API.
    Api,
}

impl Source {
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
pub(crate) struct Facts {
    /// Its endpoint.
    pub(crate) state: EndpointState,
    /// Until when it is throttled, or when it is probed next, in Unix milliseconds.
    pub(crate) until: Option<u64>,
    /// What led to a state other than active.
    pub(crate) problem: Option<String>,
    /// Deliveries that are owed.
    pub(crate) pending: u64,
    /// When the oldest of them became owed, in Unix milliseconds.
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
pub(crate) struct Page {
    /// The deliveries.
    pub(crate) deliveries: Vec<Listed>,
    /// Set if there are more: where they begin.
    pub(crate) next: Option<u64>,
}

/// A delivery in a list.
#[derive(Debug)]
pub(crate) enum Listed {
    /// It is owed, and due at this time, in Unix milliseconds; none while it waits for its turn or is under way.
    Pending(Delivery, Option<u64>),
    /// It was accepted.
    Delivered(Delivery),
    /// It was given up.
    Dead(DeadLetter),
}

/// What an answer, or the lack of one, means for a delivery.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// 2xx: it is delivered.
    Accepted,
    /// Try again, but not before this has passed if the receiver asks for that.
    Again { after: Option<std::time::Duration> },
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
    instant: tokio::time::Instant,
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
    Taken,
    /// The relay has no such product.
    #[error("is none of this relay's products; add it to [[upstreams]]")]
    UnknownProduct,
    /// A webhook stays with its product.
    #[error("cannot be changed; register another webhook")]
    OtherProduct,
    /// The file declares it.
    #[error("the configuration file declares this webhook; change it there")]
    FromFile,
    /// The store cannot be written or read now.
    #[error("the store cannot be used now; try again")]
    Store,
    /// The relay is leaving.
    #[error("the relay is leaving")]
    Leaving,
}
