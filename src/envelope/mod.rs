//! Classification of a frame: heartbeat, gap notice, or a payload with its kind, session, user and
//! time.
//!
//! In: a frame of an upstream, or a published body. Out: a draft for the log, or the reason of a
//! rejection.
//!
//! Reads only the fields that the relay acts on; every other field, known or not, passes through
//! untouched. Work and memory are linear in the payload; it may nest 128 levels.
//!
//! Touches no runtime and no disk.
//!
//! May use: `event`, `sse`.

mod nesting;
mod payload;
mod published;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use tokio::time::Instant;

pub(crate) use self::published::parse_published;
use self::{
    nesting::exceeds_max_nesting,
    payload::{PayloadFields, Scalar},
};
use crate::{
    event::{Draft, GapReason, Kind, ProductId, SessionId, UserId},
    sse::{self, Frame},
};

/// Meaning of one frame of the upstream.
#[derive(Debug, PartialEq)]
pub(crate) enum Envelope {
    /// The upstream is alive.
    Heartbeat,
    /// The upstream, itself a relay, announces that events may be missing.
    Gap(UpstreamGapNotice),
    /// An event for the log.
    Event(Draft),
}

/// Content of an upstream's gap notice, as far as it can be parsed. A notice that cannot be parsed
/// is a gap all the same.
#[derive(Debug, Default, serde::Deserialize, PartialEq)]
#[serde(default)]
pub(crate) struct UpstreamGapNotice {
    /// Reason for which events may be missing; `None` if this version does not know it.
    #[serde(deserialize_with = "reason")]
    pub(crate) reason: Option<GapReason>,
    /// Last id before the missing events.
    pub(crate) after: Option<Box<str>>,
}

fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GapReason>, D::Error> {
    Ok(Scalar::deserialize(deserializer)?.text().and_then(GapReason::parse))
}

/// Classifies a frame received from the upstream of `product`.
///
/// # Errors
///
/// When the frame's payload is rejected; no part of the frame is used then.
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

/// Parses a payload of `product`. A missing `product_id` means that product.
///
/// # Errors
///
/// When the payload is rejected.
pub(crate) fn parse_draft(
    payload: Bytes,
    product: &ProductId,
    received: Instant,
) -> Result<Draft, Rejection> {
    parse_payload(payload, product, received, |_| Ok(())).map(|(draft, _)| draft)
}

/// Returns the user that a payload names which was accepted before users were read.
pub(crate) fn user_in(payload: &[u8]) -> Option<UserId> {
    let fields: PayloadFields<'_> = serde_json::from_slice(payload).ok()?;
    fields.user_id.text().and_then(|user| UserId::new(user).ok())
}

/// Parses a payload, and returns also whether it names the product itself. `check` may refuse the
/// fields before they are used.
///
/// # Errors
///
/// When the payload is rejected, and the error of `check`.
fn parse_payload<E: From<Rejection>>(
    payload: Bytes,
    product: &ProductId,
    received: Instant,
    check: impl FnOnce(&PayloadFields<'_>) -> Result<(), E>,
) -> Result<(Draft, bool), E> {
    // Before the parser, which would call it invalid JSON: NUL never occurs in a JSON text.
    if payload.contains(&0) {
        return Err(Rejection::ControlCharacter.into());
    }
    let text = std::str::from_utf8(&payload).map_err(|_| Rejection::InvalidUtf8)?;
    if exceeds_max_nesting(&payload) {
        return Err(Rejection::InvalidJson.into());
    }
    // Told apart before parsing, because serde has one kind of error for both.
    let is_object = text.trim_start_matches(JSON_WHITE_SPACE).starts_with('{');
    if !is_object {
        return match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Err(Rejection::NotAnObject.into()),
            Err(_) => Err(Rejection::InvalidJson.into()),
        };
    }
    let fields: PayloadFields<'_> =
        serde_json::from_str(text).map_err(|_| Rejection::InvalidJson)?;
    check(&fields)?;
    let kind = fields.kind.text().filter(|kind| !kind.is_empty()).ok_or(Rejection::NoType)?;
    if sse::breaks_framing(kind.as_bytes()) {
        return Err(Rejection::ControlCharacter.into());
    }
    let names_product = match &fields.product_id {
        Scalar::Null => false,
        Scalar::Text(named) if named == product.as_str() => true,
        // A payload of another product would reach subscribers without access to that product.
        Scalar::Text(_) | Scalar::Other => return Err(Rejection::WrongProduct.into()),
    };
    let session = match fields.session_id.text().filter(|session| !session.is_empty()) {
        Some(session) => Some(SessionId::new(session).map_err(|_| Rejection::ControlCharacter)?),
        None => None,
    };
    let user = match fields.user_id.text().filter(|user| !user.is_empty()) {
        Some(user) => Some(UserId::new(user).map_err(|_| Rejection::ControlCharacter)?),
        None => None,
    };
    let kind = Kind::new(kind);
    Ok((
        Draft { kind, session, user, forwarded_at: fields.forwarded_at, payload, received },
        names_product,
    ))
}

/// Reasons for which a frame is rejected. The stream continues.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The payload is not UTF-8.
    #[error("payload is not UTF-8")]
    InvalidUtf8,
    /// The payload is not JSON, names `type`, `product_id`, `session_id` or `user_id` twice, or
    /// nests too deep.
    #[error(
        "payload is not valid JSON, repeats type, product_id, session_id or user_id, \
         or nests over 128 levels"
    )]
    InvalidJson,
    /// The payload is JSON, but not an object.
    #[error("payload is not a JSON object")]
    NotAnObject,
    /// The payload has no `type`, or one that is empty or not a string.
    #[error("payload has no type")]
    NoType,
    /// The payload names another product.
    #[error("payload names another product")]
    WrongProduct,
    /// The payload is larger than `max_event_bytes`.
    #[error("payload is larger than max_event_bytes")]
    TooLarge,
    /// The payload holds NUL, or its type, session or user holds CR, LF or NUL, which would break
    /// frames.
    #[error("payload, type, session or user holds a control character that would break framing")]
    ControlCharacter,
    /// The frame's id, of an upstream that is a relay, is of an epoch that has not begun yet.
    #[error("id is of an epoch more than a day ahead of this relay's clock")]
    FutureId,
}

impl Rejection {
    /// Every reason, for metrics that show a zero before the first.
    pub(crate) const ALL: [Self; 8] = [
        Self::InvalidUtf8,
        Self::InvalidJson,
        Self::NotAnObject,
        Self::NoType,
        Self::WrongProduct,
        Self::TooLarge,
        Self::ControlCharacter,
        Self::FutureId,
    ];

    /// Returns the reason as metric labels spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::NoType => "no_type",
            Self::WrongProduct => "wrong_product",
            Self::TooLarge => "too_large",
            Self::ControlCharacter => "control_character",
            Self::FutureId => "future_id",
        }
    }
}

/// White space of RFC 8259, section 2. `str::trim_start` would take more.
const JSON_WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

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
    fn kind_session_user_and_time_are_read_and_the_bytes_kept() {
        let payload = concat!(
            r#" {"type":"summary","product_id":"prod_abc","session_id":"ps_1","#,
            r#""forwarded_at":17.5,"x":[{"user_id":"inner"}],"user_id":"u\u005f1"} "#
        )
        .as_bytes();
        let draft = parse(payload).unwrap();
        assert_eq!(draft.kind, Kind::Summary);
        assert_eq!(draft.session, Some(SessionId::new("ps_1").unwrap()));
        assert_eq!(draft.user, Some(UserId::new("u_1").unwrap()), "the payload's own alone");
        assert_eq!(draft.forwarded_at, Some(17.5));
        assert_eq!(&*draft.payload, payload);
    }

    #[test]
    fn an_optional_field_may_be_null_or_of_an_unexpected_type() {
        for payload in [
            r#"{"type":"goal_reached"}"#,
            r#"{"type":"goal_reached","product_id":null,"session_id":null,"forwarded_at":null}"#,
            r#"{"type":"goal_reached","session_id":7,"user_id":[1],"forwarded_at":"soon"}"#,
            r#"{"type":"goal_reached","session_id":"","user_id":"","forwarded_at":{"a":1}}"#,
            r#"{"type":"goal_reached","session_id":null,"user_id":null}"#,
            r#"{"type":"goal_reached","actions":[{"user_id":"inner"}]}"#,
            r#"{"type":"goal_reached","forwarded_at":1,"forwarded_at":[2]}"#,
            r#"{"type":"goal_reached","forwarded_at":1e999}"#,
        ] {
            let draft = parse(payload.as_bytes()).unwrap();
            assert_eq!(draft.kind, Kind::Other("goal_reached".into()), "{payload}");
            let Draft { session, user, forwarded_at, .. } = draft;
            assert_eq!((session, user, forwarded_at), (None, None, None), "{payload}");
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
    fn each_rejection_has_its_own_reason() {
        let cases: [(&[u8], Rejection); 21] = [
            (b"{\"type\":\"\xff\"}", Rejection::InvalidUtf8),
            (b"", Rejection::InvalidJson),
            (b"{", Rejection::InvalidJson),
            (b"{\"type\":\"a\"} x", Rejection::InvalidJson),
            (b"{\"type\":\"a\nb\"}", Rejection::InvalidJson),
            (br#"{"type":"a","type":"a"}"#, Rejection::InvalidJson),
            (br#"{"type":"a","session_id":"1","session_\u0069d":"2"}"#, Rejection::InvalidJson),
            (br#"{"type":"a","user_id":"1","user_\u0069d":"2"}"#, Rejection::InvalidJson),
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
            (br#"{"type":"a","user_id":"a\rb"}"#, Rejection::ControlCharacter),
        ];
        for (payload, reason) in cases {
            assert_eq!(parse(payload), Err(reason), "{}", String::from_utf8_lossy(payload));
        }
    }

    #[test]
    fn a_payload_nests_128_levels_and_no_more() {
        // The object is a level itself. The value stands where nothing is read and where a field
        // is.
        for field in ["x", "session_id", "forwarded_at"] {
            let nested = |arrays: usize| {
                let name = format!("{{\"type\":\"a\",\"{field}\":");
                [name.as_bytes(), &vec![b'['; arrays], &vec![b']'; arrays], b"}"].concat()
            };
            assert!(parse(&nested(127)).is_ok(), "{field}");
            for arrays in [128, 129, 100_000] {
                assert_eq!(parse(&nested(arrays)), Err(Rejection::InvalidJson), "{field}");
            }
        }
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
