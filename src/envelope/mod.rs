//! What a frame is: heartbeat, gap notice, or a payload with its kind, session and time.
//!
//! Reads only what the relay acts on; every other field, known or not, passes through untouched.
//! Work and memory are linear in the payload, whatever it nests.
//!
//! Touches no runtime and no disk. May use: `event`, `sse`.
//!
//! May use: `event`, `sse`.

mod published;

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::Instant;

pub(crate) use self::published::parse_published;
use crate::{
    event::{Draft, GapReason, Kind, ProductId, SessionId},
    sse::{self, Frame},
};

/// What one frame of the upstream means.
#[derive(Debug, PartialEq)]
pub(crate) enum Envelope {
    /// The upstream is alive.
    Heartbeat,
    /// The upstream, itself a relay, announces that events may be missing.
    Gap(UpstreamGapNotice),
    /// An event for the log.
    Event(Draft),
}

/// What a gap notice says, as far as it can be understood.
#[derive(Debug, Default, serde::Deserialize, PartialEq)]
#[serde(default)]
pub(crate) struct UpstreamGapNotice {
    /// Why events may be missing.
    #[serde(deserialize_with = "reason")]
    pub(crate) reason: Option<GapReason>,
    /// The last id before them.
    pub(crate) after: Option<Box<str>>,
}

fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GapReason>, D::Error> {
    Ok(Scalar::deserialize(deserializer)?.text().and_then(GapReason::parse))
}

/// Reads a frame received from the upstream of `product`.
///
/// # Errors
///
/// Why the frame cannot be understood; nothing of it is used then.
pub(crate) fn classify(
    frame: Frame,
    product: &ProductId,
    received: Instant,
) -> Result<Envelope, Rejection> {
    match &*frame.event {
        b"heartbeat" => Ok(Envelope::Heartbeat),
        b"gap" => Ok(Envelope::Gap(serde_json::from_slice(&frame.data).unwrap_or_default())),
        _ => parse_draft(frame.data, product, received).map(Envelope::Event),
    }
}

/// Reads a payload of `product`, which a missing `parse_product_id` stands for.
///
/// # Errors
///
/// Why the payload cannot be understood.
pub(crate) fn parse_draft(
    payload: Bytes,
    product: &ProductId,
    received: Instant,
) -> Result<Draft, Rejection> {
    parse_payload(payload, product, received).map(|(draft, _)| draft)
}

/// The same, and whether the payload itself names the product.
fn parse_payload(
    payload: Bytes,
    product: &ProductId,
    received: Instant,
) -> Result<(Draft, bool), Rejection> {
    if payload.contains(&0) {
        return Err(Rejection::ControlCharacter);
    }
    let text = std::str::from_utf8(&payload).map_err(|_| Rejection::InvalidUtf8)?;
    let is_object = text.trim_start_matches(JSON_WHITE_SPACE).starts_with('{');
    if !is_object {
        return match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Err(Rejection::NotAnObject),
            Err(_) => Err(Rejection::InvalidJson),
        };
    }
    let fields: PayloadFields<'_> =
        serde_json::from_str(text).map_err(|_| Rejection::InvalidJson)?;
    let kind = fields.kind.text().filter(|kind| !kind.is_empty()).ok_or(Rejection::NoType)?;
    if sse::breaks_framing(kind.as_bytes()) {
        return Err(Rejection::ControlCharacter);
    }
    let names_product = match &fields.product_id {
        Scalar::Null => false,
        Scalar::Text(named) if named == product.as_str() => true,
        Scalar::Text(_) | Scalar::Other => return Err(Rejection::WrongProduct),
    };
    let session = match fields.session_id.text().filter(|session| !session.is_empty()) {
        Some(session) => Some(SessionId::new(session).map_err(|_| Rejection::ControlCharacter)?),
        None => None,
    };
    let kind = Kind::new(kind);
    Ok((
        Draft { kind, session, forwarded_at: fields.forwarded_at, payload, received },
        names_product,
    ))
}

/// Why a frame was not understood. The stream goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The payload is not UTF-8.
    #[error("payload is not UTF-8")]
    InvalidUtf8,
    /// The payload is not JSON, or names `type`, `parse_product_id` or `parse_session_id` twice.
    #[error("payload is not valid JSON, or repeats type, product_id or session_id")]
    InvalidJson,
    /// The payload is JSON, but no object.
    #[error("payload is not a JSON object")]
    NotAnObject,
    /// There is no `type` that is a text.
    #[error("payload has no type")]
    NoType,
    /// It says that it belongs to another product.
    #[error("payload names another product")]
    WrongProduct,
    /// It is larger than `max_event_bytes`.
    #[error("payload is larger than max_event_bytes")]
    TooLarge,
    /// It holds NUL, or its type or session holds CR, LF or NUL, which would break frames.
    #[error("payload, type or session holds a control character that would break framing")]
    ControlCharacter,
}

impl Rejection {
    /// Every reason, for metrics that show a zero before the first.
    pub(crate) const ALL: [Self; 7] = [
        Self::InvalidUtf8,
        Self::InvalidJson,
        Self::NotAnObject,
        Self::NoType,
        Self::WrongProduct,
        Self::TooLarge,
        Self::ControlCharacter,
    ];

    /// As it stands in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::NoType => "no_type",
            Self::WrongProduct => "wrong_product",
            Self::TooLarge => "too_large",
            Self::ControlCharacter => "control_character",
        }
    }
}

/// The white space of RFC 8259.
const JSON_WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The fields the relay acts on.
#[derive(Default)]
struct PayloadFields<'a> {
    kind: Scalar<'a>,
    product_id: Scalar<'a>,
    session_id: Scalar<'a>,
    forwarded_at: Option<f64>,
}

/// A field's value as far as it matters.
#[derive(Default)]
enum Scalar<'a> {
    #[default]
    Null,
    Text(Cow<'a, str>),
    Other,
}

impl Scalar<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for PayloadFields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PayloadFieldsVisitor)
    }
}

struct PayloadFieldsVisitor;

impl<'de> Visitor<'de> for PayloadFieldsVisitor {
    type Value = PayloadFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = PayloadFields::default();
        let (mut kinds, mut products, mut sessions) = (0, 0, 0);
        while let Some(FieldName(name)) = map.next_key()? {
            let (slot, occurrences) = match &*name {
                "type" => (&mut fields.kind, &mut kinds),
                "product_id" => (&mut fields.product_id, &mut products),
                "session_id" => (&mut fields.session_id, &mut sessions),
                "forwarded_at" => {
                    // Read on its own: a number beyond f64 is no reason to refuse the event.
                    let value: &RawValue = map.next_value()?;
                    fields.forwarded_at =
                        value.get().parse().ok().filter(|seconds: &f64| seconds.is_finite());
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *occurrences += 1;
            if *occurrences > 1 {
                // Which of the two a reader takes differs by library: a way around every filter.
                return Err(serde::de::Error::custom("a field that access depends on is repeated"));
            }
            *slot = map.next_value()?;
        }
        Ok(fields)
    }
}

/// A field name, borrowed unless it is written with escapes.
struct FieldName<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for FieldName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(name) => Ok(Self(name)),
            _ => Err(serde::de::Error::custom("a field name is a text")),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(payload: &[u8]) -> Result<Draft, Rejection> {
        parse_draft(
            Bytes::copy_from_slice(payload),
            &ProductId::new("prod_abc").unwrap(),
            Instant::now(),
        )
    }

    #[test]
    fn kind_session_and_time_are_read_and_the_bytes_kept() {
        let payload =
            br#" {"type":"summary","product_id":"prod_abc","session_id":"ps_1","forwarded_at":17.5,"x":[{}]} "#;
        let draft = parse(payload).unwrap();
        assert_eq!(draft.kind, Kind::Summary);
        assert_eq!(draft.session, Some(SessionId::new("ps_1").unwrap()));
        assert_eq!(draft.forwarded_at, Some(17.5));
        assert_eq!(&*draft.payload, payload);
    }

    #[test]
    fn what_may_be_absent_may_be_null_or_of_an_unexpected_type() {
        for payload in [
            r#"{"type":"goal_reached"}"#,
            r#"{"type":"goal_reached","product_id":null,"session_id":null,"forwarded_at":null}"#,
            r#"{"type":"goal_reached","session_id":7,"forwarded_at":"soon"}"#,
            r#"{"type":"goal_reached","session_id":"","forwarded_at":{"a":1}}"#,
            r#"{"type":"goal_reached","forwarded_at":1,"forwarded_at":[2]}"#,
            r#"{"type":"goal_reached","forwarded_at":1e999}"#,
        ] {
            let draft = parse(payload.as_bytes()).unwrap();
            assert_eq!(draft.kind, Kind::Other("goal_reached".into()), "{payload}");
            assert_eq!((draft.session, draft.forwarded_at), (None, None), "{payload}");
        }
    }

    #[test]
    fn escapes_in_names_and_values_mean_the_same() {
        let draft = parse(br#"{"\u0074ype":"act\u0069ons","session_id":"a\u002fb"}"#).unwrap();
        assert_eq!(
            (draft.kind, draft.session),
            (Kind::Actions, Some(SessionId::new("a/b").unwrap()))
        );
    }

    #[test]
    fn each_reason_for_a_rejection_is_told_from_the_others() {
        let cases: [(&[u8], Rejection); 19] = [
            (b"{\"type\":\"\xff\"}", Rejection::InvalidUtf8),
            (b"", Rejection::InvalidJson),
            (b"{", Rejection::InvalidJson),
            (b"{\"type\":\"a\"} x", Rejection::InvalidJson),
            (b"{\"type\":\"a\nb\"}", Rejection::InvalidJson),
            (br#"{"type":"a","type":"a"}"#, Rejection::InvalidJson),
            (br#"{"type":"a","session_id":"1","session_\u0069d":"2"}"#, Rejection::InvalidJson),
            (br#"{"type":"a","product_id":"prod_abc","product_id":"x"}"#, Rejection::InvalidJson),
            (b"[]", Rejection::NotAnObject),
            (b" \"text\" ", Rejection::NotAnObject),
            (b"[1, x", Rejection::InvalidJson),
            (b"{}", Rejection::NoType),
            (br#"{"type":7}"#, Rejection::NoType),
            (br#"{"type":""}"#, Rejection::NoType),
            (br#"{"type":"a","product_id":"other"}"#, Rejection::WrongProduct),
            (br#"{"type":"a","product_id":7}"#, Rejection::WrongProduct),
            (b"{\"type\":\"a\"\0}", Rejection::ControlCharacter),
            (br#"{"type":"a\nb"}"#, Rejection::ControlCharacter),
            (br#"{"type":"a","session_id":"a\u0000b"}"#, Rejection::ControlCharacter),
        ];
        for (payload, reason) in cases {
            assert_eq!(parse(payload), Err(reason), "{}", String::from_utf8_lossy(payload));
        }
    }

    #[test]
    fn a_deeply_nested_payload_is_read_without_recursion() {
        let depth = 100_000;
        let nested =
            [b"{\"type\":\"a\",\"x\":".as_slice(), &vec![b'['; depth], &vec![b']'; depth], b"}"]
                .concat();
        assert!(parse(&nested).is_ok());
    }

    #[test]
    fn only_heartbeat_and_gap_are_names_with_a_meaning() {
        let product = ProductId::new("prod_abc").unwrap();
        let frame = |event: &'static str| Frame {
            event: Bytes::from_static(event.as_bytes()),
            data: Bytes::from_static(b"{\"type\":\"a\"}"),
            id: Bytes::new(),
            has_own_id: false,
        };
        let of = |event| classify(frame(event), &product, Instant::now()).unwrap();
        assert_eq!(of("heartbeat"), Envelope::Heartbeat);
        assert_eq!(of("gap"), Envelope::Gap(UpstreamGapNotice::default()));
        for name in ["", "message", "anything"] {
            assert!(matches!(of(name), Envelope::Event(_)), "{name}");
        }
    }
}
