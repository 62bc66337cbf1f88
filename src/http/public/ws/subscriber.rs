//! One WebSocket subscriber without its socket: what it may see, where it stands, and when it has
//! to leave.
//!
//! May use: `auth`, `event`, `fanout`, `feed`, `metrics`, `net`, `timer_wheel`.

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
    fanout::{SubscriberSignal, Subscription, SubscriptionItem},
    feed::Feed,
    http::{
        admission::{AdmissionPermit, AdmissionRequest, DisconnectReason},
        state::{Product, Relay},
    },
    metrics::{ShedReason, Transport},
    net::Connection,
    timer_wheel::{Alarm, TimerWheel},
};

/// A subscriber with a seat. Counted when it comes, and when it is dropped.
#[derive(Debug)]
pub(super) struct WsSubscriber {
    subscription: Subscription,
    permit: AdmissionPermit,
    feed: Arc<Feed>,
    messages: Arc<WsMessageCache>,
    grant: Grant,
    connection: Connection,
    alarm: Alarm,
    /// What it has asked for and its lane is still to look for.
    requested_scope: Option<Scope>,
    /// Place of the last entry it gets, once it has been told to leave.
    disconnect_after: Option<u64>,
    /// The time, read once for all messages that are handed over at one wake-up.
    batch_time: Option<Instant>,
    /// Ticks of silence after which there is a heartbeat.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    /// Its connection is old.
    rotation_due: u64,
    /// When its token is over, and the tick at which it is woken for that.
    expires_at: Option<Instant>,
    expiry_due: u64,
    /// By then it is gone.
    end_due: u64,
    /// It has broken the protocol.
    is_faulty: bool,
}

impl WsSubscriber {
    /// Gives a newcomer a seat, and a place in the log.
    ///
    /// # Errors
    ///
    /// Which limit it would go past.
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
        let listener = Arc::new(SubscriberSignal::default());
        let permit = relay.subscribers.admit(AdmissionRequest {
            product: feed.id.clone(),
            transport: Transport::WebSocket,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            address: relay.client_address(connection.peer.ip(), headers),
            listener: Arc::clone(&listener),
            forced_close: None,
        })?;
        if relay.is_draining.load(Ordering::SeqCst) {
            // it was let in at the very moment of closing
            permit.disconnect(DisconnectReason::Drain);
        }
        if relay.ensure_still_served(feed).is_err() {
            permit.disconnect(DisconnectReason::Removed); // the same, of its product
        }
        let subscription = feed.fanout.subscribe(listener, scope, start);
        feed.ws.subscribers.inc();
        let wheel = &relay.wheel;
        // Spread for the same reasons as over SSE.
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
            expires_at: expiry.map(|farewell| farewell.disconnect_at),
            expiry_due: expiry
                .map_or(u64::MAX, |farewell| tick_before(farewell.disconnect_at, wheel)),
            end_due: expiry.map_or(u64::MAX, |farewell| tick_before(farewell.expires_at, wheel)),
            grant,
            is_faulty: false,
        })
    }

    /// The next message for it, in its frame.
    pub(super) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
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

    /// A heartbeat, if it is time for one. Moves the client's id on where the log has moved past
    /// what its filter let through.
    pub(super) fn take_heartbeat(&mut self) -> Option<Bytes> {
        if self.now() < self.heartbeat_due {
            return None;
        }
        self.reset_heartbeat();
        Some(message::text_frame(&[
            message::encode_heartbeat(self.subscription.advance_last_id()).as_bytes()
        ]))
    }

    /// Does what the client asks for, and answers it.
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

    /// Why it has to leave, if it has.
    pub(super) fn check_disconnect(&mut self) -> Option<DisconnectReason> {
        let now = self.now();
        // The clock is asked, too: the wheel could stand still.
        if now >= self.expiry_due || self.is_token_expired() {
            self.permit.disconnect(DisconnectReason::Expired);
        }
        if now >= self.rotation_due {
            self.permit.disconnect(DisconnectReason::Rotated);
        }
        let reason = self.permit.disconnect_reason()?;
        // Who is dismissed still gets what is in the log at that moment: memory is gone with the
        // process.
        if self.disconnect_after.is_none() {
            self.disconnect_after = Some(self.feed.log.newest_position());
            if self.subscription.is_on_shard() {
                self.subscription.resync_from(0); // its lane may be long at giving to others
            }
        }
        Some(reason)
    }

    /// Whether somebody who has to leave has been given what there is; what is in the store is
    /// there for whoever comes back.
    pub(super) fn has_delivered_all(&self) -> bool {
        self.disconnect_after.is_some_and(|last| {
            self.subscription.has_passed(last) || self.subscription.reads_from_store()
        })
    }

    /// Wakes `context` when there is something to send, or to heed.
    pub(super) fn wake_when_due(&self, other_due: u64, context: &Context<'_>) {
        // Who is leaving waits for the fan-out to come to the end of the log, which takes it no
        // longer than a tick.
        let must_recheck = self.disconnect_after.is_some() || self.subscription.must_poll_again();
        let next_tick = self.alarm.wheel().tick_after(Duration::ZERO);
        let due = self.heartbeat_due.min(self.rotation_due).min(self.expiry_due).min(other_due);
        self.alarm.set(if must_recheck { due.min(next_tick) } else { due }, context.waker());
    }

    /// Wakes `context` when it has to leave, while it takes nothing.
    pub(super) fn wake_for_disconnect(&self, other_due: u64, context: &Context<'_>) {
        self.subscription.register_waker(context);
        self.alarm.set(self.expiry_due.min(other_due), context.waker());
    }

    /// The tick it is.
    pub(super) fn now(&self) -> u64 {
        self.alarm.wheel().current_tick()
    }

    /// The tick some time from now, or the last one of its token.
    pub(super) fn tick_after_or_end(&self, wait: Duration) -> u64 {
        self.tick_after(wait).min(self.end_due)
    }

    /// The tick some time from now.
    pub(super) fn tick_after(&self, wait: Duration) -> u64 {
        self.alarm.wheel().tick_after(wait)
    }

    /// From now on it is silent.
    pub(super) fn reset_heartbeat(&mut self) {
        self.heartbeat_due = self.now() + self.heartbeat_ticks;
    }

    /// The product it listens to.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// An event's message, in its frame.
    pub(super) fn message_for(&self, event: &Event) -> Bytes {
        self.messages.get_or_encode(event)
    }

    /// Where it stands.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// What it may see.
    pub(super) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// What it has asked for since it was asked last.
    pub(super) fn take_requested_scope(&mut self) -> Option<Scope> {
        self.requested_scope.take()
    }

    /// Whether there is nothing else to be said to it than what arrives.
    pub(super) fn is_caught_up(&self) -> bool {
        self.subscription.is_caught_up()
            && self.disconnect_after.is_none()
            && self.requested_scope.is_none()
    }

    /// Whether its token's time is over at this moment.
    pub(super) fn is_token_expired(&self) -> bool {
        self.expires_at.is_some_and(|over| Instant::now() >= over)
    }

    /// Gives it an event, if that is for it.
    pub(super) fn accept(&mut self, event: &Event) -> bool {
        self.subscription.accept(event)
    }

    /// Whether an event is within what it may see.
    pub(super) fn includes(&self, event: &Event) -> bool {
        self.scope().includes(event.session(), event.kind())
    }

    /// The place of the last entry that it has been given, or may not see.
    pub(super) fn position(&self) -> u64 {
        self.subscription.returned_through()
    }

    /// Its socket could not take all of what it has been given.
    pub(super) fn record_backlog(&self) {
        self.permit.record_position(self.subscription.returned_through());
    }

    /// It has broken the protocol.
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
            tracing::debug!(product = %self.feed.id, "subscriber took nothing for the write time-out");
        }
    }
}

/// A tick that is not later than `end`: the wheel itself rounds up, and turns a little late.
fn tick_before(end: Instant, wheel: &TimerWheel) -> u64 {
    wheel.tick_after(end.saturating_duration_since(Instant::now()).saturating_sub(TICK_ROUNDING))
}

/// Two ticks of the wheel, and one for its being late.
const TICK_ROUNDING: Duration = Duration::from_millis(300);
