//! SSE subscriber without a socket: events and gaps in the log's order, heartbeats, and the end.
//!
//! In: items of a [`ConnectedSubscriber`], ticks of the wheel, disconnect reasons. Out:
//! [`SseFrame`]s, for [`SseConnection`](super::SseConnection) or for hyper's body.
//!
//! ```text
//! poll_frame: expired, revoked, removed? ─► end at once
//!             other reason? ─► the log up to its newest entry, then the end
//!             item ─► frame      heartbeat due? ─► heartbeat      else alarm, Pending
//! end: one last `retry:` line, then `None`
//! ```
//!
//! May use: `admission`, `sse`, `subscriber`, `subscription`, `timer_wheel`.

use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::HeaderMap;

use super::frame::{SSE_RETRY_DELAY, SseFrame};
use crate::{
    admission::DisconnectReason, http::problem::jittered, sse, subscriber::ConnectedSubscriber,
    subscription::SubscriptionItem, timer_wheel::Deadline,
};

/// A subscriber whose items become SSE frames.
#[derive(Debug)]
pub(crate) struct SseSubscriber {
    pub(super) connected: ConnectedSubscriber,
    is_finished: bool,
    /// The client is a relay and has not received the heartbeat that ends its replay.
    owes_end_of_replay: bool,
}

impl SseSubscriber {
    /// Returns the frames of a subscriber; the headers tell whether the client is a relay.
    pub(crate) fn new(connected: ConnectedSubscriber, headers: &HeaderMap) -> Self {
        let follows = headers.get("autoplay-relay").is_some_and(|it| it.as_bytes() == b"follow");
        Self { connected, is_finished: false, owes_end_of_replay: follows }
    }

    /// Returns the next frame, or `None` at the end of the stream.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<SseFrame>> {
        if self.is_finished {
            return Poll::Ready(None);
        }
        let reason = self.connected.check_disconnect();
        // At once: what is still in the log stays there for a client with a new token.
        if self.connected.has_token_expired()
            || reason.is_some_and(DisconnectReason::is_immediate)
            || self.connected.has_delivered_all()
        {
            return self.finish();
        }
        if let Poll::Ready(item) = self.connected.poll_item(context) {
            return Poll::Ready(Some(match item {
                SubscriptionItem::Event { event, .. } => SseFrame::Event(event),
                SubscriptionItem::Gap(gap) => {
                    SseFrame::Control(sse::encode_gap(gap.id, &gap.notice_json()))
                }
            }));
        }
        // A second time: `poll_item` has registered the waker, so a disconnect is either seen here
        // or wakes the task.
        if self.connected.check_disconnect().is_some() && self.connected.has_delivered_all() {
            return self.finish();
        }
        if self.is_end_of_replay() || self.connected.deadlines().is_heartbeat_due() {
            return Poll::Ready(Some(SseFrame::Control(self.encode_heartbeat())));
        }
        // Nothing wakes the subscriber when the log has caught up with its own upstream relay:
        // check every tick.
        let recheck = self.owes_end_of_replay.then(|| self.connected.next_tick());
        self.connected.wake_when_idle(recheck.unwrap_or(Deadline::NEVER), context);
        Poll::Pending
    }

    /// Returns whether the client is a relay that has received all of its replay.
    fn is_end_of_replay(&mut self) -> bool {
        self.owes_end_of_replay
            && self.connected.subscription().is_caught_up()
            && self.connected.feed().log.has_caught_up()
    }

    /// Ends the stream with one last line: the reconnection delay.
    fn finish(&mut self) -> Poll<Option<SseFrame>> {
        self.is_finished = true;
        Poll::Ready(Some(SseFrame::Control(sse::encode_retry(jittered(SSE_RETRY_DELAY)))))
    }

    /// Returns a heartbeat, with an id if the log has moved past entries outside the scope.
    ///
    /// For a relay the first heartbeat ends the replay: what follows is live. Comments keep the
    /// connection alive until then.
    fn encode_heartbeat(&mut self) -> Bytes {
        let is_caught_up = self.connected.subscription().is_caught_up();
        let log = &self.connected.feed().log;
        let is_replaying = !is_caught_up || log.is_replaying() || log.is_recovering();
        if self.owes_end_of_replay && is_replaying {
            self.connected.deadlines().reset_heartbeat();
            return sse::encode_keep_alive();
        }
        self.owes_end_of_replay = false;
        sse::encode_heartbeat(self.connected.take_heartbeat_id())
    }

    /// Returns whether queued events may be delivered directly: no entry, no end and no
    /// end-of-replay heartbeat is due.
    pub(super) fn is_caught_up(&self) -> bool {
        self.connected.is_caught_up() && !self.is_finished && !self.owes_end_of_replay
    }
}
