//! Every metric family, declared once with name, help and unit, and the handles that modules hold.
//!
//! ```text
//!  Metrics::new ─► families ── handles of one product or webhook ─► counted without a lookup
//!  GET /metrics ─► render
//! ```
//!
//! Labels come from the configuration or from a fixed list, never from traffic. Names, labels and
//! help are interface: `docs/metrics.md` is compared with them.
//!
//! May use: `event`.

mod family;
mod labels;
mod log;
mod subscribers;
mod upstream;
mod webhooks;

use std::time::SystemTime;

use prometheus::{Encoder, Gauge, IntCounter, IntGauge, Registry, TextEncoder};

use self::{
    family::{FamilyBuilder, metric_name, unix_seconds},
    log::LogFamilies,
    subscribers::SubscriberFamilies,
    upstream::UpstreamFamilies,
    webhooks::WebhookFamilies,
};
pub(crate) use self::{
    labels::{RefusalReason, RefusingListener, ShedReason, Transport},
    log::{LogMetrics, StoreMetrics},
    subscribers::DeliveryMetrics,
    upstream::UpstreamMetrics,
    webhooks::WebhookMetrics,
};
use crate::event::ProductId;

/// All families of one process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    upstreams: UpstreamFamilies,
    logs: LogFamilies,
    store: StoreMetrics,
    subscribers: SubscriberFamilies,
    webhooks: WebhookFamilies,
    reload_success: IntGauge,
    certificate_not_after: Gauge,
}

impl Metrics {
    /// Declares every family.
    ///
    /// # Errors
    ///
    /// When a family is declared twice: a mistake in this module, which any start of the binary
    /// shows.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let families = FamilyBuilder { registry: &registry };
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        families
            .gauge("build_info", "Always 1; the label is the version.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let certificate_not_after = Gauge::new(
            metric_name("certificate_not_after_timestamp_seconds"),
            "When the served certificate expires, in Unix seconds; 0 without one.",
        )?;
        registry.register(Box::new(certificate_not_after.clone()))?;
        Ok(Self {
            upstreams: UpstreamFamilies::declare(&families)?,
            logs: LogFamilies::declare(&families)?,
            store: StoreMetrics::declare(&families)?,
            subscribers: SubscriberFamilies::declare(&families)?,
            webhooks: WebhookFamilies::declare(&families)?,
            reload_success: families.unlabelled_gauge(
                "config_reload_success",
                "1 while the configuration that was read last is in force, 0 while it is rejected.",
            )?,
            certificate_not_after,
            registry: registry.clone(),
        })
    }

    /// Returns all series in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// When a family cannot be written, which its name alone could cause.
    pub(crate) fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Sets whether the configuration that was read last is in force.
    pub(crate) fn record_reload(&self, has_succeeded: bool) {
        self.reload_success.set(has_succeeded.into());
    }

    /// Returns whether the configuration that was read last is in force.
    pub(crate) fn last_reload_succeeded(&self) -> bool {
        self.reload_success.get() == 1
    }

    /// Sets how many subscribers may be connected at one time.
    pub(crate) fn set_max_subscribers(&self, max_subscribers: usize) {
        self.subscribers.set_max(max_subscribers);
    }

    /// Returns the handles of one product's upstream.
    pub(crate) fn upstream(&self, product: &ProductId) -> UpstreamMetrics {
        self.upstreams.handles(product)
    }

    /// Returns the handles of one product's log.
    pub(crate) fn log(&self, product: &ProductId) -> LogMetrics {
        self.logs.handles(product)
    }

    /// Returns the handles of the durable store.
    pub(crate) fn store(&self) -> &StoreMetrics {
        &self.store
    }

    /// Sets when the served certificate expires.
    pub(crate) fn set_certificate_not_after(&self, not_after: SystemTime) {
        self.certificate_not_after.set(unix_seconds(not_after));
    }

    /// Removes the series of an upstream that is no longer configured.
    pub(crate) fn remove_upstream(&self, product: &ProductId) {
        self.upstreams.remove(product.as_str());
    }

    /// Removes the series of a product that is no longer configured.
    pub(crate) fn remove_product(&self, product: &ProductId) {
        self.remove_upstream(product);
        self.logs.remove(product.as_str());
        self.subscribers.remove(product.as_str());
    }

    /// Returns the handles of one webhook.
    pub(crate) fn webhook(&self, id: &str) -> WebhookMetrics {
        self.webhooks.handles(id)
    }

    /// Removes the series of a webhook that no longer exists.
    pub(crate) fn remove_webhook(&self, id: &str) {
        self.webhooks.remove(id);
    }

    /// Returns the handles of one product's subscribers over one transport.
    pub(crate) fn deliveries(&self, product: &ProductId, transport: Transport) -> DeliveryMetrics {
        self.subscribers.handles(product, transport)
    }

    /// Returns the counter of events returned in one product's pages.
    pub(crate) fn paged(&self, product: &ProductId) -> IntCounter {
        self.subscribers.paged(product)
    }

    /// Returns the counter of events published for one product.
    pub(crate) fn published(&self, product: &ProductId) -> IntCounter {
        self.logs.published(product)
    }

    /// Returns the counter of subscribers that were disconnected over one transport for one reason.
    pub(crate) fn disconnects(&self, transport: Transport, reason: &'static str) -> IntCounter {
        self.subscribers.disconnects(transport, reason)
    }

    /// Returns the counter of requests refused on one listener for one reason.
    pub(crate) fn refused(&self, listener: RefusingListener, reason: RefusalReason) -> IntCounter {
        self.subscribers.refused(listener, reason)
    }

    /// Returns the counter of subscribers shed for one reason.
    pub(crate) fn shed(&self, reason: ShedReason) -> IntCounter {
        self.subscribers.shed(reason)
    }
}
