//! What a subscriber's request asks for: media type, filter, place to begin.
//!
//! Pure: headers and query in, checked values out.
//!
//! May use: `event`.

use std::collections::BTreeSet;

use hyper::{HeaderMap, header::ACCEPT};

use super::error::Problem;
use crate::event::{Kind, Only, Scope, SessionId, Start};

/// The query of a subscription.
#[derive(Debug, PartialEq)]
pub(crate) struct Wish {
    /// Which events.
    pub(crate) scope: Scope,
    /// Where to begin.
    pub(crate) start: Start,
}

impl Wish {
    /// Reads the query, and the `Last-Event-ID` header, which wins over it.
    ///
    /// # Errors
    ///
    /// 400 for an empty or too long filter; never for an id.
    pub(crate) fn read(query: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        let (mut sessions, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        let mut start = Start::Now;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "session_id" => {
                    let session = SessionId::new(&value);
                    sessions.insert(session.map_err(|error| Problem::bad_request(format!("session_id {error}")))?);
                }
                "type" if value.is_empty() => return Err(Problem::bad_request("type must not be empty")),
                "type" => {
                    kinds.insert(Kind::new(&value));
                }
                "last_event_id" => start = Start::parse(value.as_bytes()),
                _ => {} // EventSource wrappers add cache busters and the like
            }
        }
        if sessions.len() + kinds.len() > MAX_FILTER_VALUES {
            return Err(Problem::bad_request(format!(
                "at most {MAX_FILTER_VALUES} session_id and type values"
            )));
        }
        if let Some(id) = headers.get("last-event-id").filter(|id| !id.is_empty()) {
            start = Start::parse(id.as_bytes());
        }
        Ok(Self {
            scope: Scope {
                sessions: only(sessions),
                kinds: only(kinds),
            },
            start,
        })
    }

    /// The credential in the query, if there is one. A key does not belong there, and so opens nothing from there.
    pub(crate) fn query_token(query: &str) -> Option<&'static [u8]> {
        form_urlencoded::parse(query.as_bytes())
            .any(|(key, _)| key == "access_token")
            .then_some(&[])
    }
}

fn only<T>(values: BTreeSet<T>) -> Only<T> {
    if values.is_empty() {
        Only::Everything
    } else {
        Only::These(values)
    }
}

/// Whether the client takes an event stream (RFC 9110, section 12.5.1: the most specific range decides).
pub(crate) fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let mut best: Option<(usize, bool)> = None;
    let mut has_ranges = false;
    for range in headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        has_ranges |= !media.is_empty();
        let Some(specificity) = MEDIA_RANGES.iter().position(|known| media.eq_ignore_ascii_case(known)) else {
            continue;
        };
        let is_refused = parts.any(is_zero_quality);
        if best.is_none_or(|(known, _)| specificity > known) {
            best = Some((specificity, !is_refused));
        }
    }
    best.map_or(!has_ranges, |(_, is_accepted)| is_accepted)
}

/// `q=0`, `q=0.0`, `q=0.00` or `q=0.000`.
fn is_zero_quality(parameter: &[u8]) -> bool {
    let Some(value) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else {
        return false;
    };
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.trim().parse::<f32>().is_ok_and(|quality| quality == 0.0)
}

/// The ranges that include an event stream, the most specific last.
const MEDIA_RANGES: [&[u8]; 3] = [b"*/*", b"text/*", b"text/event-stream"];

/// A subscription's filter is walked at every wake-up (INTERFACE, fine print).
const MAX_FILTER_VALUES: usize = 1000;
