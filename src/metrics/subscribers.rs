//! Metrics of subscribers: connected, delivered to, disconnected, shed.
//!
//! May use: `event`.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{
    family::FamilyBuilder,
    labels::{DISCONNECT_REASONS, RefusalReason, RefusingListener, ShedReason, Transport},
};
use crate::event::ProductId;

/// Families of all subscribers.
#[derive(Debug)]
pub(super) struct SubscriberFamilies {
    subscribers: IntGaugeVec,
    disconnects: IntCounterVec,
    delivered: IntCounterVec,
    delivery_lag: HistogramVec,
    shed: IntCounterVec,
    refused: IntCounterVec,
    max_subscribers: IntGauge,
}

impl SubscriberFamilies {
    /// Declares the families.
    ///
    /// # Errors
    ///
    /// When a family is declared twice.
    pub(super) fn declare(families: &FamilyBuilder<'_>) -> Result<Self, prometheus::Error> {
        let declared = Self {
            max_subscribers: families.unlabelled_gauge(
                "max_subscribers",
                "server.max_subscribers: how many may be connected at one time.",
            )?,
            subscribers: families.gauge(
                "subscribers",
                "Subscribers connected now.",
                &["product_id", "transport"],
            )?,
            disconnects: families.counter(
                "subscriber_disconnects_total",
                "Subscribers that were disconnected, by reason.",
                &["transport", "reason"],
            )?,
            delivered: families.counter(
                "delivered_events_total",
                "Payloads handed to subscribers' sockets, replayed ones included.",
                &["product_id", "transport"],
            )?,
            delivery_lag: families.histogram(
                "delivery_lag_seconds",
                "From the receipt of a live event until it was handed to a subscriber's socket, \
                 in seconds.",
                &["transport"],
                DELIVERY_LAG_BUCKETS,
            )?,
            shed: families.counter(
                "shed_total",
                "Subscribers turned away, by reason.",
                &["reason"],
            )?,
            refused: families.counter(
                "refused_total",
                "Requests refused for their credential (401, 403, and 404 for an unknown product), \
                 by listener and reason.",
                &["listener", "reason"],
            )?,
        };
        // Series start at 0, so that the first occurrence is an increase that rates and alerts see.
        for reason in ShedReason::ALL {
            declared.shed(reason);
        }
        for listener in RefusingListener::ALL {
            for reason in RefusalReason::ALL {
                declared.refused(listener, reason);
            }
        }
        for reason in DISCONNECT_REASONS {
            for transport in [Transport::Sse, Transport::WebSocket] {
                declared.disconnects(transport, reason);
            }
        }
        Ok(declared)
    }

    /// Sets how many subscribers may be connected at one time.
    pub(super) fn set_max(&self, max_subscribers: usize) {
        self.max_subscribers.set(i64::try_from(max_subscribers).unwrap_or(i64::MAX));
    }

    /// Returns the handles of one product's subscribers over one transport.
    pub(super) fn handles(&self, product: &ProductId, transport: Transport) -> DeliveryMetrics {
        DeliveryMetrics {
            subscribers: self
                .subscribers
                .with_label_values(&[product.as_str(), transport.as_str()]),
            delivered: self.delivered_by(product, transport.as_str()),
            lag: self.delivery_lag.with_label_values(&[transport.as_str()]),
        }
    }

    /// Returns the counter of events returned in one product's pages.
    pub(super) fn paged(&self, product: &ProductId) -> IntCounter {
        self.delivered_by(product, PAGE_TRANSPORT)
    }

    fn delivered_by(&self, product: &ProductId, transport: &str) -> IntCounter {
        self.delivered.with_label_values(&[product.as_str(), transport])
    }

    /// Returns the counter of subscribers that were disconnected over one transport for one reason.
    pub(super) fn disconnects(&self, transport: Transport, reason: &'static str) -> IntCounter {
        self.disconnects.with_label_values(&[transport.as_str(), reason])
    }

    /// Returns the counter of requests refused on one listener for one reason.
    pub(super) fn refused(&self, listener: RefusingListener, reason: RefusalReason) -> IntCounter {
        self.refused.with_label_values(&[listener.as_str(), reason.as_str()])
    }

    /// Returns the counter of subscribers shed for one reason.
    pub(super) fn shed(&self, reason: ShedReason) -> IntCounter {
        self.shed.with_label_values(&[reason.as_str()])
    }

    /// Removes the series of one product. Series that do not exist are no error.
    pub(super) fn remove(&self, product: &str) {
        let streams = [Transport::Sse, Transport::WebSocket].map(Transport::as_str);
        for transport in streams.into_iter().chain([PAGE_TRANSPORT]) {
            let _ = self.subscribers.remove_label_values(&[product, transport]);
            let _ = self.delivered.remove_label_values(&[product, transport]);
        }
    }
}

/// Metrics of one product's subscribers over one transport.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryMetrics {
    /// Subscribers connected now.
    pub(crate) subscribers: IntGauge,
    /// Payloads handed to sockets.
    pub(crate) delivered: IntCounter,
    /// Time from an event's receipt until it was handed to a socket, in seconds.
    pub(crate) lag: Histogram,
}

/// Value of the label `transport` for pages, which have no connected subscriber.
const PAGE_TRANSPORT: &str = "page";

/// Covers a wake-up on an idle machine up to a subscriber at its write deadline.
const DELIVERY_LAG_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0,
];
