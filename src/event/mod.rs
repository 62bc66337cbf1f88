//! The words every room shares: products, sessions, kinds, ids, events and gaps.
//!
//! Plain values; nothing here waits, locks or logs.
//!
//! May use: `sse`.

mod id;
mod kind;
mod scope;

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::{
    id::{EventId, ProductId, SessionId, StartPosition},
    kind::Kind,
    scope::{Only, Scope},
};
use crate::sse::{self, EncodedEvent};

/// One event of a product's log, in the form it is sent. Shared by reference; its bytes are copied
/// once, when it gets its id.
#[derive(Debug)]
pub(crate) struct Event {
    id: EventId,
    position: u64,
    kind: Kind,
    session: Option<SessionId>,
    chunk: Bytes,
    /// Where in the chunk the frame stands.
    frame: Range<usize>,
    payload: Bytes,
    received: Option<Instant>,
}

impl Event {
    /// Encodes a draft under the id and at the place it has been given: the one copy of its
    /// payload.
    pub(crate) fn new(id: EventId, position: u64, draft: Draft) -> Self {
        let Draft { kind, session, received, .. } = draft;
        let EncodedEvent { chunk, frame, payload } = sse::encode_event(id, &draft.payload);
        Self { id, position, kind, session, chunk, frame, payload, received: Some(received) }
    }

    /// An event as it comes back from where it was kept.
    pub(crate) fn restored(
        id: EventId,
        position: u64,
        kind: Kind,
        session: Option<SessionId>,
        payload: &[u8],
    ) -> Self {
        let EncodedEvent { chunk, frame, payload } = sse::encode_event(id, payload);
        Self { id, position, kind, session, chunk, frame, payload, received: None }
    }

    /// Its name for clients.
    pub(crate) fn id(&self) -> EventId {
        self.id
    }

    /// Its place in the product's log: 1 for the first entry, and one more for each after it.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// What the payload's `type` says.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The session it belongs to, if any.
    pub(crate) fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// The frame an SSE subscriber receives, blank line included.
    pub(crate) fn wire(&self) -> Bytes {
        self.chunk.slice(self.frame.clone())
    }

    /// The same as a chunk of an HTTP/1.1 body.
    pub(crate) fn http1_chunk(&self) -> &Bytes {
        &self.chunk
    }

    /// The payload, byte for byte as the upstream sent it.
    pub(crate) fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    /// When its last byte came from the upstream; none when it comes from the store.
    pub(crate) fn received(&self) -> Option<Instant> {
        self.received
    }

    /// Bytes of payload, session and kind.
    pub(crate) fn content_bytes(&self) -> u64 {
        let session = self.session.as_ref().map_or(0, |session| session.as_str().len());
        (self.payload.len() + session + self.kind.as_str().len()) as u64
    }

    /// Bytes it keeps in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let session = self.session.as_ref().map_or(0, |session| session.as_str().len());
        // A payload of several lines is no slice of the frame.
        let own_payload = if self.payload.contains(&b'\n') { self.payload.len() } else { 0 };
        self.chunk.len() + own_payload + session + self.kind.heap_bytes() + size_of::<Self>()
    }
}

/// An event before it has an id: what the envelope made of a frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    /// What the payload's `type` says.
    pub(crate) kind: Kind,
    /// The session it belongs to, if any.
    pub(crate) session: Option<SessionId>,
    /// When the connector forwarded it, in Unix seconds, if the payload says so as a number.
    pub(crate) forwarded_at: Option<f64>,
    /// The payload's bytes as the upstream sent them.
    pub(crate) payload: Bytes,
    /// When its last byte came from the upstream.
    pub(crate) received: Instant,
}

/// One entry of a product's log.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// Something a user did, or was told.
    Event(Arc<Event>),
    /// A place at which events may be missing.
    Gap(Arc<Gap>),
    /// An event that has been erased. Nobody sees it, and nothing is missing.
    Erased,
}

impl Entry {
    /// Bytes it takes on an SSE connection, as far as a bound on a hand-over needs to know.
    pub(crate) fn wire_bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.frame.len(),
            Self::Gap(_) => size_of::<Gap>(),
            Self::Erased => 0,
        }
    }
}

impl Scope {
    /// Whether the subscriber sees this entry. A gap passes every filter.
    pub(crate) fn admits(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Gap(_) => true,
            Entry::Erased => false,
            Entry::Event(event) => self.includes(event.session(), event.kind()),
        }
    }
}

/// A notice that events may be missing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gap {
    /// Whose log it is in.
    pub(crate) product: ProductId,
    /// Why events may be missing.
    pub(crate) reason: GapReason,
    /// The place in the log up to which it tells.
    pub(crate) position: u64,
    /// The id from which a resume repeats neither the gap nor an event.
    pub(crate) id: EventId,
    /// The last id before it; none when there is none, or when a client's id was malformed.
    pub(crate) after: Option<Box<str>>,
    /// The next id, if known.
    pub(crate) before: Option<EventId>,
}

impl Gap {
    /// The notice as subscribers read it, in JSON.
    pub(crate) fn notice_json(&self) -> String {
        let notice = GapNotice {
            kind: "gap",
            product_id: self.product.as_str(),
            reason: self.reason.as_str(),
            after: self.after.as_deref(),
            before: self.before.map(|id| id.to_string()),
        };
        // Texts and nulls can always be written.
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

/// Why events may be missing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GapReason {
    /// The upstream connection was lost; the connector sends nothing twice.
    UpstreamReconnect,
    /// The log no longer keeps what the subscriber had not seen.
    Evicted,
    /// The id the subscriber came with is not one of this log.
    UnknownId,
    /// The store could not keep these entries.
    NotKept,
}

impl GapReason {
    /// Every reason, for metrics that show a zero before the first.
    pub(crate) const ALL: [Self; 4] =
        [Self::UpstreamReconnect, Self::Evicted, Self::UnknownId, Self::NotKept];

    /// As it stands in gap notices and metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UpstreamReconnect => "upstream_reconnect",
            Self::Evicted => "evicted",
            Self::UnknownId => "unknown_id",
            Self::NotKept => "not_kept",
        }
    }

    /// The reason that stands in a notice as `text`.
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
        let notice = r#"{"type":"gap","product_id":"p\"1","reason":"unknown_id","after":null,"before":null}"#;
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
