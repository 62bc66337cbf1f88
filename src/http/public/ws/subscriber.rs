//! WebSocket subscriber without a socket: scope, position, heartbeats, and when to disconnect.
//!
//! In: items of a [`Subscription`], filters of the client, ticks, disconnect reasons. Out: framed
//! messages.
//!
//! May use: `auth`, `event`, `fanout`, `feed`, `log`, `metrics`, `net`, `subscription`,
//! `timer_wheel`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::time::Instant;

use super::message::{self, WsMessageCache};
use crate::{
    auth::Grant,
    event::{Event, Scope, StartPosition},
    fanout::SubscriberSignal,
    feed::Feed,
    http::{
        admission::{AdmissionPermit, AdmissionRequest, DisconnectReason},
        state::{Product, Relay},
    },
    log::ReplayClient,
    metrics::{ShedReason, Transport},
    net::Connection,
    subscription::{Subscription, SubscriptionItem},
    timer_wheel::{Alarm, TimerWheel},
};

/// Life cycle of one WebSocket subscriber; counted from admission until it is dropped.
#[derive(Debug)]
pub(super) struct WsSubscriber {
    subscription: Subscription,
    permit: AdmissionPermit,
    feed: Arc<Feed>,
    messages: Arc<WsMessageCache>,
    grant: Grant,
    connection: Connection,
    alarm: Alarm,
    /// Scope that the client has requested and the shard's index does not have yet.
    requested_scope: Option<Scope>,
    /// Position of the last entry to deliver, once there is a disconnect reason.
    disconnect_after: Option<u64>,
    /// Clock reading for the lag metric, shared by the messages of one wake-up.
    batch_time: Option<Instant>,
    /// Heartbeat interval in ticks.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    /// Tick at which the connection has reached its maximum age.
    rotation_due: u64,
    /// End of deliveries with the token.
    expires_at: Option<Instant>,
    /// Tick at which the subscriber is woken for it.
    expiry_due: u64,
    /// Tick at which the connection must be closed: the token's own end.
    end_due: u64,
    /// The client has violated the protocol, or the subscriber's work has panicked.
    is_faulty: bool,
}

impl WsSubscriber {
    /// Admits a subscriber and registers its subscription.
    ///
    /// # Errors
    ///
    /// The limit that the subscriber would exceed, or [`ShedReason::Draining`].
    pub(super) fn admit(
        relay: &Relay,
        product: &Arc<Product>,
        grant: Grant,
        scope: Scope,
        start: &StartPosition,
        connection: &Connection,
        headers: &HeaderMap,
    ) -> Result<Self, ShedReason> {
        let feed = &product.feed;
        relay.ensure_not_draining()?;
        let signal = Arc::new(SubscriberSignal::default());
        let address = relay.client_address(connection.peer.ip(), headers);
        let replay_client = ReplayClient::new(&grant.holder, &address.block());
        let permit = relay.subscribers.admit(AdmissionRequest {
            product: feed.id.clone(),
            transport: Transport::WebSocket,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            address,
            listener: Arc::clone(&signal),
            forced_close: None,
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
            Subscription::start(&feed.fanout, signal, scope, start).for_client(replay_client);
        feed.ws.subscribers.inc();
        let wheel = &relay.wheel;
        // Spread as over SSE: heartbeats must not share a tick, nor rotations come in waves.
        let heartbeat_interval = relay.heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        let expiry = grant.stream_expiry();
        let age = relay.max_connection_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        Ok(Self {
            subscription,
            permit,
            feed: Arc::clone(&product.feed),
            messages: Arc::clone(&product.ws_messages),
            connection: connection.clone(),
            alarm: Alarm::new(wheel),
            requested_scope: None,
            disconnect_after: None,
            batch_time: None,
            heartbeat_ticks: wheel.tick_after(heartbeat_interval) - wheel.current_tick(),
            heartbeat_due: wheel.tick_after(heartbeat_interval),
            rotation_due: age.map_or(u64::MAX, |age| wheel.tick_after(age)),
            expires_at: expiry.map(|it| it.disconnect_at),
            expiry_due: expiry.map_or(u64::MAX, |it| tick_before(it.disconnect_at, wheel)),
            end_due: expiry.map_or(u64::MAX, |it| tick_before(it.expires_at, wheel)),
            grant,
            is_faulty: false,
        })
    }

    /// Returns the next framed message.
    pub(super) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        // The answer to the filter is on its way; no event of the old scope may follow it.
        if self.requested_scope.is_some() {
            return Poll::Pending;
        }
        let Poll::Ready(item) = self.subscription.poll_next(context) else {
            self.batch_time = None;
            match self.subscription.is_caught_up() {
                true => self.permit.record_caught_up(),
                false => self.permit.record_position(self.subscription.returned_through()),
            }
            return Poll::Pending;
        };
        let message = match item {
            SubscriptionItem::Event { event, received } => {
                self.feed.ws.delivered.inc();
                self.permit.record_position(event.position());
                if let Some(received) = received {
                    let now = *self.batch_time.get_or_insert_with(Instant::now);
                    self.feed.ws.lag.observe(now.saturating_duration_since(received).as_secs_f64());
                }
                self.messages.get_or_encode(&event)
            }
            SubscriptionItem::Gap(gap) => {
                self.permit.record_position(gap.position);
                message::text_frame(&[message::encode_gap(&gap).as_bytes()])
            }
        };
        self.reset_heartbeat();
        Poll::Ready(message)
    }

    /// Returns a heartbeat if one is due, with an id if the log has moved past entries outside the
    /// scope.
    pub(super) fn take_heartbeat(&mut self) -> Option<Bytes> {
        if self.now() < self.heartbeat_due {
            return None;
        }
        self.reset_heartbeat();
        Some(message::text_frame(&[
            message::encode_heartbeat(self.subscription.advance_last_id()).as_bytes()
        ]))
    }

    /// Applies a filter of the client and returns the framed answer.
    ///
    /// On a shard the scope is also in the shard's index, so the scheduler applies it after
    /// this poll (see `ShardSubscriber::take_requested_scope`).
    pub(super) fn handle_subscribe(&mut self, text: &[u8]) -> Bytes {
        let requested = message::parse_subscribe(text);
        let scope = requested
            .and_then(|wished| self.grant.narrow(wished).map_err(|denial| denial.to_string()));
        let answer = match scope {
            Ok(scope) => {
                let answer = message::encode_subscribed(&scope);
                match self.subscription.is_on_shard() {
                    true => self.requested_scope = Some(scope),
                    false => self.subscription.change_scope(scope),
                }
                answer
            }
            Err(title) => message::encode_error(&title),
        };
        message::text_frame(&[answer.as_bytes()])
    }

    /// Returns the disconnect reason, if there is one, and fixes the last position to deliver.
    pub(super) fn check_disconnect(&mut self) -> Option<DisconnectReason> {
        let now = self.now();
        // The clock as well as the tick, for the wheel may stall.
        if now >= self.expiry_due || self.is_token_expired() {
            self.permit.disconnect(DisconnectReason::Expired);
        }
        if now >= self.rotation_due {
            self.permit.disconnect(DisconnectReason::Rotated);
        }
        let reason = self.permit.disconnect_reason()?;
        // Entries in memory are lost with the process, so the log as of now is delivered first.
        if self.disconnect_after.is_none() {
            self.disconnect_after = Some(self.feed.log.newest_position());
            if self.subscription.is_on_shard() {
                // The shard may still be delivering to others; the log has the entries already.
                self.subscription.resync_from(0);
            }
        }
        Some(reason)
    }

    /// Returns whether a subscriber that has to disconnect has received the log up to that moment.
    ///
    /// Entries in the store count as delivered: they outlive the process, and a resume finds them.
    pub(super) fn has_delivered_all(&self) -> bool {
        self.disconnect_after.is_some_and(|last| {
            self.subscription.has_passed(last) || self.subscription.reads_from_store()
        })
    }

    /// Sets the alarm for the next heartbeat, rotation, expiry or `other_due`.
    pub(super) fn wake_when_due(&self, other_due: u64, context: &Context<'_>) {
        // Nothing wakes the subscriber when the fan-out reaches the end of the log without an entry
        // for it: check every tick.
        let must_recheck = self.disconnect_after.is_some() || self.subscription.must_poll_again();
        let next_tick = self.alarm.wheel().tick_after(Duration::ZERO);
        let due = self.heartbeat_due.min(self.rotation_due).min(self.expiry_due).min(other_due);
        self.alarm.set(if must_recheck { due.min(next_tick) } else { due }, context.waker());
    }

    /// Has `context` woken on a disconnect, at the token's expiry and at `other_due`, while the
    /// socket is full.
    pub(super) fn wake_for_disconnect(&self, other_due: u64, context: &Context<'_>) {
        self.subscription.register_waker(context);
        self.alarm.set(self.expiry_due.min(other_due), context.waker());
    }

    /// Returns the current tick.
    pub(super) fn now(&self) -> u64 {
        self.alarm.wheel().current_tick()
    }

    /// Returns the tick after `wait`, or the token's last tick if that is earlier.
    pub(super) fn tick_after_or_end(&self, wait: Duration) -> u64 {
        self.tick_after(wait).min(self.end_due)
    }

    /// Returns the tick after `wait`.
    pub(super) fn tick_after(&self, wait: Duration) -> u64 {
        self.alarm.wheel().tick_after(wait)
    }

    /// Restarts the heartbeat interval.
    pub(super) fn reset_heartbeat(&mut self) {
        self.heartbeat_due = self.now() + self.heartbeat_ticks;
    }

    /// Returns the product that the subscriber is subscribed to.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Returns an event's framed message from the product's cache.
    pub(super) fn message_for(&self, event: &Event) -> Bytes {
        self.messages.get_or_encode(event)
    }

    /// Returns the position in the log and the scope.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// Returns the scope.
    pub(super) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// Takes the scope that the client has requested since the last call.
    pub(super) fn take_requested_scope(&mut self) -> Option<Scope> {
        self.requested_scope.take()
    }

    /// Returns whether queued events may be delivered directly.
    pub(super) fn is_caught_up(&self) -> bool {
        self.subscription.is_caught_up()
            && self.disconnect_after.is_none()
            && self.requested_scope.is_none()
    }

    /// Returns whether the token has expired, by the clock.
    pub(super) fn is_token_expired(&self) -> bool {
        self.expires_at.is_some_and(|over| Instant::now() >= over)
    }

    /// Moves the position over an event and returns whether the event is for the subscriber.
    pub(super) fn accept(&mut self, event: &Event) -> bool {
        self.subscription.accept(event)
    }

    /// Returns whether the scope admits an event.
    pub(super) fn includes(&self, event: &Event) -> bool {
        self.scope().includes(event.session(), event.kind())
    }

    /// Returns the position up to which the subscriber has every entry of its scope.
    pub(super) fn position(&self) -> u64 {
        self.subscription.returned_through()
    }

    /// Records in the permit that the socket did not accept everything.
    pub(super) fn record_backlog(&self) {
        self.permit.record_position(self.subscription.returned_through());
    }

    /// Makes `error` the disconnect reason, unless the subscriber has been given another.
    pub(super) fn mark_faulty(&mut self) {
        self.is_faulty = true;
    }
}

impl Drop for WsSubscriber {
    fn drop(&mut self) {
        let is_stalled = self.connection.state.is_stalled();
        let reason = match self.permit.disconnect_reason() {
            _ if is_stalled => "stalled",
            Some(reason) => reason.as_str(),
            None if self.is_faulty => "error",
            None => "client",
        };
        self.feed.metrics.disconnects(Transport::WebSocket, reason).inc();
        self.feed.ws.subscribers.dec();
        if is_stalled {
            tracing::debug!(
                product = %self.feed.id,
                "subscriber took nothing for the write time-out"
            );
        }
    }
}

/// Returns a tick that comes no later than `end`: the wheel rounds up and turns a little late.
///
/// Earlier than [`TimerWheel::tick_within`], which SSE uses, because the close handshake of an
/// expired subscriber has to be over by then.
fn tick_before(end: Instant, wheel: &TimerWheel) -> u64 {
    wheel.tick_after(end.saturating_duration_since(Instant::now()).saturating_sub(TICK_ROUNDING))
}

/// Two ticks of the wheel for rounding, and one for its being late.
const TICK_ROUNDING: Duration = Duration::from_millis(300);
