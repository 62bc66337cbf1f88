//! Applies another configuration to the registered webhooks.
//!
//! In: the webhooks that the file declares now, products that are added or removed, the egress
//! policy. Out: workers that follow them. Each step may be repeated with the same input: it then
//! does what could not be done before, and nothing else.
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
    /// Has the webhooks of the file be those that it declares now. One that is declared no more
    /// goes with what it is owed and its dead letters, as by `DELETE`; one that is changed keeps
    /// its place; the file wins over the API for the same id.
    pub(crate) async fn reconcile(&self, declared: &[WebhookConfig]) {
        let _guard = self.changes.lock().await;
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
                    if time::timeout_at(deadline, self.begin_removal(&handle)).await.is_err() {
                        error!(
                            webhook = id,
                            "the webhook's former self cannot be taken out of the store: reload again"
                        );
                        declared.remove(id.as_str());
                    }
                }
                None if definition.source == WebhookSource::File && !is_going => {
                    let pending = handle.shared.status().pending;
                    warn!(
                        webhook = id,
                        pending, "the webhook is declared no more: what it was owed is forgotten"
                    );
                    drop(self.begin_removal(&handle)); // carried out though nobody waits
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

    /// Begins to serve one more product, and its webhooks that the store has kept.
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

    /// Serves a product no longer. With a store that outlives the process, its webhooks finish what
    /// is under way, and wait there for the product to come back; without one, there is nothing to
    /// wait for.
    pub(crate) async fn suspend_product(&self, product: &ProductId) {
        let _guard = self.changes.lock().await;
        self.remove_product(product);
        let affected = self.handles().into_iter();
        let affected =
            affected.filter(|(_, it)| it.shared.definition().webhook.product_id == *product);
        let affected: Vec<_> = affected.collect();
        for (id, handle) in &affected {
            warn!(webhook = id, %product, "the webhook's product is configured no more: it gets nothing");
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
        // Longer than a worker takes to leave.
        if time::timeout(SUSPEND_TIMEOUT, all_ended).await.is_err() {
            error!(%product, "the product's webhooks have not ended in time");
        }
    }

    /// From now on, webhooks may reach these networks, and trust these roots.
    pub(crate) async fn set_egress(&self, allow_networks: &[Network], tls: rustls::ClientConfig) {
        self.replace_egress_policy(EgressPolicy {
            guard: Arc::new(EgressGuard::new(allow_networks)),
            tls,
        });
        let deadline = Instant::now() + CONFIG_RELOAD_TIMEOUT;
        for (id, _) in self.handles() {
            // One that has gone meanwhile needs nothing.
            let _ =
                time::timeout_at(deadline, self.send_command(&id, WebhookCommand::ReplaceSender))
                    .await;
        }
    }

    /// The order is given in any case; its outcome is waited for until `deadline`.
    async fn redefine(&self, id: &str, definition: Definition, deadline: Instant) {
        let command =
            self.send_command(id, |reply| WebhookCommand::Redefine(Box::new(definition), reply));
        match time::timeout_at(deadline, command).await {
            Ok(Ok(Ok(()))) => info!(webhook = id, "the webhook is changed by the file"),
            // It is the same in the file at the next start.
            _ => warn!(
                webhook = id,
                "the webhook is changed by the file, but the store could not be told yet"
            ),
        }
    }
}

/// How long all of them together may keep a reload waiting for the store.
const CONFIG_RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts under way may take ten seconds, and two more to be written down.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(15);
