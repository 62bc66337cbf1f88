//! Events as WebSocket text frames (RFC 6455, section 5.2), and a product's newest ones.
//!
//! In: events. Out: frames, each encoded once and shared by all its receivers.
//!
//! May use: `event`.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::event::{Event, EventId};

/// Cache of a product's newest events as framed messages, shared by caught-up and stalled
/// subscribers alike.
///
/// The cache is separate from the log. A second form inside each event would have to count against
/// `log.memory_bytes` when the event is appended, which halves the log for relays without WebSocket
/// subscribers, or would exceed that bound.
#[derive(Debug)]
pub(crate) struct WsMessageCache([Mutex<Option<(EventId, Bytes)>>; MESSAGE_CACHE_SLOTS]);

impl Default for WsMessageCache {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl WsMessageCache {
    /// Returns an event's framed message, encoding it if the cache does not have it.
    pub(crate) fn get_or_encode(&self, event: &Event) -> Bytes {
        if event.payload().len() > MAX_CACHED_PAYLOAD_BYTES {
            return encode_event(event);
        }
        let slot = usize::try_from(event.position()).unwrap_or_default() % MESSAGE_CACHE_SLOTS;
        let Some(slot) = self.0.get(slot) else { return encode_event(event) };
        let mut slot = slot.lock();
        match &*slot {
            // By id, not by position: a slot may hold the event of an earlier round.
            Some((id, message)) if *id == event.id() => message.clone(),
            _ => slot.insert((event.id(), encode_event(event))).1.clone(),
        }
    }

    /// Empties the cache, for an erasure.
    pub(crate) fn clear(&self) {
        for slot in &self.0 {
            *slot.lock() = None;
        }
    }
}

/// Encodes `{"id":"…","event":"message","data":…}`. The envelope has checked that the payload is
/// JSON; it is copied byte for byte.
fn encode_event(event: &Event) -> Bytes {
    let (id, payload) = (event.id().text(), event.payload());
    text_frame(&[
        b"{\"id\":\"",
        id.as_str().as_bytes(),
        b"\",\"event\":\"message\",\"data\":",
        &payload,
        b"}",
    ])
}

/// Returns a text message in one unmasked frame, as a server sends it (RFC 6455, sections 5.1 and
/// 5.2).
pub(crate) fn text_frame(parts: &[&[u8]]) -> Bytes {
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

/// First byte of a frame: FIN, opcode text.
const FIN_TEXT_OPCODE: u8 = 0x81;

/// Second byte of a frame whose length follows in two bytes; smaller values are the length itself.
const LENGTH_IN_16_BITS: u8 = 126;

/// Second byte of a frame whose length follows in eight bytes.
const LENGTH_IN_64_BITS: u8 = 127;

/// Longest header of an unmasked frame.
const MAX_FRAME_HEADER_BYTES: usize = 10;

/// Events in the cache: about the distance between caught-up subscribers. A subscriber that lags
/// further encodes its own copy.
const MESSAGE_CACHE_SLOTS: usize = 64;

/// Largest cached payload: 64 of them are 1 MiB per product. For a larger one, the copy costs
/// little compared with the write.
const MAX_CACHED_PAYLOAD_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;
    use crate::event::{Draft, Kind};

    fn event(position: u64, payload: &str) -> Event {
        let payload = Bytes::from(payload.to_owned());
        let draft = Draft {
            kind: Kind::new("k"),
            session: None,
            user: None,
            forwarded_at: None,
            payload,
            received: Instant::now(),
        };
        Event::new(EventId::new(7, position), position, draft)
    }

    #[test]
    fn a_message_contains_its_payload_byte_for_byte() {
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
            "large messages are not cached"
        );
    }

    #[test]
    fn clear_releases_every_message() {
        let cache = WsMessageCache::default();
        let message = cache.get_or_encode(&event(3, "{}"));
        cache.clear();
        assert!(message.is_unique(), "the cache no longer holds it");
    }
}
