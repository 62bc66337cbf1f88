//! Every metric family, declared once with name, help and unit, and the handles that rooms hold.
//!
//! Labels come from the configuration or from a fixed list, never from traffic. Names are
//! interface.
//!
//! May use: `envelope`, `event`.

mod removal;
mod webhooks;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub(crate) use self::webhooks::WebhookMetrics;
use crate::{
    envelope::Rejection,
    event::{GapReason, Kind, ProductId},
};

/// All families of one process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    upstream_connected: IntGaugeVec,
    upstream_connects: IntCounterVec,
    upstream_last_event: GaugeVec,
    upstream_last_heartbeat: GaugeVec,
    upstream_events: IntCounterVec,
    upstream_rejected: IntCounterVec,
    upstream_lag: HistogramVec,
    published: IntCounterVec,
    subscribers: IntGaugeVec,
    disconnects: IntCounterVec,
    delivered: IntCounterVec,
    delivery_lag: HistogramVec,
    gaps: IntCounterVec,
    log_events: IntGaugeVec,
    log_bytes: IntGaugeVec,
    shed: IntCounterVec,
    max_subscribers: IntGauge,
    store: StoreMetrics,
    reload_success: IntGauge,
    certificate_not_after: Gauge,
    webhooks: webhooks::WebhookFamilies,
}

impl Metrics {
    /// Declares every family.
    ///
    /// # Errors
    ///
    /// When a family is declared twice: a mistake in this file, which any start of the binary
    /// shows.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let families = FamilyBuilder { registry: &registry };
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        families
            .gauge("build_info", "Always 1; the label tells the version.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let degraded = families.unlabelled_gauge(
            "log_degraded",
            "1 while the log keeps less than it promises, else 0.",
        )?;
        let store_bytes = families.unlabelled_gauge(
            "log_store_bytes",
            "Bytes of the store's file that are in use, dead letters aside; 0 without log.data_dir.",
        )?;
        let retention_bytes = families.unlabelled_gauge(
            "log_retention_bytes",
            "log.retention_bytes, which they may be; 0 without log.data_dir.",
        )?;
        let reload_success = families.unlabelled_gauge(
            "config_reload_success",
            "1 while the configuration that was read last is in force, 0 while it is refused.",
        )?;
        let max_subscribers = families.unlabelled_gauge(
            "max_subscribers",
            "server.max_subscribers: how many may be connected at one time.",
        )?;
        let commit_options = HistogramOpts::new(
            metric_name("log_commit_seconds"),
            "Time a commit of the durable log takes, in seconds.",
        );
        let commit_seconds = Histogram::with_opts(commit_options.buckets(COMMIT_BUCKETS.to_vec()))?;
        registry.register(Box::new(commit_seconds.clone()))?;
        let certificate_not_after = Gauge::new(
            metric_name("certificate_not_after_timestamp_seconds"),
            "When the certificate that is served ends, in Unix seconds; 0 without one.",
        )?;
        registry.register(Box::new(certificate_not_after.clone()))?;
        let metrics = Self {
            certificate_not_after,
            upstream_connected: families.gauge(
                "upstream_connected",
                "1 while the stream of the product's connector stands, else 0.",
                &["product_id"],
            )?,
            upstream_connects: families.counter(
                "upstream_connects_total",
                "Attempts to connect to the product's connector, by outcome.",
                &["product_id", "outcome"],
            )?,
            upstream_last_event: families.timestamp(
                "upstream_last_event_timestamp_seconds",
                "When the last event came from the connector, in Unix seconds; 0 before the first.",
                "product_id",
            )?,
            upstream_last_heartbeat: families.timestamp(
                "upstream_last_heartbeat_timestamp_seconds",
                "When the last heartbeat came from the connector, in Unix seconds; 0 before the first.",
                "product_id",
            )?,
            upstream_events: families.counter(
                "upstream_events_total",
                "Events received from the connector, by type.",
                &["product_id", "type"],
            )?,
            upstream_rejected: families.counter(
                "upstream_rejected_total",
                "Frames of the connector that could not be understood, by reason.",
                &["product_id", "reason"],
            )?,
            upstream_lag: families.histogram(
                "upstream_lag_seconds",
                "From the connector's forwarded_at until the event was received here, in seconds.",
                &["product_id"],
                UPSTREAM_LAG_BUCKETS,
            )?,
            published: families.counter(
                "published_events_total",
                "Events that publishers have added to the product's log.",
                &["product_id"],
            )?,
            subscribers: families.gauge("subscribers", "Subscribers connected now.", &["product_id", "transport"])?,
            disconnects: families.counter(
                "subscriber_disconnects_total",
                "Subscribers that left, by reason.",
                &["transport", "reason"],
            )?,
            delivered: families.counter(
                "delivered_events_total",
                "Payloads handed to subscribers' sockets, replayed ones too.",
                &["product_id", "transport"],
            )?,
            delivery_lag: families.histogram(
                "delivery_lag_seconds",
                "From the receipt of a live event until it was handed to a subscriber's socket, in seconds.",
                &["transport"],
                DELIVERY_LAG_BUCKETS,
            )?,
            gaps: families.counter(
                "gaps_total",
                "Places at which events may be missing: once a gap in the log, once a subscriber otherwise.",
                &["product_id", "reason"],
            )?,
            log_events: families.gauge("log_events", "Entries the log keeps.", &["product_id", "tier"])?,
            log_bytes: families.gauge("log_bytes", "Bytes the log keeps.", &["product_id", "tier"])?,
            shed: families.counter("shed_total", "Subscribers turned away, by reason.", &["reason"])?,
            max_subscribers,
            store: StoreMetrics { commit_seconds, degraded, store_bytes, retention_bytes },
            reload_success,
            webhooks: webhooks::WebhookFamilies::declare(&families)?,
            registry: registry.clone(),
        };
        // From 0 on, so that the first of its kind is a rise that rates and alerts see.
        for reason in ShedReason::ALL {
            metrics.shed(reason);
        }
        for reason in DISCONNECT_REASONS {
            for transport in [Transport::Sse, Transport::WebSocket] {
                metrics.disconnects(transport, reason);
            }
        }
        Ok(metrics)
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// When a family cannot be written, which its name alone could cause.
    pub(crate) fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Notes whether the configuration that was read last is in force.
    pub(crate) fn record_reload(&self, has_succeeded: bool) {
        self.reload_success.set(has_succeeded.into());
    }

    /// Whether it is.
    pub(crate) fn last_reload_succeeded(&self) -> bool {
        self.reload_success.get() == 1
    }

    /// Notes how many subscribers may be connected at one time.
    pub(crate) fn set_max_subscribers(&self, max_subscribers: usize) {
        self.max_subscribers.set(i64::try_from(max_subscribers).unwrap_or(i64::MAX));
    }

    /// The handles of one product's upstream.
    pub(crate) fn upstream(&self, product: &ProductId) -> UpstreamMetrics {
        let product = product.as_str();
        let [connected, refused, failed] = CONNECT_OUTCOMES
            .map(|outcome| self.upstream_connects.with_label_values(&[product, outcome]));
        let events = |kind: &Kind| self.upstream_events.with_label_values(&[product, kind.label()]);
        UpstreamMetrics {
            connected: self.upstream_connected.with_label_values(&[product]),
            connects_connected: connected,
            connects_refused: refused,
            connects_failed: failed,
            last_event: self.upstream_last_event.with_label_values(&[product]),
            last_heartbeat: self.upstream_last_heartbeat.with_label_values(&[product]),
            actions: events(&Kind::Actions),
            summary: events(&Kind::Summary),
            usertour_trigger: events(&Kind::UsertourTrigger),
            other: events(&Kind::Other("".into())),
            rejected: Rejection::ALL.map(|reason| {
                self.upstream_rejected.with_label_values(&[product, reason.as_str()])
            }),
            lag: self.upstream_lag.with_label_values(&[product]),
        }
    }

    /// The handles of one product's log.
    pub(crate) fn log(&self, product: &ProductId) -> LogMetrics {
        let product = product.as_str();
        let tiers =
            |family: &IntGaugeVec| LOG_TIERS.map(|tier| family.with_label_values(&[product, tier]));
        let ([events, events_on_disk], [bytes, bytes_on_disk]) =
            (tiers(&self.log_events), tiers(&self.log_bytes));
        LogMetrics {
            events,
            bytes,
            events_on_disk,
            bytes_on_disk,
            gaps: GapReason::ALL
                .map(|reason| self.gaps.with_label_values(&[product, reason.as_str()])),
        }
    }

    /// The handles of the durable store.
    pub(crate) fn store(&self) -> &StoreMetrics {
        &self.store
    }

    /// Notes when the certificate that is served ends.
    pub(crate) fn set_certificate_not_after(&self, not_after: SystemTime) {
        self.certificate_not_after.set(unix_seconds(not_after));
    }

    /// The handles of one webhook.
    pub(crate) fn webhook(&self, id: &str) -> WebhookMetrics {
        self.webhooks.handles(id)
    }

    /// Forgets a webhook that is no more.
    pub(crate) fn remove_webhook(&self, id: &str) {
        self.webhooks.remove(id);
    }

    /// The handles of one product's subscribers over one transport.
    pub(crate) fn deliveries(&self, product: &ProductId, transport: Transport) -> DeliveryMetrics {
        DeliveryMetrics {
            subscribers: self
                .subscribers
                .with_label_values(&[product.as_str(), transport.as_str()]),
            delivered: self.delivered(product, transport),
            lag: self.delivery_lag.with_label_values(&[transport.as_str()]),
        }
    }

    /// The counter of a product's payloads handed over through one transport.
    pub(crate) fn delivered(&self, product: &ProductId, transport: Transport) -> IntCounter {
        self.delivered.with_label_values(&[product.as_str(), transport.as_str()])
    }

    /// The counter of what is published for a product.
    pub(crate) fn published(&self, product: &ProductId) -> IntCounter {
        self.published.with_label_values(&[product.as_str()])
    }

    /// The counter of subscribers that left over one transport for one reason.
    pub(crate) fn disconnects(&self, transport: Transport, reason: &'static str) -> IntCounter {
        self.disconnects.with_label_values(&[transport.as_str(), reason])
    }

    /// The counter of subscribers turned away for one reason.
    pub(crate) fn shed(&self, reason: ShedReason) -> IntCounter {
        self.shed.with_label_values(&[reason.as_str()])
    }
}

/// How a subscriber is connected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Transport {
    /// Server-Sent Events.
    Sse,
    /// WebSocket.
    WebSocket,
    /// One page at a time.
    Page,
}

impl Transport {
    /// As it stands in metric labels and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::WebSocket => "ws",
            Self::Page => "page",
        }
    }
}

/// Why a subscriber was turned away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShedReason {
    /// `server.max_subscribers` are connected.
    MaxSubscribers,
    /// `server.max_subscribers_per_ip` are connected from this address.
    PerIp,
    /// `server.max_subscribers_per_key` are connected with this key.
    PerKey,
    /// More than `server.max_connects_per_second` came within a second.
    ConnectRate,
    /// The relay is leaving.
    Draining,
    /// The process may open no further file.
    NoFileDescriptor,
    /// There are as many connections as the limit on open files, or `server.max_subscribers`,
    /// leaves room for.
    MaxConnections,
}

impl ShedReason {
    const ALL: [Self; 7] = [
        Self::MaxSubscribers,
        Self::PerIp,
        Self::PerKey,
        Self::ConnectRate,
        Self::Draining,
        Self::NoFileDescriptor,
        Self::MaxConnections,
    ];

    /// As it stands in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MaxSubscribers => "max_subscribers",
            Self::PerIp => "per_ip",
            Self::PerKey => "per_key",
            Self::ConnectRate => "connect_rate",
            Self::Draining => "draining",
            Self::NoFileDescriptor => "no_file_descriptor",
            Self::MaxConnections => "max_connections",
        }
    }
}

/// What an upstream reports.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamMetrics {
    /// 1 while the stream stands.
    pub(crate) connected: IntGauge,
    /// Attempts that led to a stream.
    pub(crate) connects_connected: IntCounter,
    /// Attempts answered by 400, 401, 403 or 404.
    pub(crate) connects_refused: IntCounter,
    /// Attempts that failed otherwise.
    pub(crate) connects_failed: IntCounter,
    last_event: Gauge,
    last_heartbeat: Gauge,
    actions: IntCounter,
    summary: IntCounter,
    usertour_trigger: IntCounter,
    other: IntCounter,
    rejected: [IntCounter; Rejection::ALL.len()],
    lag: Histogram,
}

impl UpstreamMetrics {
    /// Counts an event received at `now`; `lag` is none where the payload does not say when it was
    /// forwarded.
    pub(crate) fn record_event(&self, kind: &Kind, lag: Option<Duration>, now: SystemTime) {
        let counter = match kind {
            Kind::Actions => &self.actions,
            Kind::Summary => &self.summary,
            Kind::UsertourTrigger => &self.usertour_trigger,
            Kind::Other(_) => &self.other,
        };
        counter.inc();
        self.last_event.set(unix_seconds(now));
        if let Some(lag) = lag {
            self.lag.observe(lag.as_secs_f64());
        }
    }

    /// Notes a heartbeat received at `now`.
    pub(crate) fn record_heartbeat(&self, now: SystemTime) {
        self.last_heartbeat.set(unix_seconds(now));
    }

    /// Counts a frame that was not understood.
    pub(crate) fn record_rejection(&self, reason: Rejection) {
        let counters = Rejection::ALL.iter().zip(&self.rejected);
        for (_, counter) in counters.filter(|(of, _)| **of == reason) {
            counter.inc();
        }
    }
}

/// What a log reports.
#[derive(Clone, Debug)]
pub(crate) struct LogMetrics {
    events: IntGauge,
    bytes: IntGauge,
    events_on_disk: IntGauge,
    bytes_on_disk: IntGauge,
    gaps: [IntCounter; GapReason::ALL.len()],
}

impl LogMetrics {
    /// Notes how much is kept in memory.
    pub(crate) fn set_memory_usage(&self, events: usize, bytes: u64) {
        self.events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Notes how much is kept in the store.
    pub(crate) fn set_store_usage(&self, events: u64, bytes: u64) {
        self.events_on_disk.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.bytes_on_disk.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Counts a gap.
    pub(crate) fn record_gap(&self, reason: GapReason) {
        let counters = GapReason::ALL.iter().zip(&self.gaps);
        for (_, counter) in counters.filter(|(of, _)| **of == reason) {
            counter.inc();
        }
    }
}

/// What the durable store reports.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    /// Time of a commit, in seconds.
    pub(crate) commit_seconds: Histogram,
    /// 1 while the store keeps less than it promises.
    pub(crate) degraded: IntGauge,
    store_bytes: IntGauge,
    retention_bytes: IntGauge,
}

impl StoreMetrics {
    /// Notes how much of the store's file is in use, and how much may be.
    pub(crate) fn set_usage(&self, bytes: u64, retention_bytes: u64) {
        self.store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.retention_bytes.set(i64::try_from(retention_bytes).unwrap_or(i64::MAX));
    }
}

/// What a product's subscribers over one transport report.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryMetrics {
    /// Connected now.
    pub(crate) subscribers: IntGauge,
    /// Payloads handed over.
    pub(crate) delivered: IntCounter,
    /// From receipt to hand-over, in seconds.
    pub(crate) lag: Histogram,
}

/// Declares families under the common prefix.
struct FamilyBuilder<'a> {
    registry: &'a Registry,
}

impl FamilyBuilder<'_> {
    fn counter(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let family = IntCounterVec::new(Opts::new(metric_name(suffix), help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn gauge(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let family = IntGaugeVec::new(Opts::new(metric_name(suffix), help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn unlabelled_gauge(&self, suffix: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let family = IntGauge::new(metric_name(suffix), help)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn timestamp(
        &self,
        suffix: &str,
        help: &str,
        label: &str,
    ) -> Result<GaugeVec, prometheus::Error> {
        let family = GaugeVec::new(Opts::new(metric_name(suffix), help), &[label])?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn histogram(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(metric_name(suffix), help).buckets(buckets.to_vec());
        let family = HistogramVec::new(options, labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}

fn metric_name(suffix: &str) -> String {
    format!("autoplay_relay_{suffix}")
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Of attempts to connect to an upstream.
const CONNECT_OUTCOMES: [&str; 3] = ["connected", "refused", "failed"];

/// Of subscribers that leave.
const DISCONNECT_REASONS: [&str; 9] =
    ["client", "stalled", "drain", "expired", "revoked", "removed", "rotated", "kicked", "error"];

/// Where a log keeps what it has.
const LOG_TIERS: [&str; 2] = ["memory", "disk"];

/// From a connector next door to one that is minutes behind.
const UPSTREAM_LAG_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// From a commit into the page cache to a disk that stands still.
const COMMIT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// From a wake-up on an idle machine to a subscriber that is about to be cut off.
const DELIVERY_LAG_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0,
];
