//! WebSocket subscriber without a socket: its items as framed messages, and its filter.
//!
//! In: items of a [`ConnectedSubscriber`], filters of the client. Out: framed messages.
//!
//! May use: `auth`, `event`, `subscriber`, `subscription`, `ws_frame`.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::message;
use crate::{
    auth::Grant, event::Scope, subscriber::ConnectedSubscriber, subscription::SubscriptionItem,
    ws_frame::text_frame,
};

/// A subscriber whose items become WebSocket messages.
#[derive(Debug)]
pub(super) struct WsSubscriber {
    pub(super) connected: ConnectedSubscriber,
    grant: Grant,
    /// Scope that the client has requested and the shard's index does not have yet.
    requested_scope: Option<Scope>,
}

impl WsSubscriber {
    /// Returns the messages of a subscriber; `grant` limits the filters that it may ask for.
    pub(super) fn new(connected: ConnectedSubscriber, grant: Grant) -> Self {
        Self { connected, grant, requested_scope: None }
    }

    /// Returns the next framed message.
    pub(super) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        // The answer to the filter is on its way; no event of the old scope may follow it.
        if self.requested_scope.is_some() {
            return Poll::Pending;
        }
        self.connected.poll_item(context).map(|item| match item {
            SubscriptionItem::Event { event, .. } => self.connected.feed().ws_message(&event),
            SubscriptionItem::Gap(gap) => text_frame(&[message::encode_gap(&gap).as_bytes()]),
        })
    }

    /// Returns a heartbeat if one is due, with an id if the log has moved past entries outside the
    /// scope.
    pub(super) fn take_heartbeat(&mut self) -> Option<Bytes> {
        self.connected.deadlines().is_heartbeat_due().then(|| {
            let id = self.connected.take_heartbeat_id();
            text_frame(&[message::encode_heartbeat(id).as_bytes()])
        })
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
                match self.connected.subscription().is_on_shard() {
                    true => self.requested_scope = Some(scope),
                    false => self.connected.subscription().change_scope(scope),
                }
                answer
            }
            Err(title) => message::encode_error(&title),
        };
        text_frame(&[answer.as_bytes()])
    }

    /// Takes the scope that the client has requested since the last call.
    pub(super) fn take_requested_scope(&mut self) -> Option<Scope> {
        self.requested_scope.take()
    }

    /// Returns whether queued events may be delivered directly.
    pub(super) fn is_caught_up(&self) -> bool {
        self.connected.is_caught_up() && self.requested_scope.is_none()
    }
}
