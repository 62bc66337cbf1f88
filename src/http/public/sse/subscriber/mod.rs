//! SSE subscriber without a socket: events and gaps in the log's order, heartbeats, and the end.
//!
//! In: items of a [`Subscription`], ticks of the wheel, disconnect reasons. Out: [`SseFrame`]s, for
//! [`SseConnection`](super::SseConnection) or for hyper's body.
//!
//! ```text
//! poll_frame: expired, revoked, removed? ─► end at once
//!             other reason? ─► the log up to its newest entry, then the end
//!             item ─► frame      heartbeat due? ─► heartbeat      else alarm, Pending
//! end: one last `retry:` line, then `None`
//! ```
//!
//! May use: `event`, `feed`, `metrics`, `net`, `sse`, `subscription`, `timer_wheel`.

mod admit;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::frame::{SSE_RETRY_DELAY, SseFrame};
use crate::{
    event::{Event, Scope},
    feed::Feed,
    http::{
        admission::{AdmissionPermit, DisconnectReason},
        problem::jittered,
    },
    metrics::Transport,
    net::ForcedClose,
    sse,
    subscription::{Subscription, SubscriptionItem},
    timer_wheel::{Alarm, TimerWheel},
};

/// Life cycle of one SSE subscriber: permit, subscription, heartbeats, token expiry, disconnect.
#[derive(Debug)]
pub(crate) struct SseSubscriber {
    subscription: Subscription,
    permit: AdmissionPermit,
    feed: Arc<Feed>,
    is_operator_tail: bool,
    fault: Option<StreamFault>,
    /// Ends a stream whose body hyper does not poll. `None` on a shard, which polls a full socket's
    /// subscriber at its deadlines.
    forced_close: Option<Arc<ForcedClose>>,
    alarm: Alarm,
    /// Position of the last entry to deliver, once there is a disconnect reason.
    disconnect_after: Option<u64>,
    is_finished: bool,
    /// The client is a relay and has not received the heartbeat that ends its replay.
    owes_end_of_replay: bool,
    /// Heartbeat interval in ticks.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    rotation_due: u64,
    /// `None` without a token that expires.
    token_expiry: Option<Box<TokenExpiry>>,
    /// Tick at which the stream ends even if the client accepts nothing.
    end_due: u64,
}

/// Expiry of the subscriber's token.
#[derive(Debug)]
struct TokenExpiry {
    expires_at: Instant,
    /// Tick at which the subscriber is woken for it.
    expiry_due: u64,
}

/// Fault that ends a stream without a disconnect reason.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamFault {
    /// The client accepted nothing for `write_timeout`.
    Stalled,
    /// The subscriber's work has panicked.
    Error,
}

impl StreamFault {
    /// Returns the value of the metric label `reason`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Error => "error",
        }
    }
}

impl SseSubscriber {
    /// Returns the next frame, or `None` at the end of the stream.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<SseFrame>> {
        let frame = self.poll_frame(context);
        if let Poll::Ready(Some(_)) = &frame {
            self.reset_heartbeat();
        }
        frame
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<SseFrame>> {
        if self.is_finished {
            return Poll::Ready(None);
        }
        if self.has_expired() {
            // At once: what is still in the log stays there for a client with a new token.
            self.permit.disconnect(DisconnectReason::Expired);
            return self.finish();
        }
        if self.permit.disconnect_reason().is_some_and(DisconnectReason::is_immediate) {
            return self.finish();
        }
        self.apply_disconnect();
        if self.is_operator_tail && self.disconnect_after.is_some() {
            return self.finish(); // the fan-out may have ended: nothing would move the position on
        }
        if self.disconnect_after.is_some_and(|last| {
            self.subscription.has_passed(last) || self.subscription.reads_from_store()
        }) {
            return self.finish(); // entries in the store outlive the process: resume finds them
        }
        if let Poll::Ready(item) = self.subscription.poll_next(context) {
            return Poll::Ready(Some(self.frame_for(item)));
        }
        self.record_progress();
        // A second time: `poll_next` has registered the waker, so a disconnect is either seen here
        // or wakes the task.
        self.apply_disconnect();
        let is_delivered = |last| self.is_operator_tail || self.subscription.has_passed(last);
        if self.disconnect_after.is_some_and(is_delivered) {
            return self.finish();
        }
        // Nothing wakes the subscriber when the fan-out reaches the end of the log without an entry
        // for it, nor when the log has caught up with its own upstream relay: check every tick.
        let must_recheck = self.disconnect_after.is_some()
            || self.subscription.must_poll_again()
            || self.owes_end_of_replay;
        let is_end = self.owes_end_of_replay
            && self.subscription.is_caught_up()
            && self.feed.log.has_caught_up();
        if is_end || self.alarm.wheel().current_tick() >= self.heartbeat_due {
            return Poll::Ready(Some(SseFrame::Control(self.encode_heartbeat())));
        }
        let due = self
            .heartbeat_due
            .min(self.rotation_due)
            .min(self.token_expiry.as_ref().map_or(u64::MAX, |term| term.expiry_due));
        let due =
            if must_recheck { due.min(self.alarm.wheel().tick_after(Duration::ZERO)) } else { due };
        self.alarm.set(due, context.waker());
        Poll::Pending
    }

    /// Returns whether the token has expired. Reads the clock as well, for the wheel may stall.
    fn has_expired(&self) -> bool {
        self.token_expiry.as_ref().is_some_and(|term| {
            self.wheel().current_tick() >= term.expiry_due || Instant::now() >= term.expires_at
        })
    }

    /// Restarts the heartbeat interval.
    pub(super) fn reset_heartbeat(&mut self) {
        self.heartbeat_due = self.wheel().current_tick() + self.heartbeat_ticks;
    }

    /// Turns a disconnect reason into the last position to deliver: the log's newest entry at that
    /// moment, because entries in memory are lost with the process.
    fn apply_disconnect(&mut self) {
        if self.alarm.wheel().current_tick() >= self.rotation_due {
            self.permit.disconnect(DisconnectReason::Rotated);
        }
        if self.disconnect_after.is_none() && self.permit.disconnect_reason().is_some() {
            self.disconnect_after = Some(self.feed.log.newest_position());
            if self.subscription.is_on_shard() {
                // The shard may still be delivering to others; the log has the entries already.
                self.subscription.resync_from(0);
            }
        }
    }

    /// Ends the stream with one last line: the reconnection delay.
    fn finish(&mut self) -> Poll<Option<SseFrame>> {
        self.is_finished = true;
        Poll::Ready(Some(SseFrame::Control(sse::encode_retry(jittered(SSE_RETRY_DELAY)))))
    }

    fn frame_for(&mut self, item: SubscriptionItem) -> SseFrame {
        match item {
            SubscriptionItem::Event { event, received } => {
                self.permit.record_position(event.position());
                if !self.is_operator_tail {
                    self.feed.sse.delivered.inc();
                    if let Some(received) = received {
                        self.feed.sse.lag.observe(received.elapsed().as_secs_f64());
                    }
                }
                SseFrame::Event(event)
            }
            SubscriptionItem::Gap(gap) => {
                self.permit.record_position(gap.position);
                SseFrame::Control(sse::encode_gap(gap.id, &gap.notice_json()))
            }
        }
    }

    /// Records the position in the permit, for the admin API, before the subscriber sleeps.
    fn record_progress(&self) {
        match self.subscription.is_caught_up() {
            true => self.permit.record_caught_up(),
            false => self.permit.record_position(self.subscription.returned_through()),
        }
    }

    /// Returns a heartbeat, with an id if the log has moved past entries outside the scope.
    ///
    /// For a relay the first heartbeat ends the replay: what follows is live. Comments keep the
    /// connection alive until then.
    fn encode_heartbeat(&mut self) -> Bytes {
        let log = &self.feed.log;
        let is_replaying =
            !self.subscription.is_caught_up() || log.is_replaying() || log.is_recovering();
        if self.owes_end_of_replay && is_replaying {
            return sse::encode_keep_alive();
        }
        self.owes_end_of_replay = false;
        sse::encode_heartbeat(self.subscription.advance_last_id())
    }

    /// Returns whether the stream must end although its socket is full.
    ///
    /// If not, `context` is woken at tick `due`, at the end of the token, and on a disconnect.
    pub(super) fn check_end(&mut self, due: u64, context: &Context<'_>) -> bool {
        // Before the reason is read: a disconnect after that read wakes the task.
        self.subscription.register_waker(context);
        if self
            .permit
            .disconnect_reason()
            .is_some_and(|reason| reason == DisconnectReason::Kicked || reason.is_immediate())
        {
            self.end_due = self.end_due.min(self.wheel().tick_after(FINAL_WRITE_GRACE));
        }
        self.alarm.set(due.min(self.end_due), context.waker());
        self.wheel().current_tick() >= self.end_due
    }

    /// Returns the timer wheel.
    pub(super) fn wheel(&self) -> &TimerWheel {
        self.alarm.wheel()
    }

    /// Returns the product that the subscriber is subscribed to.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Returns the position in the log and the scope.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// Returns the scope.
    pub(super) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// Records a fault, which takes precedence over a disconnect reason.
    pub(super) fn record_fault(&mut self, fault: StreamFault) {
        self.fault = Some(fault);
    }
}

/// Methods for delivery on a shard.
impl SseSubscriber {
    /// Returns whether queued events may be delivered directly: the log holds nothing for the
    /// subscriber, and no end or end-of-replay heartbeat is due.
    pub(super) fn is_caught_up(&self) -> bool {
        self.subscription.is_caught_up()
            && self.disconnect_after.is_none()
            && !self.is_finished
            && !self.owes_end_of_replay
    }

    /// Makes the next poll re-read the log from `position`.
    pub(super) fn fall_back_to_log(&mut self, position: u64) {
        self.subscription.resync_from(position);
    }

    /// Returns whether the token has expired at `now`.
    pub(super) fn is_token_expired(&self, now: Instant) -> bool {
        self.token_expiry.as_ref().is_some_and(|term| now >= term.expires_at)
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
        self.permit.record_position(self.position());
    }
}

impl Drop for SseSubscriber {
    fn drop(&mut self) {
        if self.has_expired() {
            // A blocked body is dropped without another poll, which would have set the reason.
            self.permit.disconnect(DisconnectReason::Expired);
        }
        if let Some(forced_close) = &self.forced_close {
            forced_close.cancel();
        }
        let reason = match self.permit.disconnect_reason() {
            _ if let Some(fault) = self.fault => fault.as_str(),
            Some(reason) => reason.as_str(),
            None => "client",
        };
        if !self.is_operator_tail {
            self.feed.metrics.disconnects(Transport::Sse, reason).inc();
            self.feed.sse.subscribers.dec();
        }
        if matches!(self.fault, Some(StreamFault::Stalled)) {
            tracing::debug!(
                product = %self.feed.id,
                "subscriber took nothing for the write time-out"
            );
        }
    }
}

/// Time for a full socket to accept the last bytes of a kicked, revoked or removed subscriber,
/// which must be gone within a second.
const FINAL_WRITE_GRACE: Duration = Duration::from_millis(700);
