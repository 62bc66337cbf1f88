//! Names of entries, products and sessions, checked when they are parsed.
//!
//! May use: `sse`.

use std::{fmt, sync::Arc};

use crate::sse;

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
