//! Vocabulary of the crate: events, gaps, and the log entries they are.
//!
//! ```text
//!  envelope ─► Draft ── log.append: id, position ──► Event ─┐
//!                                                           ├─► Entry ─► log, fan-out, subscribers
//!                        log.append_gap ───────────► Gap ───┘
//! ```
//!
//! Plain values: nothing here waits, locks or logs.
//!
//! May use: `sse`.

mod erased;
mod id;
mod kind;
mod scope;
mod value_set;

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::{
    erased::ErasedEvents,
    id::{EventId, InvalidName, ProductId, SessionId, StartPosition, UserId, VisitorId},
    kind::Kind,
    scope::{NarrowestLimit, Only, Scope, ScopeKey},
};
use crate::sse::{self, EncodedEvent, EncodedPayload};

/// One event of a product's log, in the form in which it is sent. Shared by reference: ring, store,
/// subscribers and webhooks read the same buffer.
#[derive(Debug)]
pub(crate) struct Event {
    id: EventId,
    position: u64,
    kind: Kind,
    session: Option<SessionId>,
    user: Option<UserId>,
    /// The one buffer of the event: an HTTP/1.1 chunk around an SSE frame around the payload.
    chunk: Bytes,
    /// Range of the SSE frame within `chunk`.
    frame: Range<usize>,
    payload: EncodedPayload,
    received: Option<Instant>,
}

impl Event {
    /// Encodes a draft under its id, at its position. This is the only copy of the payload; without
    /// it a small event would pin the whole buffer that it was read into.
    pub(crate) fn new(id: EventId, position: u64, draft: Draft) -> Self {
        let Draft { kind, session, user, received, .. } = draft;
        let EncodedEvent { chunk, frame, payload } =
            sse::encode_event(id.text().as_str(), &draft.payload);
        let received = Some(received);
        Self { id, position, kind, session, user, chunk, frame, payload, received }
    }

    /// Rebuilds an event that the store has persisted, in the same bytes as when it was new.
    pub(crate) fn restored(
        id: EventId,
        position: u64,
        kind: Kind,
        (session, user): (Option<SessionId>, Option<UserId>),
        payload: &[u8],
    ) -> Self {
        let EncodedEvent { chunk, frame, payload } = sse::encode_event(id.text().as_str(), payload);
        Self { id, position, kind, session, user, chunk, frame, payload, received: None }
    }

    /// Returns the id by which clients know the event.
    pub(crate) fn id(&self) -> EventId {
        self.id
    }

    /// Returns the event's position in its product's log: 1 for the first entry, and one more for
    /// each after it.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the payload's `type`.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Returns the session that the event belongs to, if any.
    pub(crate) fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// Returns the user that the event belongs to, if any.
    pub(crate) fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// Returns the parts of the event that a scope judges it by.
    pub(crate) fn scope_key(&self) -> ScopeKey<'_> {
        ScopeKey { session: self.session(), user: self.user(), kind: &self.kind }
    }

    /// Returns the frame that an SSE subscriber receives, blank line included.
    pub(crate) fn sse_frame(&self) -> Bytes {
        self.chunk.slice(self.frame.clone())
    }

    /// Returns that frame as a chunk of an HTTP/1.1 body (RFC 9112, section 7.1), so that it is
    /// written to a socket from memory as it is.
    pub(crate) fn http1_chunk(&self) -> &Bytes {
        &self.chunk
    }

    /// Returns the payload, byte for byte as the upstream sent it: a view of the frame, unless the
    /// payload spans several lines.
    pub(crate) fn payload(&self) -> Bytes {
        self.payload.bytes_in(&self.chunk)
    }

    /// Returns the payload without a reference of its own, which would be an allocation.
    pub(crate) fn payload_slice(&self) -> &[u8] {
        self.payload.slice_of(&self.chunk)
    }

    /// Returns when the event's last byte came from the upstream; none for an event from the store.
    pub(crate) fn received(&self) -> Option<Instant> {
        self.received
    }

    /// Returns the bytes of payload, session, user and kind: the event's share of the log's disk
    /// usage.
    pub(crate) fn content_bytes(&self) -> u64 {
        (self.payload.len() + self.name_bytes() + self.kind.as_str().len()) as u64
    }

    /// Returns the bytes of memory that the event pins.
    pub(crate) fn size_bytes(&self) -> usize {
        let own_payload = match &self.payload {
            EncodedPayload::InChunk(_) => 0,
            EncodedPayload::Own(payload) => payload.len(),
        };
        let heap_bytes = own_payload + self.name_bytes() + self.kind.heap_bytes();
        self.chunk.len() + heap_bytes + size_of::<Self>()
    }

    /// Returns the bytes of the names of session and user.
    fn name_bytes(&self) -> usize {
        let session = self.session.as_ref().map_or(0, |session| session.as_str().len());
        session + self.user.as_ref().map_or(0, |user| user.as_str().len())
    }
}

/// An event before it has an id and a position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    /// The payload's `type`.
    pub(crate) kind: Kind,
    /// The session that the event belongs to, if any.
    pub(crate) session: Option<SessionId>,
    /// The user that the event belongs to, if any.
    pub(crate) user: Option<UserId>,
    /// Time at which the connector forwarded the event, in Unix seconds, if the payload has it as a
    /// number.
    pub(crate) forwarded_at: Option<f64>,
    /// The payload's bytes as the upstream sent them.
    pub(crate) payload: Bytes,
    /// Time at which the event's last byte came from the upstream.
    pub(crate) received: Instant,
}

impl Draft {
    /// Returns the parts of the event that a scope judges it by.
    pub(crate) fn scope_key(&self) -> ScopeKey<'_> {
        ScopeKey { session: self.session.as_ref(), user: self.user.as_ref(), kind: &self.kind }
    }
}

/// One entry of a product's log.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// An event.
    Event(Arc<Event>),
    /// A point in the log at which events may be missing.
    Gap(Arc<Gap>),
    /// An event that has been erased. It keeps its position, no subscriber receives it, and it is
    /// not a loss.
    Erased,
}

impl Entry {
    /// Returns the bytes that the entry takes on an SSE connection: an estimate, for the bound on
    /// one read.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Event(event) => event.frame.len(),
            Self::Gap(_) => size_of::<Gap>(),
            Self::Erased => 0,
        }
    }
}

impl Scope {
    /// Returns whether the subscriber receives this entry. A gap passes every filter, because the
    /// sessions of what is missing are unknown.
    pub(crate) fn admits(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Gap(_) => true,
            Entry::Erased => false,
            Entry::Event(event) => self.includes(event.scope_key()),
        }
    }
}

/// A notice that events may be missing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gap {
    /// Product of the log.
    pub(crate) product: ProductId,
    /// Reason for which events may be missing.
    pub(crate) reason: GapReason,
    /// Last position that the gap covers; reading continues after it.
    pub(crate) position: u64,
    /// Id from which a resume repeats neither the gap nor an event.
    pub(crate) id: EventId,
    /// Last id before the gap. Text, because it is returned as the client sent it; none when there
    /// is none, or when the client's id was malformed.
    pub(crate) after: Option<Box<str>>,
    /// Next id after the gap, if known.
    pub(crate) before: Option<EventId>,
}

impl Gap {
    /// Returns the notice in JSON, as subscribers receive it.
    pub(crate) fn notice_json(&self) -> String {
        let notice = GapNotice {
            kind: "gap",
            product_id: self.product.as_str(),
            reason: self.reason.as_str(),
            after: self.after.as_deref(),
            before: self.before.map(|id| id.to_string()),
        };
        // Strings and nulls always serialise.
        serde_json::to_string(&notice).unwrap_or_default()
    }
}

#[derive(serde::Serialize)]
struct GapNotice<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    product_id: &'a str,
    reason: &'static str,
    after: Option<&'a str>,
    before: Option<String>,
}

/// Reasons for which events may be missing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GapReason {
    /// The upstream connection was lost, and the connector sends no event twice.
    UpstreamReconnect,
    /// The log no longer has entries that the subscriber had not received.
    Evicted,
    /// The subscriber's id is not one of this log.
    UnknownId,
    /// The store could not persist these entries.
    NotKept,
}

impl GapReason {
    /// Every reason, for metrics that show a zero before the first.
    pub(crate) const ALL: [Self; 4] =
        [Self::UpstreamReconnect, Self::Evicted, Self::UnknownId, Self::NotKept];

    /// Returns the reason as gap notices and metric labels spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UpstreamReconnect => "upstream_reconnect",
            Self::Evicted => "evicted",
            Self::UnknownId => "unknown_id",
            Self::NotKept => "not_kept",
        }
    }

    /// Returns the reason that `text` spells in a notice.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_notice_says_what_is_missing_and_between_which_ids() {
        let mut gap = Gap {
            product: ProductId::new("p\"1").unwrap(),
            reason: GapReason::UnknownId,
            position: 3,
            id: EventId::new(7, 3),
            after: None,
            before: None,
        };
        let notice = concat!(
            r#"{"type":"gap","product_id":"p\"1","reason":"unknown_id","#,
            r#""after":null,"before":null}"#
        );
        assert_eq!(gap.notice_json(), notice);
        gap.after = Some("1-2".into());
        gap.before = Some(EventId::new(7, 4));
        assert!(
            gap.notice_json().ends_with(r#""after":"1-2","before":"7-4"}"#),
            "{}",
            gap.notice_json()
        );
    }
}
