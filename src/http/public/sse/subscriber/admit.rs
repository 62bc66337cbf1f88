//! Admission of one SSE subscriber: its permit, its subscription and its deadlines.
//!
//! May use: `fanout`, `feed`, `log`, `metrics`, `net`, `subscription`, `timer_wheel`.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use hyper::HeaderMap;
use tokio::time::Instant;

use super::{SseSubscriber, TokenExpiry};
use crate::{
    fanout::SubscriberSignal,
    feed::Feed,
    http::{
        admission::{AdmissionRequest, DisconnectReason},
        public::{request::SubscriptionRequest, sse::source::SubscriptionSource},
        state::Relay,
    },
    log::ReplayClient,
    metrics::{ShedReason, Transport},
    net::ForcedClose,
    subscription::Subscription,
    timer_wheel::Alarm,
};

impl SseSubscriber {
    /// Admits a subscriber and registers its subscription.
    ///
    /// # Errors
    ///
    /// The limit that the subscriber would exceed, or [`ShedReason::Draining`].
    pub(crate) fn admit(
        relay: &Relay,
        source: &SubscriptionSource<'_>,
        feed: &Arc<Feed>,
        requested: SubscriptionRequest,
        peer: IpAddr,
        headers: &HeaderMap,
        forced_close: Option<Arc<ForcedClose>>,
    ) -> Result<Self, ShedReason> {
        relay.ensure_not_draining()?;
        let signal = Arc::new(SubscriberSignal::default());
        let address = relay.client_address(peer, headers);
        let replay_client = ReplayClient::new(&source.holder, &address.block());
        let permit = source.subscribers.admit(AdmissionRequest {
            product: feed.id.clone(),
            transport: Transport::Sse,
            key: Arc::clone(&source.key),
            holder: source.holder.clone(),
            proof: Arc::clone(&source.proof),
            address,
            listener: Arc::clone(&signal),
            forced_close: forced_close.clone(),
        })?;
        // Permit first, flag second, while shutdown sets the flag first and walks the permits
        // second: SeqCst, so that at least one side sees the other.
        if relay.is_draining.load(Ordering::SeqCst) {
            permit.disconnect(DisconnectReason::Drain);
        }
        // Likewise: a reload removes the product first and disconnects its subscribers second.
        if relay.ensure_still_served(feed).is_err() {
            permit.disconnect(DisconnectReason::Removed);
        }
        let subscription =
            Subscription::start(&feed.fanout, signal, requested.scope, &requested.start);
        let subscription = subscription.for_client(replay_client);
        if !source.is_operator_tail {
            feed.sse.subscribers.inc();
        }
        let wheel = source.wheel;
        // Up to a tenth earlier than the interval: ten thousand subscribers of one event must not
        // all get their heartbeats in one tick.
        let heartbeat_interval = relay.heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        // Rounded down, so that the stream ends at the token's end or a little before.
        let tick_at = |at: Instant| wheel.tick_within(at.saturating_duration_since(Instant::now()));
        let end_due = source.expiry.map_or(u64::MAX, |expiry| tick_at(expiry.expires_at));
        if let Some(forced_close) = &forced_close {
            forced_close.schedule_at(end_due);
        }
        let token_expiry = source.expiry.map(|it| {
            Box::new(TokenExpiry {
                expires_at: it.disconnect_at,
                expiry_due: tick_at(it.disconnect_at),
            })
        });
        // Between 0.8 and 1.2 of the configured age, so that rotations do not come in waves.
        let age = source.max_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        Ok(Self {
            subscription,
            permit,
            feed: Arc::clone(feed),
            is_operator_tail: source.is_operator_tail,
            fault: None,
            forced_close,
            alarm: Alarm::new(wheel),
            disconnect_after: None,
            is_finished: false,
            owes_end_of_replay: headers
                .get("autoplay-relay")
                .is_some_and(|value| value.as_bytes() == b"follow"),
            heartbeat_ticks: wheel.tick_after(heartbeat_interval) - wheel.current_tick(),
            heartbeat_due: wheel.tick_after(heartbeat_interval),
            rotation_due: age.map_or(u64::MAX, |age| wheel.tick_after(age)),
            token_expiry,
            end_due,
        })
    }
}
