//! Names of entries, products, sessions and users.
//!
//! Each is checked once, when it is parsed; code that holds one has nothing left to check.
//!
//! May use: `sse`.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::sse;

/// Id of a log entry: `<epoch>-<sequence>`, opaque to clients. Ordered within an epoch, and never
/// given to another entry.
///
/// A relay behind a relay keeps its upstream's ids. An entry of its own then takes the id before it
/// with a suffix: `<epoch>-<sequence>.<suffix>`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct EventId {
    /// Life of the log: the Unix time in milliseconds at which it began, or one more than any epoch
    /// before it. Tells ids of this life from ids of another.
    pub(crate) epoch: u64,
    /// Grows with every entry. 0 precedes the first entry: an id to resume from, never an
    /// entry's own.
    pub(crate) sequence: u64,
    /// 0 for none.
    pub(crate) suffix: u32,
}

impl EventId {
    /// Creates an id without a suffix.
    pub(crate) fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence, suffix: 0 }
    }

    /// Returns the text without an allocation and without `fmt`: each event's frame begins with it.
    pub(crate) fn text(&self) -> EventIdText {
        let mut text = EventIdText { bytes: [0; MAX_EVENT_ID_BYTES], len: 0 };
        let mut digits = itoa::Buffer::new();
        text.push(digits.format(self.epoch));
        text.push("-");
        text.push(digits.format(self.sequence));
        if self.suffix > 0 {
            text.push(".");
            text.push(digits.format(self.suffix));
        }
        text
    }

    /// Parses an id in the one form in which it is written. Any other text is none.
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
        f.write_str(self.text().as_str())
    }
}

/// Text of an [`EventId`], on the stack.
#[derive(Debug)]
pub(crate) struct EventIdText {
    bytes: [u8; MAX_EVENT_ID_BYTES],
    len: usize,
}

impl EventIdText {
    /// Returns the text.
    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(self.bytes.get(..self.len).unwrap_or_default()).unwrap_or_default()
    }

    fn push(&mut self, part: &str) {
        let end = self.len + part.len();
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(part.as_bytes());
            self.len = end;
        }
    }
}

/// Parses digits without sign or leading zero, so that no two texts name one entry.
fn canonical_number(digits: &str) -> Option<u64> {
    let has_leading_zero = digits.len() > 1 && digits.starts_with('0');
    let is_canonical = !has_leading_zero && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_canonical { digits.parse().ok() } else { None }
}

/// Two numbers of 64 bits and one of 32, in decimal, and what stands between them.
const MAX_EVENT_ID_BYTES: usize = 20 + 1 + 20 + 1 + 10;

/// Position at which a subscriber asks to begin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StartPosition {
    /// After what the log has now.
    Now,
    /// At the oldest entry that the log keeps.
    Oldest,
    /// After this id.
    After(EventId),
    /// The client's id was malformed: a gap notice, then the oldest entry that the log keeps.
    Malformed,
}

impl StartPosition {
    /// Parses a `Last-Event-ID` (WHATWG HTML, section 9.2). Never an error: a browser's
    /// `EventSource` does not reconnect after an error response.
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

/// Longer ids are malformed and are not sent back in a notice. The longest id of a relay has 52
/// bytes.
const MAX_LAST_EVENT_ID_BYTES: usize = 128;

/// Name of a product: 1 to 256 bytes without control characters.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ProductId(Arc<str>);

impl ProductId {
    /// Checks and copies a product's name.
    ///
    /// # Errors
    ///
    /// When it is empty, longer than 256 bytes or holds a control character.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        check_product_id(text).map(|()| Self(text.into()))
    }

    /// Returns the name as configured.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a visitor's session: text of any length that cannot break a frame. It never goes into
/// logs or metrics.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SessionId(Arc<str>);

impl SessionId {
    /// Checks and copies a session's name.
    ///
    /// # Errors
    ///
    /// When it is empty or holds CR, LF or NUL.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        check_visitor_name(text).map(|()| Self(text.into()))
    }

    /// Returns the name as the connector sends it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a user, who may have many sessions: the same texts as a [`SessionId`], and never in logs
/// or metrics either. A type of its own, so that a user cannot pass for a session.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct UserId(Arc<str>);

impl UserId {
    /// Checks and copies a user's name.
    ///
    /// # Errors
    ///
    /// When it is empty or holds CR, LF or NUL.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        check_visitor_name(text).map(|()| Self(text.into()))
    }

    /// Returns the name as the connector sends it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

// Each event hashes its session and its user several times. The derived `Hash` writes a byte behind
// the text, which costs as much as a short text itself, and keeps apart nothing that is compared.
impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_bytes());
    }
}

impl Hash for UserId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_bytes());
    }
}

/// A session or a user: whose events an erasure takes, or an index lists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum VisitorId {
    /// One session.
    Session(SessionId),
    /// One user, in all sessions and without one.
    User(UserId),
}

impl VisitorId {
    /// Returns the name as the connector sends it.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Session(session) => session.as_str(),
            Self::User(user) => user.as_str(),
        }
    }
}

/// Checks the name of a session or of a user.
fn check_visitor_name(text: &str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName("must not be empty"));
    }
    if sse::breaks_framing(text.as_bytes()) {
        return Err(InvalidName("must not hold CR, LF or NUL"));
    }
    Ok(())
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

/// Reason for which a text cannot name a product, session or user.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidName(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

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
