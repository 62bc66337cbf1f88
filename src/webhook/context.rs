//! Context that all workers share: the store, the egress policy, the memory bound.
//!
//! May use: `config`, `outbound`, `store`.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    WebhookSource,
    definition::Definition,
    outbox::{DeliveryPolicy, EventStorage},
    sender::WebhookSender,
};
use crate::{
    config::WebhookConfig,
    outbound::egress_guard::{EgressConnections, EgressGuard},
    store::StoreHandle,
};

/// Settings and handles for every worker, created once.
#[derive(Debug)]
pub(super) struct WebhookContext {
    /// Store of the outboxes.
    pub(super) store: Arc<StoreHandle>,
    /// Whether the store outlives the process.
    pub(super) is_durable: bool,
    /// Bytes of owed events that one webhook may keep in memory if the store is not durable.
    pub(super) max_memory_bytes: u64,
    /// Policy for every sender built from now on. A blocking lock: it is held only to clone or
    /// replace two references, never across an await.
    pub(super) egress: RwLock<EgressPolicy>,
    /// Bound on the connections of the admin API's webhooks, under every egress policy. Those of
    /// the file are planned for at the start.
    pub(super) connections: EgressConnections,
}

/// Addresses that webhooks may reach, and roots that they trust.
#[derive(Clone, Debug)]
pub(super) struct EgressPolicy {
    /// Check of each resolved address.
    pub(super) guard: Arc<EgressGuard>,
    /// TLS settings without ALPN, with the trusted roots.
    pub(super) tls: rustls::ClientConfig,
}

impl WebhookContext {
    /// Builds a sender for a definition under the current egress policy.
    ///
    /// A sender keeps the policy it was built with: after a policy change every worker needs a new
    /// one.
    pub(super) fn build_sender(&self, definition: &Definition) -> WebhookSender {
        let previous = definition.previous_secret.as_ref().map(|previous| &previous.secret);
        let EgressPolicy { guard, tls } = self.egress.read().clone();
        let connections = match definition.source {
            WebhookSource::File => None,
            WebhookSource::Api => Some(&self.connections),
        };
        WebhookSender::new(&definition.webhook, previous, guard, connections, &tls)
    }

    /// Removes a webhook from the store, retrying until the store can be written, and returns
    /// whether the webhook is out.
    ///
    /// After `stop` the attempts end within [`UNREGISTER_SHUTDOWN_TIMEOUT`].
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

    /// Returns the delivery policy of a webhook.
    pub(super) fn policy(&self, webhook: &WebhookConfig) -> DeliveryPolicy {
        let event_storage = match self.is_durable {
            true => EventStorage::InStore,
            false => EventStorage::InMemory { max_bytes: self.max_memory_bytes },
        };
        DeliveryPolicy {
            max_retries: webhook.max_retries,
            initial_backoff: webhook.initial_backoff,
            max_backoff: webhook.max_backoff,
            max_in_flight: webhook.max_in_flight,
            event_storage,
        }
    }
}

/// Time that a removal still has once the relay shuts down: as long as the last journal, and less
/// than an operator waits for the removal.
const UNREGISTER_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between attempts while the store cannot be written.
const UNREGISTER_RETRY_DELAY: Duration = Duration::from_secs(1);
