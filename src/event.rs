//! The words every room shares: products, sessions, kinds, ids, events and gaps.
//!
//! Plain values; nothing here waits, locks or logs.
//!
//! May use: `sse`.

use std::{collections::BTreeSet, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

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
        let session = self.session.as_ref().map_or(0, |session| session.0.len());
        (self.payload.len() + session + self.kind.as_str().len()) as u64
    }

    /// Bytes it keeps in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let session = self.session.as_ref().map_or(0, |session| session.0.len());
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

/// Names an entry for ever: `<epoch>-<sequence>`, opaque to clients. Ordered within an epoch.
///
/// A relay behind a relay keeps that one's ids. An entry of its own then takes the id before it
/// with a suffix: `<epoch>-<sequence>.<suffix>`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct EventId {
    /// Which life of the log: about the Unix milliseconds at its start, and never that of another
    /// life.
    pub(crate) epoch: u64,
    /// Grows with every entry. 0 is the place before everything: an id to resume from, never an
    /// entry's own.
    pub(crate) sequence: u64,
    /// 0 for none.
    pub(crate) suffix: u32,
}

impl EventId {
    /// An id without a suffix.
    pub(crate) fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence, suffix: 0 }
    }

    /// Reads an id in the one form it is written; anything else is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (epoch, rest) = text.split_once('-')?;
        let (sequence, suffix) = match rest.split_once('.') {
            Some((sequence, suffix)) => {
                (sequence, u32::try_from(canonical_number(suffix)?).ok().filter(|it| *it > 0)?)
            }
            None => (rest, 0),
        };
        Some(Self {
            epoch: canonical_number(epoch)?,
            sequence: canonical_number(sequence)?,
            suffix,
        })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)?;
        match self.suffix {
            0 => Ok(()),
            suffix => write!(f, ".{suffix}"),
        }
    }
}

/// Digits without sign or leading zero, so that two texts never name one entry.
fn canonical_number(digits: &str) -> Option<u64> {
    let has_leading_zero = digits.len() > 1 && digits.starts_with('0');
    let is_canonical = !has_leading_zero && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_canonical { digits.parse().ok() } else { None }
}

/// Where a subscriber wants to begin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StartPosition {
    /// With what comes from now on.
    Now,
    /// With the oldest entry kept.
    Oldest,
    /// Behind this id.
    After(EventId),
    /// With a malformed id: a gap notice, then the oldest entry kept.
    Malformed,
}

impl StartPosition {
    /// What a `Last-Event-ID` asks for. Never an error: a browser's `EventSource` would give up for
    /// good.
    pub(crate) fn parse(last_event_id: &[u8]) -> Self {
        match std::str::from_utf8(last_event_id) {
            Ok("") => Self::Now,
            Ok("0") => Self::Oldest,
            Ok(text) if text.len() <= MAX_LAST_EVENT_ID_BYTES => {
                EventId::parse(text).map_or(Self::Malformed, Self::After)
            }
            _ => Self::Malformed,
        }
    }
}

/// Longer ids than this are malformed whatever they hold, and are not sent back in a notice.
const MAX_LAST_EVENT_ID_BYTES: usize = 128;

/// What a payload's `type` says. The connector's own kinds are named; any other passes through
/// under its text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// A batch of UI actions of one session.
    Actions,
    /// Prose that replaces many actions.
    Summary,
    /// The order to start a product tour in one browser session.
    UsertourTrigger,
    /// Anything else.
    Other(Arc<str>),
}

impl Kind {
    /// The kind of a payload whose `type` is `text`.
    pub(crate) fn new(text: &str) -> Self {
        match text {
            "actions" => Self::Actions,
            "summary" => Self::Summary,
            "usertour_trigger" => Self::UsertourTrigger,
            other => Self::Other(other.into()),
        }
    }

    /// The text it was made from.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => known.label(),
        }
    }

    /// Bytes it keeps beside itself.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Other(text) => text.len(),
            Self::Actions | Self::Summary | Self::UsertourTrigger => 0,
        }
    }

    /// The metric label: one of four, whatever the traffic invents.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Actions => "actions",
            Self::Summary => "summary",
            Self::UsertourTrigger => "usertour_trigger",
            Self::Other(_) => "other",
        }
    }
}

/// What a subscriber asked to see, within what it may see.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scope {
    /// Of which sessions. An event without a session belongs to none of them.
    pub(crate) sessions: Only<SessionId>,
    /// Of which kinds.
    pub(crate) kinds: Only<Kind>,
}

impl Scope {
    /// No limit.
    pub(crate) const EVERYTHING: Self =
        Self { sessions: Only::Everything, kinds: Only::Everything };

    /// Whether the subscriber sees this entry. A gap passes every filter.
    pub(crate) fn admits(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Gap(_) => true,
            Entry::Erased => false,
            Entry::Event(event) => self.includes(event.session(), event.kind()),
        }
    }

    /// Whether an event of this session and kind is within.
    pub(crate) fn includes(&self, session: Option<&SessionId>, kind: &Kind) -> bool {
        let has_session = match &self.sessions {
            Only::Everything => true,
            Only::These(sessions) => session.is_some_and(|session| sessions.contains(session)),
        };
        has_session && self.kinds.admits(kind)
    }
}

/// A limit on what is seen. In the configuration an empty list may mean everything; in here it says
/// so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Only<T> {
    /// No limit.
    Everything,
    /// These and no others.
    These(BTreeSet<T>),
}

impl<T: Ord> Only<T> {
    /// Whether `value` is within the limit.
    pub(crate) fn admits(&self, value: &T) -> bool {
        match self {
            Self::Everything => true,
            Self::These(values) => values.contains(value),
        }
    }
}

/// Names a product: 1 to 256 bytes without control characters.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ProductId(Arc<str>);

impl ProductId {
    /// Checks and keeps a product's name.
    ///
    /// # Errors
    ///
    /// When it is empty, longer than 256 bytes or holds a control character.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        check_product_id(text).map(|()| Self(text.into()))
    }

    /// The name as configured.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a visitor's session: exact text of any length, but never one that could break a frame. Not
/// for logs or metrics.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SessionId(Arc<str>);

impl SessionId {
    /// Checks and keeps a session's name.
    ///
    /// # Errors
    ///
    /// When it is empty or holds CR, LF or NUL.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName("must not be empty"));
        }
        if sse::breaks_framing(text.as_bytes()) {
            return Err(InvalidName("must not hold CR, LF or NUL"));
        }
        Ok(Self(text.into()))
    }

    /// The name as the connector sends it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_product_id(text: &str) -> Result<(), InvalidName> {
    match text.len() {
        0 => Err(InvalidName("must not be empty")),
        1..=MAX_PRODUCT_ID_BYTES if text.chars().any(char::is_control) => {
            Err(InvalidName("must not hold control characters"))
        }
        1..=MAX_PRODUCT_ID_BYTES => Ok(()),
        _ => Err(InvalidName("must not be longer than 256 bytes")),
    }
}

/// Long enough for every product seen, short enough for a metric label.
const MAX_PRODUCT_ID_BYTES: usize = 256;

/// Why a text cannot name a product or session.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidName(&'static str);

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

    #[test]
    fn a_product_is_named_by_a_short_text_without_control_characters() {
        for text in ["a", "prod_abc", "ä b/c", &"x".repeat(256)] {
            assert_eq!(ProductId::new(text).unwrap().as_str(), text);
        }
        for text in ["", "a\nb", "a\u{7f}", &"x".repeat(257)] {
            assert!(ProductId::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_id_reads_back_as_it_is_written() {
        let longest = EventId { epoch: u64::MAX, sequence: u64::MAX, suffix: u32::MAX };
        for id in [
            EventId::new(0, 0),
            EventId::new(u64::MAX, 1),
            EventId { suffix: 1, ..EventId::new(7, 3) },
            longest,
        ] {
            assert_eq!(EventId::parse(&id.to_string()), Some(id));
        }
        for text in [
            "7",
            "7-",
            "-3",
            "7-3.",
            "7-3.0",
            "7-3.01",
            "7-3.1.1",
            "7-3.4294967296",
            "07-3",
            "7-+3",
            " 7-3",
        ] {
            assert_eq!(EventId::parse(text), None, "{text}");
        }
    }
}
