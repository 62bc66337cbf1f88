//! The messages of both directions, in JSON.
//!
//! Pure but for [`WsMessageCache`], which keeps what has been encoded lately. May use: `event`.
//!
//! May use: `event`.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    event::{Event, EventId, Gap, Kind, Only, Scope, SessionId},
    http::public::request::{MAX_FILTER_VALUES, only_or_everything},
};

/// The newest events of a product, as subscribers get them. All who follow share one encoding, and
/// so do those who stall on it.
///
/// Kept beside the log and not in its events: what they take in memory is counted when they are
/// appended, and half of `log.memory_bytes` for a second form of each would be a bad bargain for
/// whoever has no WebSocket subscribers.
#[derive(Debug)]
pub(crate) struct WsMessageCache([Mutex<Option<(EventId, Bytes)>>; MESSAGE_CACHE_SLOTS]);

impl Default for WsMessageCache {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl WsMessageCache {
    /// An event's message, in its frame.
    pub(super) fn get_or_encode(&self, event: &Event) -> Bytes {
        if event.payload().len() > MAX_CACHED_PAYLOAD_BYTES {
            return encode_event(event);
        }
        let slot = usize::try_from(event.position()).unwrap_or_default() % MESSAGE_CACHE_SLOTS;
        let Some(slot) = self.0.get(slot) else { return encode_event(event) };
        // A slot holds whole values: there is no half-done state that a panic could leave behind.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some((id, message)) if *id == event.id() => message.clone(),
            _ => slot.insert((event.id(), encode_event(event))).1.clone(),
        }
    }

    /// Forgets all of them: some are to be erased.
    pub(crate) fn clear(&self) {
        for slot in &self.0 {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// `{"id":"…","event":"message","data":…}`. The payload is known to be JSON, and stands in it byte
/// for byte.
fn encode_event(event: &Event) -> Bytes {
    let (id, payload) = (event.id().to_string(), event.payload());
    text_frame(&[
        b"{\"id\":\"",
        id.as_bytes(),
        b"\",\"event\":\"message\",\"data\":",
        &payload,
        b"}",
    ])
}

/// A text message in one frame, not masked: as a server sends it (RFC 6455, section 5.2).
pub(super) fn text_frame(parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut frame = Vec::with_capacity(MAX_FRAME_HEADER_BYTES + length);
    frame.push(FIN_TEXT_OPCODE);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(LENGTH_IN_16_BITS);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(LENGTH_IN_64_BITS);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame.into()
}

/// `{"id":"…","event":"heartbeat"}`, without an id where that has not moved.
pub(super) fn encode_heartbeat(id: Option<EventId>) -> String {
    match id {
        Some(id) => format!(r#"{{"id":"{id}","event":"heartbeat"}}"#),
        None => r#"{"event":"heartbeat"}"#.to_owned(),
    }
}

/// `{"id":"…","event":"gap","data":{…}}`.
pub(super) fn encode_gap(gap: &Gap) -> String {
    format!(r#"{{"id":"{}","event":"gap","data":{}}}"#, gap.id, gap.notice_json())
}

/// `{"event":"subscribed","data":{…}}`: the filter that is now in force.
pub(crate) fn encode_subscribed(scope: &Scope) -> String {
    let filter = FilterInForce {
        session_ids: filter_values(&scope.sessions, SessionId::as_str),
        types: filter_values(&scope.kinds, Kind::as_str),
    };
    encode_message("subscribed", filter)
}

/// `{"event":"error","data":{"title":"…"}}`.
pub(super) fn encode_error(title: &str) -> String {
    encode_message("error", ErrorDetail { title })
}

fn encode_message<T: Serialize>(event: &'static str, data: T) -> String {
    // Lists and texts can always be written.
    serde_json::to_string(&ServerMessage { event, data }).unwrap_or_default()
}

fn filter_values<T>(only: &Only<T>, as_str: impl Fn(&T) -> &str) -> Vec<&str> {
    match only {
        Only::Everything => Vec::new(),
        Only::These(values) => values.iter().map(as_str).collect(),
    }
}

/// The filter that a client asks for.
///
/// # Errors
///
/// What is wrong with the message, for the client to read.
pub(crate) fn parse_subscribe(text: &[u8]) -> Result<Scope, String> {
    let filter = parse_object(text)
        .and_then(|message: SubscribeMessage<'_>| parse_object(message.subscribe.get().as_bytes()));
    let RequestedFilter { session_ids, types } =
        filter.ok_or(r#"not understood; write {"subscribe":{"session_ids":[…],"types":[…]}}"#)?;
    let sessions: Result<BTreeSet<_>, _> =
        session_ids.iter().map(|session| SessionId::new(session)).collect();
    let sessions = sessions.map_err(|error| format!("session_ids: a value {error}"))?;
    if types.iter().any(String::is_empty) {
        return Err("types: a value must not be empty".to_owned());
    }
    let kinds: BTreeSet<_> = types.iter().map(|kind| Kind::new(kind)).collect();
    if sessions.len() + kinds.len() > MAX_FILTER_VALUES {
        return Err(format!("at most {MAX_FILTER_VALUES} values"));
    }
    Ok(Scope { sessions: only_or_everything(sessions), kinds: only_or_everything(kinds) })
}

/// Reads an object. serde would take a list of its fields' values as well.
fn parse_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(json).ok().filter(|_| is_object)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeMessage<'a> {
    #[serde(borrow)]
    subscribe: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedFilter {
    #[serde(default)]
    session_ids: Vec<String>,
    #[serde(default)]
    types: Vec<String>,
}

#[derive(Serialize)]
struct ServerMessage<T> {
    event: &'static str,
    data: T,
}

#[derive(Serialize)]
struct FilterInForce<'a> {
    session_ids: Vec<&'a str>,
    types: Vec<&'a str>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    title: &'a str,
}

/// The last frame of a message, which is text.
const FIN_TEXT_OPCODE: u8 = 0x81;

/// In place of a length that does not fit into seven bits.
const LENGTH_IN_16_BITS: u8 = 126;

/// In place of one that does not fit into two bytes.
const LENGTH_IN_64_BITS: u8 = 127;

/// Of a frame that is not masked.
const MAX_FRAME_HEADER_BYTES: usize = 10;

/// What subscribers who follow are apart; whoever is further behind has its own copy.
const MESSAGE_CACHE_SLOTS: usize = 64;

/// With this, they take a mebibyte a product at the most. Copying a larger one is little beside
/// writing it.
const MAX_CACHED_PAYLOAD_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::event::{Draft, GapReason, ProductId};

    fn event(position: u64, payload: &str) -> Event {
        let payload = Bytes::from(payload.to_owned());
        let draft = Draft {
            kind: Kind::new("k"),
            session: None,
            forwarded_at: None,
            payload,
            received: Instant::now(),
        };
        Event::new(EventId::new(7, position), position, draft)
    }

    #[test]
    fn a_payload_stands_in_its_message_byte_for_byte() {
        let cache = WsMessageCache::default();
        for payload in [r#" {"a": "\u00e9é"} "#, "{\n\"a\":1\n}"] {
            cache.clear();
            let message = cache.get_or_encode(&event(3, payload));
            let expected = format!(r#"{{"id":"7-3","event":"message","data":{payload}}}"#);
            assert_eq!(message, text_frame(&[expected.as_bytes()]));
            assert!(serde_json::from_str::<Value>(&expected).is_ok());
        }
    }

    #[test]
    fn a_frame_says_how_long_its_text_is_in_as_few_bytes_as_the_rfc_has() {
        let header = |length: usize| {
            let framed = text_frame(&[&vec![b'a'; length / 2], &vec![b'a'; length - length / 2]]);
            assert!(framed.ends_with(&vec![b'a'; length]));
            framed.slice(..framed.len() - length).to_vec()
        };
        assert_eq!([header(0), header(1), header(125)], [[0x81, 0], [0x81, 1], [0x81, 125]]);
        assert_eq!([header(126), header(65_535)], [[0x81, 126, 0, 126], [0x81, 126, 0xff, 0xff]]);
        assert_eq!(header(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn an_event_is_encoded_once_while_it_is_new() {
        let cache = WsMessageCache::default();
        let first = event(3, "{}");
        let message = cache.get_or_encode(&first);
        assert_eq!(cache.get_or_encode(&first).as_ptr(), message.as_ptr());
        let later = event(3 + MESSAGE_CACHE_SLOTS as u64, r#"{"a":1}"#);
        assert_eq!(
            cache.get_or_encode(&later),
            text_frame(&[br#"{"id":"7-67","event":"message","data":{"a":1}}"#])
        );
        assert_eq!(cache.get_or_encode(&first), message);
        let large = event(4, &format!("\"{}\"", "x".repeat(MAX_CACHED_PAYLOAD_BYTES)));
        assert_ne!(
            cache.get_or_encode(&large).as_ptr(),
            cache.get_or_encode(&large).as_ptr(),
            "large ones are not kept"
        );
    }

    #[test]
    fn what_is_erased_is_forgotten() {
        let cache = WsMessageCache::default();
        let message = cache.get_or_encode(&event(3, "{}"));
        cache.clear();
        assert!(message.is_unique(), "nobody else holds it");
    }

    #[test]
    fn other_messages_are_json_too() {
        let gap = Gap {
            product: ProductId::new("p\"").unwrap(),
            reason: GapReason::Evicted,
            position: 3,
            id: EventId::new(7, 3),
            after: None,
            before: None,
        };
        let gap: Value = serde_json::from_str(&encode_gap(&gap)).unwrap();
        assert_eq!(
            (&gap["id"], &gap["event"], &gap["data"]["product_id"]),
            (&json!("7-3"), &json!("gap"), &json!("p\""))
        );
        assert_eq!(
            encode_heartbeat(Some(EventId::new(7, 3))),
            r#"{"id":"7-3","event":"heartbeat"}"#
        );
        assert_eq!(encode_heartbeat(None), r#"{"event":"heartbeat"}"#);
        assert_eq!(encode_error("a \"b\""), r#"{"event":"error","data":{"title":"a \"b\""}}"#);
        let everything = parse_subscribe(br#"{"subscribe":{}}"#).unwrap();
        assert_eq!(
            encode_subscribed(&everything),
            r#"{"event":"subscribed","data":{"session_ids":[],"types":[]}}"#
        );
        let some = parse_subscribe(
            br#"{"subscribe":{"types":["x","actions"],"session_ids":["\"s\"","s"]}}"#,
        )
        .unwrap();
        let some: Value = serde_json::from_str(&encode_subscribed(&some)).unwrap();
        assert_eq!(
            some["data"],
            json!({ "session_ids": ["\"s\"", "s"], "types": ["actions", "x"] })
        );
    }

    #[test]
    fn whatever_is_not_a_filter_is_refused() {
        let too_many = json!({ "subscribe": { "types": (0..=MAX_FILTER_VALUES).map(|n| n.to_string()).collect::<Vec<_>>() } });
        let largest = json!({ "subscribe": { "types": (0..MAX_FILTER_VALUES).map(|n| n.to_string()).collect::<Vec<_>>() } });
        assert!(parse_subscribe(largest.to_string().as_bytes()).is_ok());
        for text in [
            "",
            "x",
            "null",
            "[]",
            "{}",
            r#"{"subscribe":null}"#,
            r#"[{"subscribe":{}}]"#,
            r#"{"subscribe":[]}"#,
            r#"{"subscribe":{"sessions":[]}}"#,
            r#"{"subscribe":{"types":"a"}}"#,
            r#"{"subscribe":{"types":[""]}}"#,
            r#"{"subscribe":{"types":[1]}}"#,
            r#"{"subscribe":{"session_ids":[""]}}"#,
            r#"{"subscribe":{"session_ids":["a\nb"]}}"#,
            r#"{"subscribe":{},"more":1}"#,
            r#"{"subscribe":{},"subscribe":{}}"#,
            &too_many.to_string(),
        ] {
            assert!(parse_subscribe(text.as_bytes()).is_err(), "{text}");
        }
    }
}
