//! Admission of one subscriber: its permit, its subscription and its deadlines.
//!
//! In: a request that has been authorized and parsed. Out: a [`ConnectedSubscriber`], the same for
//! every transport, or the limit that it would exceed.
//!
//! May use: `admission`, `auth`, `fanout`, `feed`, `log`, `metrics`, `net`, `shard`, `subscriber`,
//! `subscription`, `timer_wheel`.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::HeaderMap;
use tokio::time::Instant;

use super::request::SubscriptionRequest;
use crate::{
    admission::{AdmissionRequest, DisconnectReason, Subscribers},
    auth::{CredentialHolder, CredentialProof, Grant, StreamExpiry},
    fanout::SubscriberSignal,
    feed::Feed,
    http::state::Relay,
    log::ReplayClient,
    metrics::{ShedReason, Transport},
    net::ForcedClose,
    shard::ShardPlacement,
    subscriber::{ConnectedSubscriber, SubscriberDeadlines, TokenEnd},
    subscription::Subscription,
    timer_wheel::{Alarm, Deadline, TimerWheel},
};

/// Source of a subscription: what differs between the public and the admin listener.
#[derive(Debug)]
pub(crate) struct SubscriptionSource<'a> {
    /// Admission that issues the permit.
    pub(crate) subscribers: &'a Arc<Subscribers>,
    /// Timer of the listener's runtime.
    pub(crate) wheel: &'a Arc<TimerWheel>,
    /// Name of the key, for the list of subscribers.
    pub(crate) key: Arc<str>,
    /// Holder that the subscriber counts for in limits.
    pub(crate) holder: CredentialHolder,
    /// Credential that must stay valid while the stream is open.
    pub(crate) proof: Arc<CredentialProof>,
    /// Age at about which the stream is rotated.
    pub(crate) max_age: Option<Duration>,
    /// End of the stream with its token, if there is one.
    pub(crate) expiry: Option<StreamExpiry>,
    /// Shards that write the stream; with `None`, hyper does.
    pub(crate) shards: Option<&'a Arc<ShardPlacement>>,
    /// The stream is an operator tail: not counted as a subscriber, and ended at once when it
    /// gets a disconnect reason.
    pub(crate) is_operator_tail: bool,
}

impl<'a> SubscriptionSource<'a> {
    /// Returns the source of a request with this grant.
    pub(super) fn public(relay: &'a Relay, grant: &Grant, can_detach: bool) -> Self {
        Self {
            subscribers: &relay.subscribers,
            wheel: &relay.wheel,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            max_age: relay.max_connection_age,
            expiry: grant.stream_expiry(),
            shards: can_detach.then_some(&relay.shards),
            is_operator_tail: false,
        }
    }

    /// Admits a subscriber and registers its subscription.
    ///
    /// `forced_close` ends a stream that hyper writes while its client takes nothing. A shard polls
    /// a subscriber with a full socket at its deadlines, and needs none.
    ///
    /// # Errors
    ///
    /// The limit that the subscriber would exceed, or [`ShedReason::Draining`].
    pub(crate) fn admit(
        &self,
        relay: &Relay,
        feed: &Arc<Feed>,
        requested: SubscriptionRequest,
        (peer, headers): (IpAddr, &HeaderMap),
        transport: Transport,
        forced_close: Option<&Arc<ForcedClose>>,
    ) -> Result<ConnectedSubscriber, ShedReason> {
        relay.ensure_not_draining()?;
        let signal = SubscriberSignal::default();
        let address = relay.client_address(peer, headers);
        let replay_client = ReplayClient::new(&self.holder, &address.block());
        let permit = self.subscribers.admit(AdmissionRequest {
            product: feed.id.clone(),
            transport,
            key: Arc::clone(&self.key),
            holder: self.holder.clone(),
            proof: Arc::clone(&self.proof),
            address,
            listener: signal.clone(),
            forced_close: forced_close.cloned(),
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
        // One task, which the fan-out, the wheel and admission wake by the same waker.
        let alarm = Alarm::sharing(self.wheel, signal.wake_state());
        let subscription =
            Subscription::start(&feed.fanout, signal, requested.scope, &requested.start);
        let subscription = subscription.for_client(replay_client);
        let token = self.expiry.map(|expiry| self.token_end(&expiry, transport));
        if let (Some(forced_close), Some(token)) = (forced_close, token) {
            forced_close.schedule_at(token.end);
        }
        let deadlines =
            SubscriberDeadlines::new(alarm, relay.heartbeat_interval, self.max_age, token);
        let kind = (transport, self.is_operator_tail);
        Ok(ConnectedSubscriber::new(subscription, permit, feed, deadlines, kind))
    }

    /// Returns the ticks of a token's end: never later than the end itself.
    ///
    /// Over WebSocket a little earlier: the closing handshake of an expired subscriber has to be
    /// over by then, and the wheel may turn late.
    fn token_end(&self, expiry: &StreamExpiry, transport: Transport) -> TokenEnd {
        let deadline_at = |at: Instant| -> Deadline {
            let wait = at.saturating_duration_since(Instant::now());
            match transport {
                Transport::Sse => self.wheel.deadline_within(wait),
                Transport::WebSocket => {
                    self.wheel.deadline_after(wait.saturating_sub(TICK_ROUNDING))
                }
            }
        };
        TokenEnd {
            disconnect_at: expiry.disconnect_at,
            wake_at: deadline_at(expiry.disconnect_at),
            end: deadline_at(expiry.expires_at),
        }
    }
}

/// Two ticks of the wheel for rounding, and one for its being late.
const TICK_ROUNDING: Duration = Duration::from_millis(300);
