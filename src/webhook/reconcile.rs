//! What another configuration means for the webhooks that there are.
//!
//! In: what the file declares now, products that come and go, what may be reached. Out: workers that do as it says. Each of these
//! may be called again with the same: it then does what could not be done before, and nothing else.
//!
//! May use: `config`, `event`, `fanout`, `log`, the webhooks' own rooms.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{self, Instant};
use tracing::{error, info, warn};

use super::{Source, Webhooks, context::WayOut, definition::Definition, worker::Order};
use crate::{
    config::{Network, Webhook},
    event::ProductId,
    fanout::Fanout,
    outbound::egress_guard::Guard,
    store::KeptWebhook,
};

impl Webhooks {
    /// Has the webhooks of the file be those that it declares now. One that is declared no more goes with what it is owed and its
    /// dead letters, as by `DELETE`; one that is changed keeps its place; the file wins over the API for the same id.
    pub(crate) async fn declare(&self, declared: &[Webhook]) {
        let _alone = self.registry.lock().await;
        let deadline = Instant::now() + PATIENCE;
        let mut declared: BTreeMap<&str, &Webhook> = declared.iter().map(|it| (it.id.as_str(), it)).collect();
        for (id, registered) in self.all() {
            let definition = registered.board.definition();
            let is_going = registered.removed.is_cancelled();
            match declared.get(id.as_str()) {
                Some(webhook) if !is_going && definition.webhook.product_id == webhook.product_id => {
                    let webhook = declared
                        .remove(id.as_str())
                        .filter(|webhook| definition.source != Source::File || **webhook != *definition.webhook);
                    if let Some(webhook) = webhook {
                        self.redefine(&id, definition.followed_by(webhook.clone(), Source::File), deadline).await;
                    }
                }
                Some(_) => {
                    if !is_going {
                        warn!(webhook = id, "the webhook has another product now: it begins anew there");
                    }
                    if time::timeout_at(deadline, self.end(&registered)).await.is_err() {
                        error!(
                            webhook = id,
                            "the webhook's former self cannot be taken out of the store: reload again"
                        );
                        declared.remove(id.as_str());
                    }
                }
                None if definition.source == Source::File && !is_going => {
                    let pending = registered.board.facts().pending;
                    warn!(webhook = id, pending, "the webhook is declared no more: what it was owed is forgotten");
                    drop(self.end(&registered)); // carried out though nobody waits
                }
                None => {}
            }
        }
        for webhook in declared.into_values() {
            info!(webhook = webhook.id, "the webhook is registered by the file");
            self.spawn(Definition::new(webhook.clone(), Source::File), None, Vec::new(), None);
        }
    }

    /// Begins to serve one more product, and its webhooks that the store has kept.
    pub(crate) async fn adopt(&self, fanout: Arc<Fanout>, declared: &[Webhook], kept: Vec<KeptWebhook>) {
        let _alone = self.registry.lock().await;
        self.serve(fanout);
        let kept: Vec<_> = kept.into_iter().filter(|kept| self.get(&kept.id).is_none()).collect();
        let ids: Vec<&str> = kept.iter().map(|kept| kept.id.as_str()).collect();
        let declared: Vec<Webhook> = declared.iter().filter(|it| ids.contains(&it.id.as_str())).cloned().collect();
        self.resume(&declared, kept);
    }

    /// Serves a product no longer. With a store that outlives the process, its webhooks finish what is under way, and wait there for
    /// the product to come back; without one, there is nothing to wait for.
    pub(crate) async fn lay_aside(&self, product: &ProductId) {
        let _alone = self.registry.lock().await;
        self.serve_no_more(product);
        let concerned = self.all().into_iter();
        let concerned = concerned.filter(|(_, it)| it.board.definition().webhook.product_id == *product);
        let concerned: Vec<_> = concerned.collect();
        for (id, registered) in &concerned {
            warn!(webhook = id, %product, "the webhook's product is configured no more: it gets nothing");
            match self.is_durable() {
                true => registered.laid_aside.cancel(),
                false => registered.removed.cancel(),
            }
        }
        let all_gone = async {
            for (_, registered) in &concerned {
                registered.gone.cancelled().await;
            }
        };
        // Longer than a worker takes to leave.
        if time::timeout(LEAVING, all_gone).await.is_err() {
            error!(%product, "the product's webhooks have not ended in time");
        }
    }

    /// From now on, webhooks may reach these networks, and trust these roots.
    pub(crate) async fn equip(&self, allow_networks: &[Network], tls: rustls::ClientConfig) {
        self.set_way_out(WayOut { guard: Arc::new(Guard::new(allow_networks)), tls });
        let deadline = Instant::now() + PATIENCE;
        for (id, _) in self.all() {
            // One that has gone meanwhile needs nothing.
            let _ = time::timeout_at(deadline, self.order(&id, Order::Equip)).await;
        }
    }

    /// The order is given in any case; its outcome is waited for until `deadline`.
    async fn redefine(&self, id: &str, definition: Definition, deadline: Instant) {
        let order = self.order(id, |answer| Order::Redefine(Box::new(definition), answer));
        match time::timeout_at(deadline, order).await {
            Ok(Ok(Ok(()))) => info!(webhook = id, "the webhook is changed by the file"),
            // It is the same in the file at the next start.
            _ => warn!(webhook = id, "the webhook is changed by the file, but the store could not be told yet"),
        }
    }
}

/// How long all of them together may keep a reload waiting for the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Attempts under way may take ten seconds, and two more to be written down.
const LEAVING: Duration = Duration::from_secs(15);
