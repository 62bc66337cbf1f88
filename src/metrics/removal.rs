//! Taking the series of a product away.
//!
//! May use: `envelope`, `event`.

use super::{CONNECT_OUTCOMES, LOG_TIERS, Metrics, Transport};
use crate::{
    envelope::Rejection,
    event::{GapReason, Kind, ProductId},
};

impl Metrics {
    /// Forgets a product that is no more.
    pub(crate) fn remove_product(&self, product: &ProductId) {
        let product = product.as_str();
        // One that was never there is as good as gone.
        for gauges in [&self.upstream_last_event, &self.upstream_last_heartbeat] {
            let _ = gauges.remove_label_values(&[product]);
        }
        let _ = self.upstream_connected.remove_label_values(&[product]);
        let _ = self.upstream_lag.remove_label_values(&[product]);
        let _ = self.published.remove_label_values(&[product]);
        for outcome in CONNECT_OUTCOMES {
            let _ = self.upstream_connects.remove_label_values(&[product, outcome]);
        }
        for kind in [Kind::Actions, Kind::Summary, Kind::UsertourTrigger, Kind::Other("".into())] {
            let _ = self.upstream_events.remove_label_values(&[product, kind.label()]);
        }
        for reason in Rejection::ALL {
            let _ = self.upstream_rejected.remove_label_values(&[product, reason.as_str()]);
        }
        for transport in [Transport::Sse, Transport::WebSocket, Transport::Page] {
            let _ = self.subscribers.remove_label_values(&[product, transport.as_str()]);
            let _ = self.delivered.remove_label_values(&[product, transport.as_str()]);
        }
        for reason in GapReason::ALL {
            let _ = self.gaps.remove_label_values(&[product, reason.as_str()]);
        }
        for tier in LOG_TIERS {
            let _ = self.log_events.remove_label_values(&[product, tier]);
            let _ = self.log_bytes.remove_label_values(&[product, tier]);
        }
    }
}
