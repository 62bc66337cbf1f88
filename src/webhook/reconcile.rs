//! Reconciliation of the registered webhooks with a reloaded configuration.
//!
//! In: the webhooks that the file declares now, products that come and go, a new egress policy.
//! Out: workers that are started, changed, suspended or removed.
//!
//! Each function may be called again with the same arguments: it then completes what failed before,
//! and changes nothing else.
//!
//! May use: `config`, `event`, `fanout`, `outbound`, `store`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{self, Instant};
use tracing::{error, info, warn};

use super::{
    WebhookSource, Webhooks, context::EgressPolicy, definition::Definition, worker::WebhookCommand,
};
use crate::{
    config::{Network, WebhookConfig},
    event::ProductId,
    fanout::Fanout,
    outbound::egress_guard::EgressGuard,
    store::StoredWebhook,
};

impl Webhooks {
    /// Makes the webhooks of the file those that it declares now.
    ///
    /// A webhook that is no longer declared is removed with its owed deliveries and dead letters,
    /// as by `DELETE`; a changed one keeps its position; for the same id, the file wins over the
    /// API.
    pub(crate) async fn reconcile(&self, declared: &[WebhookConfig]) {
        let _guard = self.changes.lock().await;
        // One deadline for all: a reload must not take 5 s per webhook while the store is degraded.
        let deadline = Instant::now() + CONFIG_RELOAD_TIMEOUT;
        let mut declared: BTreeMap<&str, &WebhookConfig> =
            declared.iter().map(|it| (it.id.as_str(), it)).collect();
        for (id, handle) in self.handles() {
            let definition = handle.shared.definition();
            let is_going = handle.removed.is_cancelled();
            match declared.get(id.as_str()) {
                Some(webhook)
                    if !is_going && definition.webhook.product_id == webhook.product_id =>
                {
                    let webhook = declared.remove(id.as_str()).filter(|webhook| {
                        definition.source != WebhookSource::File || **webhook != *definition.webhook
                    });
                    if let Some(webhook) = webhook {
                        self.redefine(
                            &id,
                            definition.replaced_by(webhook.clone(), WebhookSource::File),
                            deadline,
                        )
                        .await;
                    }
                }
                Some(_) => {
                    if !is_going {
                        warn!(
                            webhook = id,
                            "the webhook has another product now: it begins anew there"
                        );
                    }
                    // The new registration has the same id, so the old one must be out of the store
                    // first: the late removal would take the new one with it.
                    if time::timeout_at(deadline, self.begin_removal(&handle)).await.is_err() {
                        error!(
                            webhook = id,
                            "the webhook's former registration cannot be removed from the store: \
                             reload again"
                        );
                        declared.remove(id.as_str());
                    }
                }
                None if definition.source == WebhookSource::File && !is_going => {
                    let pending = handle.shared.status().pending;
                    warn!(
                        webhook = id,
                        pending, "the webhook is no longer declared: what it was owed is deleted"
                    );
                    drop(self.begin_removal(&handle)); // runs on the worker's task
                }
                None => {}
            }
        }
        for webhook in declared.into_values() {
            info!(webhook = webhook.id, "the webhook is registered by the file");
            self.spawn_worker(
                Definition::new(webhook.clone(), WebhookSource::File),
                None,
                Vec::new(),
                None,
            );
        }
    }

    /// Adds a product, and starts those of its webhooks that the store has kept.
    pub(crate) async fn resume_product(
        &self,
        fanout: Arc<Fanout>,
        declared: &[WebhookConfig],
        kept: Vec<StoredWebhook>,
    ) {
        let _guard = self.changes.lock().await;
        self.add_product(fanout);
        let kept: Vec<_> = kept.into_iter().filter(|kept| self.get(&kept.id).is_none()).collect();
        let ids: Vec<&str> = kept.iter().map(|kept| kept.id.as_str()).collect();
        let declared: Vec<WebhookConfig> =
            declared.iter().filter(|it| ids.contains(&it.id.as_str())).cloned().collect();
        self.restore(&declared, kept);
    }

    /// Removes a product. With a durable store, its webhooks finish their attempts and stay in the
    /// store until the product comes back; without one, they are removed.
    pub(crate) async fn suspend_product(&self, product: &ProductId) {
        let _guard = self.changes.lock().await;
        self.remove_product(product);
        let affected = self.handles().into_iter();
        let affected =
            affected.filter(|(_, it)| it.shared.definition().webhook.product_id == *product);
        let affected: Vec<_> = affected.collect();
        for (id, handle) in &affected {
            warn!(
                webhook = id, %product,
                "the webhook's product is no longer configured: the webhook receives nothing"
            );
            match self.is_durable() {
                true => handle.suspended.cancel(),
                false => handle.removed.cancel(),
            }
        }
        let all_ended = async {
            for (_, handle) in &affected {
                handle.ended.cancelled().await;
            }
        };
        // Workers end by themselves well within this: the bound keeps a bug from blocking reloads.
        if time::timeout(SUSPEND_TIMEOUT, all_ended).await.is_err() {
            error!(%product, "the product's webhooks have not ended in time");
        }
    }

    /// Replaces the egress policy, and every sender built under the former one.
    pub(crate) async fn set_egress(&self, allow_networks: &[Network], tls: rustls::ClientConfig) {
        self.replace_egress_policy(EgressPolicy {
            guard: Arc::new(EgressGuard::new(allow_networks)),
            tls,
        });
        let deadline = Instant::now() + CONFIG_RELOAD_TIMEOUT;
        for (id, _) in self.handles() {
            // An error means that the worker has ended, and with it the sender.
            let _ =
                time::timeout_at(deadline, self.send_command(&id, WebhookCommand::ReplaceSender))
                    .await;
        }
    }

    /// Sends the change in any case, and waits for its outcome until `deadline`.
    async fn redefine(&self, id: &str, definition: Definition, deadline: Instant) {
        let command =
            self.send_command(id, |reply| WebhookCommand::Redefine(Box::new(definition), reply));
        match time::timeout_at(deadline, command).await {
            Ok(Ok(Ok(()))) => info!(webhook = id, "the webhook is changed by the file"),
            // The worker has the change; if the store never gets it, the next start reads the file.
            _ => warn!(
                webhook = id,
                "the webhook is changed by the file, but the change is not in the store yet"
            ),
        }
    }
}

/// Time that all webhooks together may keep a reload waiting for the store.
const CONFIG_RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bound on the end of suspended workers: attempts have 10 s and the last flush 2 s.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(15);
