//! What all workers share: the store, the egress guard, the roots of trust.
//!
//! May use: `config`, `outbound`, `store`.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    definition::Definition,
    outbox::{DeliveryPolicy, EventStorage},
    sender::WebhookSender,
};
use crate::{config::WebhookConfig, outbound::egress_guard::EgressGuard, store::StoreHandle};

/// Made once, used by every worker.
#[derive(Debug)]
pub(super) struct WebhookContext {
    /// Where outboxes are kept.
    pub(super) store: Arc<StoreHandle>,
    /// Whether that outlives the process.
    pub(super) is_durable: bool,
    /// Bytes of owed events that one webhook may hold where there is no store for events.
    pub(super) max_memory_bytes: u64,
    /// Where to, and whom to trust: for every sender that is made from now on.
    pub(super) egress: RwLock<EgressPolicy>,
}

/// What the relay's own connections may reach.
#[derive(Clone, Debug)]
pub(super) struct EgressPolicy {
    /// What may be reached.
    pub(super) guard: Arc<EgressGuard>,
    /// Whom to trust.
    pub(super) tls: rustls::ClientConfig,
}

impl WebhookContext {
    /// A sender for this definition.
    pub(super) fn build_sender(&self, definition: &Definition) -> WebhookSender {
        let previous = definition.previous_secret.as_ref().map(|previous| &previous.secret);
        let EgressPolicy { guard, tls } =
            self.egress.read().unwrap_or_else(PoisonError::into_inner).clone();
        WebhookSender::new(&definition.webhook, previous, guard, &tls)
    }

    /// Takes a webhook out of the store, as soon as that can be written, and tells whether it is
    /// out. After `stop` that is tried for a moment only.
    pub(super) async fn unregister(&self, id: &str, stop: &CancellationToken) -> bool {
        let unregistered = async {
            while self.store.unregister(id).await.is_err() {
                time::sleep(UNREGISTER_RETRY_DELAY).await;
            }
        };
        let gave_up = async {
            stop.cancelled().await;
            time::sleep(UNREGISTER_SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            () = unregistered => true,
            () = gave_up => false,
        }
    }

    /// How hard this webhook is tried.
    pub(super) fn policy(&self, webhook: &WebhookConfig) -> DeliveryPolicy {
        let keeping = match self.is_durable {
            true => EventStorage::InStore,
            false => EventStorage::InMemory { max_bytes: self.max_memory_bytes },
        };
        DeliveryPolicy {
            max_retries: webhook.max_retries,
            initial_backoff: webhook.initial_backoff,
            max_backoff: webhook.max_backoff,
            max_in_flight: webhook.max_in_flight,
            event_storage: keeping,
        }
    }
}

/// How long it takes to be removed at the most once the relay leaves. Less than an operator waits
/// for it.
const UNREGISTER_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// While the store cannot be written.
const UNREGISTER_RETRY_DELAY: Duration = Duration::from_secs(1);
