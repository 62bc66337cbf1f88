//! What one SSE subscriber receives, without its socket: events and gaps as the log has them, heartbeats in between, and an end.
//!
//! May use: `event`, `fanout`, `metrics`, `net`, `sse`, `wheel`.

mod admit;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{SSE_RETRY_DELAY, frame::SseFrame};
use crate::{
    event::{Event, Scope},
    fanout::{Subscription, SubscriptionItem},
    feed::Feed,
    http::{
        admission::{AdmissionPermit, DisconnectReason},
        problem::jittered,
    },
    metrics::Transport,
    net::ForcedClose,
    sse,
    timer_wheel::{Alarm, TimerWheel},
};

/// What one subscriber receives.
#[derive(Debug)]
pub(crate) struct SseSubscriber {
    subscription: Subscription,
    permit: AdmissionPermit,
    feed: Arc<Feed>,
    is_operator_tail: bool,
    fault: Option<StreamFault>,
    /// Ends it while nothing is asked of it; where its socket is its own, that is not needed.
    forced_close: Option<Arc<ForcedClose>>,
    alarm: Alarm,
    /// Place of the last entry it gets, once it has been told to leave.
    disconnect_after: Option<u64>,
    is_finished: bool,
    /// A relay asks: it has not been told yet that the replay is at its end.
    owes_end_of_replay: bool,
    /// Ticks of silence after which there is a heartbeat.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    rotation_due: u64,
    /// None where there is no token whose time may be over.
    token_expiry: Option<Box<TokenExpiry>>,
    /// The tick at which it is over for whoever takes nothing, too.
    end_due: u64,
}

/// The time of a token.
#[derive(Debug)]
struct TokenExpiry {
    /// When it is over, and the tick at which its subscriber is woken for that.
    expires_at: Instant,
    expiry_due: u64,
}

/// What ended a stream that was not told to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamFault {
    /// The client took nothing for too long.
    Stalled,
    /// The relay has made a mistake.
    Error,
}

impl StreamFault {
    /// As it stands in metric labels.
    fn as_str(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Error => "error",
        }
    }
}

impl SseSubscriber {
    /// What is to be sent next, none when the stream is at its end.
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
            // At once, whatever is still in the log: it is there for whoever comes back with a new token.
            self.permit.disconnect(DisconnectReason::Expired);
            return self.finish();
        }
        if self.permit.disconnect_reason().is_some_and(DisconnectReason::is_immediate) {
            return self.finish();
        }
        self.apply_disconnect();
        if self.is_operator_tail && self.disconnect_after.is_some() {
            return self.finish(); // the fan-out may be gone before it
        }
        if self.disconnect_after.is_some_and(|last| {
            self.subscription.has_passed(last) || self.subscription.reads_from_store()
        }) {
            return self.finish(); // what is in the store is there for whoever comes back
        }
        if let Poll::Ready(item) = self.subscription.poll_next(context) {
            return Poll::Ready(Some(self.frame_for(item)));
        }
        self.record_progress();
        // Again, now that whoever dismisses it knows whom to wake.
        self.apply_disconnect();
        let is_delivered = |last| self.is_operator_tail || self.subscription.has_passed(last);
        if self.disconnect_after.is_some_and(is_delivered) {
            return self.finish();
        }
        // Who is leaving waits for the fan-out to come to the end of the log, which takes it no longer than a tick.
        // So does a relay that asks, until the log it reads has caught up itself.
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

    /// Whether its token's time is over. The clock is asked, too: the wheel could stand still.
    fn has_expired(&self) -> bool {
        self.token_expiry.as_ref().is_some_and(|term| {
            self.wheel().current_tick() >= term.expiry_due || Instant::now() >= term.expires_at
        })
    }

    /// From now on it is silent.
    pub(super) fn reset_heartbeat(&mut self) {
        self.heartbeat_due = self.wheel().current_tick() + self.heartbeat_ticks;
    }

    /// Who is dismissed still gets what is in the log at that moment: memory is gone with the process.
    fn apply_disconnect(&mut self) {
        if self.alarm.wheel().current_tick() >= self.rotation_due {
            self.permit.disconnect(DisconnectReason::Rotated);
        }
        if self.disconnect_after.is_none() && self.permit.disconnect_reason().is_some() {
            self.disconnect_after = Some(self.feed.log.newest_position());
            if self.subscription.is_on_shard() {
                self.subscription.resync_from(0); // its lane may be long at giving to others
            }
        }
    }

    /// One last line: when to come back.
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

    /// Tells its seat where it stands when it falls asleep.
    fn record_progress(&self) {
        match self.subscription.is_caught_up() {
            true => self.permit.record_caught_up(),
            false => self.permit.record_position(self.subscription.returned_through()),
        }
    }

    /// Moves the client's id on where the log has moved past what its filter let through. To a relay, the first one says that
    /// what comes from now on is news.
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

    /// While its socket takes nothing: whether it has to go all the same. If not, `context` is woken when that may have changed,
    /// and at tick `due`.
    pub(super) fn check_end(&mut self, due: u64, context: &Context<'_>) -> bool {
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

    /// The timer.
    pub(super) fn wheel(&self) -> &TimerWheel {
        self.alarm.wheel()
    }

    /// The product it is of.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Its place in the log.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// What it may see.
    pub(super) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// It has not come to its end in the way it was told.
    pub(super) fn record_fault(&mut self, fault: StreamFault) {
        self.fault = Some(fault);
    }
}

/// How the lane's task gives a follower what arrives, as long as it has everything.
impl SseSubscriber {
    /// Whether there is nothing else to be said to it than what arrives.
    pub(super) fn is_caught_up(&self) -> bool {
        self.subscription.is_caught_up()
            && self.disconnect_after.is_none()
            && !self.is_finished
            && !self.owes_end_of_replay
    }

    /// It is to be polled, and looks into the log, from `place` on.
    pub(super) fn fall_back_to_log(&mut self, position: u64) {
        self.subscription.resync_from(position);
    }

    /// Whether its token's time is over at this moment.
    pub(super) fn is_token_expired(&self, now: Instant) -> bool {
        self.token_expiry.as_ref().is_some_and(|term| now >= term.expires_at)
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
        self.permit.record_position(self.position());
    }
}

impl Drop for SseSubscriber {
    fn drop(&mut self) {
        if self.has_expired() {
            self.permit.disconnect(DisconnectReason::Expired); // nobody asked it for its last bytes
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
            tracing::debug!(product = %self.feed.id, "subscriber took nothing for the write time-out");
        }
    }
}

/// What whoever is sent away may take to make room for its last bytes.
const FINAL_WRITE_GRACE: Duration = Duration::from_millis(700);
