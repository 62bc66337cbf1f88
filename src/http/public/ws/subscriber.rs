//! One WebSocket subscriber without its socket: what it may see, where it stands, and when it has to leave.
//!
//! May use: `auth`, `event`, `fanout`, `metrics`, `net`, `wheel`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::time::Instant;

use super::message;
use crate::{
    auth::Grant,
    event::{Event, Scope, Start},
    fanout::{Item, Listener, Subscription},
    http::{
        Product, Relay,
        admission::{Leave, Newcomer, Seat},
    },
    metrics::{ShedReason, Transport},
    net::Connection,
    timer_wheel::{Alarm, Wheel},
};

/// A subscriber with a seat. Counted when it comes, and when it is dropped.
#[derive(Debug)]
pub(super) struct Visitor {
    subscription: Subscription,
    seat: Seat,
    product: Arc<Product>,
    grant: Grant,
    connection: Connection,
    alarm: Alarm,
    /// What it has asked for and its lane is still to look for.
    wish: Option<Scope>,
    /// Place of the last entry it gets, once it has been told to leave.
    leave_after: Option<u64>,
    /// The time, read once for all messages that are handed over at one wake-up.
    clock: Option<Instant>,
    /// Ticks of silence after which there is a heartbeat.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    /// Its connection is old.
    rotation_due: u64,
    /// When its token is over, and the tick at which it is woken for that.
    over: Option<Instant>,
    expiry_due: u64,
    /// By then it is gone.
    end_due: u64,
    /// It has broken the protocol.
    is_faulty: bool,
}

impl Visitor {
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
        start: &Start,
        connection: &Connection,
        headers: &HeaderMap,
    ) -> Result<Self, ShedReason> {
        relay.admits_newcomers()?;
        let listener = Arc::new(Listener::default());
        let seat = relay.subscribers.admit(Newcomer {
            product: product.id.clone(),
            transport: Transport::WebSocket,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            address: relay.client_address(connection.peer.ip(), headers),
            listener: Arc::clone(&listener),
            cut: None,
        })?;
        if relay.is_draining.load(Ordering::SeqCst) {
            seat.dismiss(Leave::Drain); // it was let in at the very moment of closing
        }
        if relay.still_serves(product).is_err() {
            seat.dismiss(Leave::Removed); // the same, of its product
        }
        let subscription = product.fanout.subscribe(listener, scope, start);
        product.ws.subscribers.inc();
        let wheel = &relay.wheel;
        // Spread for the same reasons as over SSE.
        let heartbeat_interval = relay.heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        let farewell = grant.farewell();
        let age = relay.max_connection_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        Ok(Self {
            subscription,
            seat,
            product: Arc::clone(product),
            connection: connection.clone(),
            alarm: Alarm::new(wheel),
            wish: None,
            leave_after: None,
            clock: None,
            heartbeat_ticks: wheel.after(heartbeat_interval) - wheel.now(),
            heartbeat_due: wheel.after(heartbeat_interval),
            rotation_due: age.map_or(u64::MAX, |age| wheel.after(age)),
            over: farewell.map(|farewell| farewell.begins),
            expiry_due: farewell.map_or(u64::MAX, |farewell| before(farewell.begins, wheel)),
            end_due: farewell.map_or(u64::MAX, |farewell| before(farewell.ends, wheel)),
            grant,
            is_faulty: false,
        })
    }

    /// The next message for it, in its frame.
    pub(super) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        if self.wish.is_some() {
            return Poll::Pending;
        }
        let Poll::Ready(item) = self.subscription.poll_next(context) else {
            self.clock = None;
            match self.subscription.is_at_end() {
                true => self.seat.has_nothing_to_get(),
                false => self.seat.stands_at(self.subscription.returned_through()),
            }
            return Poll::Pending;
        };
        let message = match item {
            Item::Event { event, received } => {
                self.product.ws.delivered.inc();
                self.seat.stands_at(event.place());
                if let Some(received) = received {
                    let now = *self.clock.get_or_insert_with(Instant::now);
                    self.product.ws.lag.observe(now.saturating_duration_since(received).as_secs_f64());
                }
                self.product.envelopes.of(&event)
            }
            Item::Gap(gap) => {
                self.seat.stands_at(gap.place);
                message::frame(&[message::encode_gap(&gap).as_bytes()])
            }
        };
        self.has_spoken();
        Poll::Ready(message)
    }

    /// A heartbeat, if it is time for one. Moves the client's id on where the log has moved past what its filter let through.
    pub(super) fn heartbeat(&mut self) -> Option<Bytes> {
        if self.now() < self.heartbeat_due {
            return None;
        }
        self.has_spoken();
        Some(message::frame(&[message::encode_heartbeat(self.subscription.move_on()).as_bytes()]))
    }

    /// Does what the client asks for, and answers it.
    pub(super) fn obey(&mut self, text: &[u8]) -> Bytes {
        let wished = message::parse(text);
        let scope = wished.and_then(|wished| self.grant.narrow(wished).map_err(|denial| denial.to_string()));
        let answer = match scope {
            Ok(scope) => {
                let answer = message::encode_subscribed(&scope);
                match self.subscription.is_told_by_lane() {
                    true => self.wish = Some(scope),
                    false => self.subscription.change_scope(scope),
                }
                answer
            }
            Err(title) => message::encode_error(&title),
        };
        message::frame(&[answer.as_bytes()])
    }

    /// Why it has to leave, if it has.
    pub(super) fn must_leave(&mut self) -> Option<Leave> {
        let now = self.now();
        // The clock is asked, too: the wheel could stand still.
        if now >= self.expiry_due || self.is_over() {
            self.seat.dismiss(Leave::Expired);
        }
        if now >= self.rotation_due {
            self.seat.dismiss(Leave::Rotated);
        }
        let leave = self.seat.dismissed()?;
        // Who is dismissed still gets what is in the log at that moment: memory is gone with the process.
        if self.leave_after.is_none() {
            self.leave_after = Some(self.product.log.newest());
            if self.subscription.is_told_by_lane() {
                self.subscription.look_into_the_log(0); // its lane may be long at giving to others
            }
        }
        Some(leave)
    }

    /// Whether somebody who has to leave has been given what there is; what is in the store is there for whoever comes back.
    pub(super) fn has_everything(&self) -> bool {
        self.leave_after.is_some_and(|last| self.subscription.has_passed(last) || self.subscription.reads_from_store())
    }

    /// Wakes `context` when there is something to send, or to heed.
    pub(super) fn wake_when_due(&self, also: u64, context: &Context<'_>) {
        // Who is leaving waits for the fan-out to come to the end of the log, which takes it no longer than a tick.
        let looks_again = self.leave_after.is_some() || self.subscription.must_look_again();
        let next_tick = self.alarm.wheel().after(Duration::ZERO);
        let due = self.heartbeat_due.min(self.rotation_due).min(self.expiry_due).min(also);
        self.alarm.set(if looks_again { due.min(next_tick) } else { due }, context.waker());
    }

    /// Wakes `context` when it has to leave, while it takes nothing.
    pub(super) fn wake_to_leave(&self, also: u64, context: &Context<'_>) {
        self.subscription.wake_later(context);
        self.alarm.set(self.expiry_due.min(also), context.waker());
    }

    /// The tick it is.
    pub(super) fn now(&self) -> u64 {
        self.alarm.wheel().now()
    }

    /// The tick some time from now, or the last one of its token.
    pub(super) fn after_or_end(&self, wait: Duration) -> u64 {
        self.after(wait).min(self.end_due)
    }

    /// The tick some time from now.
    pub(super) fn after(&self, wait: Duration) -> u64 {
        self.alarm.wheel().after(wait)
    }

    /// From now on it is silent.
    pub(super) fn has_spoken(&mut self) {
        self.heartbeat_due = self.now() + self.heartbeat_ticks;
    }

    /// The product it listens to.
    pub(super) fn product(&self) -> &Arc<Product> {
        &self.product
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
    pub(super) fn wish(&mut self) -> Option<Scope> {
        self.wish.take()
    }

    /// Whether there is nothing else to be said to it than what arrives.
    pub(super) fn is_following(&self) -> bool {
        self.subscription.is_at_end() && self.leave_after.is_none() && self.wish.is_none()
    }

    /// Whether its token's time is over at this moment.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some_and(|over| Instant::now() >= over)
    }

    /// Gives it an event, if that is for it.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        self.subscription.take(event)
    }

    /// Whether an event is within what it may see.
    pub(super) fn may_see(&self, event: &Event) -> bool {
        self.scope().includes(event.session(), event.kind())
    }

    /// The place of the last entry that it has been given, or may not see.
    pub(super) fn place(&self) -> u64 {
        self.subscription.returned_through()
    }

    /// Its socket could not take all of what it has been given.
    pub(super) fn is_stuck(&self) {
        self.seat.stands_at(self.subscription.returned_through());
    }

    /// It has broken the protocol.
    pub(super) fn blame(&mut self) {
        self.is_faulty = true;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let is_stalled = self.connection.fate.is_stalled();
        let reason = match self.seat.dismissed() {
            _ if is_stalled => "stalled",
            Some(leave) => leave.as_str(),
            None if self.is_faulty => "error",
            None => "client",
        };
        self.product.metrics.disconnects(Transport::WebSocket, reason).inc();
        self.product.ws.subscribers.dec();
        if is_stalled {
            tracing::debug!(product = %self.product.id, "subscriber took nothing for the write time-out");
        }
    }
}

/// A tick that is not later than `end`: the wheel itself rounds up, and turns a little late.
fn before(end: Instant, wheel: &Wheel) -> u64 {
    wheel.after(end.saturating_duration_since(Instant::now()).saturating_sub(ROUNDING))
}

/// Two ticks of the wheel, and one for its being late.
const ROUNDING: Duration = Duration::from_millis(300);
