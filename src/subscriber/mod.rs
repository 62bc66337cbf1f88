//! One connected subscriber, whatever its transport: its life cycle from admission to its end, its
//! deadlines, and the socket that it is written to.
//!
//! In: items of a [`Subscription`], disconnect reasons, deadlines. Out: items to send, and when to
//! stop. The transports (`http::public::sse`, `http::public::ws`) encode what comes out here; a
//! shard delivers queued events past [`ConnectedSubscriber::poll_item`], by
//! [`ConnectedSubscriber::accept`].
//!
//! ```text
//! admitted ─► items, heartbeats ─► disconnect reason ─► the log up to its newest entry ─► dropped
//!                                    └─ expired, revoked, removed: at once ──────────────►
//! ```
//!
//! May use: `admission`, `event`, `feed`, `metrics`, `subscription`, `timer_wheel`.

mod deadlines;
mod socket;
mod write_batch;

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

pub(crate) use self::{
    deadlines::{SubscriberDeadlines, TokenEnd},
    socket::SubscriberSocket,
    write_batch::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, WriteBatch, WriteScratch},
};
use crate::{
    admission::{AdmissionPermit, DisconnectReason},
    event::{Event, EventId, Scope},
    feed::Feed,
    metrics::Transport,
    subscription::{Subscription, SubscriptionItem},
    timer_wheel::Deadline,
};

/// One admitted subscriber: permit, subscription, deadlines. Counted until it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectedSubscriber {
    subscription: Subscription,
    permit: AdmissionPermit,
    feed: Arc<Feed>,
    deadlines: SubscriberDeadlines,
    transport: Transport,
    /// An operator's stream: not counted as a subscriber, and ended at once when it gets a
    /// disconnect reason, because the fan-out may have ended and would move its position no more.
    is_operator_tail: bool,
    fault: Option<SubscriberFault>,
    /// Position of the last entry to deliver, once there is a disconnect reason.
    disconnect_after: Option<u64>,
}

/// Fault that ends a subscriber. The earlier variant takes precedence.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum SubscriberFault {
    /// The client accepted nothing for `write_timeout`.
    Stalled,
    /// The subscriber's work has panicked.
    Error,
    /// The client has violated its protocol. A disconnect reason takes precedence over this one.
    Violation,
}

impl ConnectedSubscriber {
    /// Returns a subscriber that has just been admitted.
    pub(crate) fn new(
        subscription: Subscription,
        permit: AdmissionPermit,
        feed: &Arc<Feed>,
        deadlines: SubscriberDeadlines,
        (transport, is_operator_tail): (Transport, bool),
    ) -> Self {
        if !is_operator_tail {
            feed.deliveries(transport).subscribers.inc();
        }
        Self {
            subscription,
            permit,
            feed: Arc::clone(feed),
            deadlines,
            transport,
            is_operator_tail,
            fault: None,
            disconnect_after: None,
        }
    }

    /// Polls for the next item to send, and counts it as delivered.
    ///
    /// # Cancel safety
    ///
    /// An item that has not been returned stays for the next call.
    pub(crate) fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<SubscriptionItem> {
        let Poll::Ready(item) = self.subscription.poll_next(context) else {
            match self.subscription.is_caught_up() {
                true => self.permit.record_caught_up(),
                false => {
                    // A subscription that waits for the store or for a tick has not registered.
                    self.subscription.register_waker(context);
                    self.record_backlog();
                }
            }
            return Poll::Pending;
        };
        match &item {
            SubscriptionItem::Event { event, received } => {
                self.permit.record_position(event.position());
                if !self.is_operator_tail {
                    let metrics = self.feed.deliveries(self.transport);
                    metrics.delivered.inc();
                    if let Some(received) = received {
                        metrics.lag.observe(received.elapsed().as_secs_f64());
                    }
                }
            }
            SubscriptionItem::Gap(gap) => self.permit.record_position(gap.position),
        }
        self.deadlines.reset_heartbeat();
        Poll::Ready(item)
    }

    /// Returns the disconnect reason, if there is one, and fixes the last position to deliver: the
    /// log's newest entry at that moment, because entries in memory are lost with the process.
    pub(crate) fn check_disconnect(&mut self) -> Option<DisconnectReason> {
        // Not again with a reason that is known: each mark wakes the subscriber.
        let known = self.permit.disconnect_reason();
        if self.deadlines.has_token_expired() && !known.is_some_and(DisconnectReason::is_urgent) {
            self.permit.disconnect(DisconnectReason::Expired);
        } else if self.deadlines.is_age_reached() && known.is_none() {
            self.permit.disconnect(DisconnectReason::Rotated);
        }
        let reason = self.permit.disconnect_reason()?;
        if self.disconnect_after.is_none() {
            self.disconnect_after = Some(self.feed.log.newest_position());
            if self.subscription.is_on_shard() {
                // The shard may still be delivering to others; the log has the entries already.
                self.subscription.resync_from(0);
            }
        }
        Some(reason)
    }

    /// Returns whether the token has expired.
    pub(crate) fn has_token_expired(&self) -> bool {
        self.deadlines.has_token_expired()
    }

    /// Returns whether a subscriber that has to disconnect has received the log up to that moment.
    ///
    /// Entries in the store count as delivered: they outlive the process, and a resume finds them.
    pub(crate) fn has_delivered_all(&self) -> bool {
        self.disconnect_after.is_some_and(|last| {
            self.is_operator_tail
                || self.subscription.has_passed(last)
                || self.subscription.reads_from_store()
        })
    }

    /// Restarts the heartbeat interval, and returns the id that a heartbeat is to carry: none if
    /// the log has not moved past entries outside the scope.
    pub(crate) fn take_heartbeat_id(&mut self) -> Option<EventId> {
        self.deadlines.reset_heartbeat();
        self.subscription.advance_last_id()
    }

    /// Has `context` woken at the next deadline, and at `other`.
    pub(crate) fn wake_when_idle(&self, other: Deadline, context: &Context<'_>) {
        // Nothing wakes the subscriber when the fan-out reaches the end of the log without an entry
        // for it: check every tick.
        let must_recheck = self.disconnect_after.is_some() || self.subscription.must_poll_again();
        let other = if must_recheck { other.min(self.next_tick()) } else { other };
        self.deadlines.wake_when_idle(other, context);
    }

    /// Returns whether the subscriber must be cut off although its socket is full.
    ///
    /// `grace` is the time that a disconnect for a reason leaves a full socket. If the subscriber
    /// may stay, `context` is woken at `write`, at its end, at its expiry, and on a disconnect.
    pub(crate) fn must_end_while_blocked(
        &mut self,
        write: Deadline,
        grace: impl FnOnce(DisconnectReason) -> Option<Duration>,
        context: &Context<'_>,
    ) -> bool {
        // Before the reason is read: a disconnect after that read wakes the task.
        self.subscription.register_waker(context);
        if let Some(grace) = self.permit.disconnect_reason().and_then(grace) {
            self.deadlines.end_within(grace);
        }
        self.deadlines.wake_while_blocked(write, context.waker());
        self.deadlines.is_end_reached()
    }

    /// Records in the permit that the client does not have everything, for the admin API.
    pub(crate) fn record_backlog(&self) {
        self.permit.record_position(self.subscription.returned_through());
    }

    /// Records a fault.
    pub(crate) fn record_fault(&mut self, fault: SubscriberFault) {
        self.fault = Some(self.fault.map_or(fault, |known| known.min(fault)));
    }

    /// Records a stalled client if a write deadline has ended the connection: the relay's own, or
    /// the kernel's `TCP_USER_TIMEOUT`, which is set to the same time.
    pub(crate) fn record_io_error(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            self.record_fault(SubscriberFault::Stalled);
        }
    }

    /// Returns the product that the subscriber is subscribed to.
    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Returns the transport that it is connected by.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the position in the log and the scope.
    pub(crate) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// Returns the scope.
    pub(crate) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// Returns the deadlines.
    pub(crate) fn deadlines(&mut self) -> &mut SubscriberDeadlines {
        &mut self.deadlines
    }

    /// Returns the next tick.
    pub(crate) fn next_tick(&self) -> Deadline {
        self.deadlines.wheel().deadline_after(Duration::ZERO)
    }

    /// Returns whether queued events may be delivered directly: the log holds nothing for the
    /// subscriber, and it has not been told to disconnect.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.subscription.is_caught_up() && self.disconnect_after.is_none()
    }

    /// Moves the position over an event and returns whether the event is for the subscriber.
    pub(crate) fn accept(&mut self, event: &Event) -> bool {
        self.subscription.accept(event)
    }

    /// Returns the position up to which the subscriber has every entry of its scope.
    pub(crate) fn returned_through(&self) -> u64 {
        self.subscription.returned_through()
    }
}

impl Drop for ConnectedSubscriber {
    fn drop(&mut self) {
        if self.deadlines.has_token_expired() {
            // A blocked subscriber is dropped without another poll, which would have set the
            // reason.
            self.permit.disconnect(DisconnectReason::Expired);
        }
        let reason = match (self.fault, self.permit.disconnect_reason()) {
            (Some(SubscriberFault::Stalled), _) => "stalled",
            (Some(SubscriberFault::Error), _) => "error",
            (_, Some(reason)) => reason.as_str(),
            (Some(SubscriberFault::Violation), None) => "error",
            (None, None) => "client",
        };
        if !self.is_operator_tail {
            self.feed.metrics.disconnects(self.transport, reason).inc();
            self.feed.deliveries(self.transport).subscribers.dec();
        }
        if self.fault == Some(SubscriberFault::Stalled) {
            tracing::debug!(
                product = %self.feed.id,
                "subscriber took nothing for the write time-out"
            );
        }
    }
}
