//! Payloads of publishers: named after their product, and on one line.
//!
//! Edits the text between tokens only: every string and number keeps the bytes it was written with.
//!
//! Touches no runtime and no disk.
//!
//! May use: `event`.

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    Rejection, parse_payload,
    payload::{PayloadFields, Scalar},
};
use crate::event::{Draft, ProductId};

/// Reasons for which a published body is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PublishError {
    /// The same body would be rejected from the upstream.
    #[error("{}: {}", .0.as_str(), .0)]
    Rejected(#[from] Rejection),
    /// A field that the relay acts on has another type than its readers expect. The upstream's
    /// events are taken all the same; a publisher can correct its own.
    #[error("{reason}: {field} must be {expected}")]
    WrongType { reason: &'static str, field: &'static str, expected: &'static str },
}

/// Parses a body sent for `product`, by the rules for the upstream's payloads, and the stricter one
/// that no field on which filters, webhooks and erasure depend has another type.
///
/// # Errors
///
/// When the body is refused.
pub(crate) fn parse_published(
    body: Bytes,
    product: &ProductId,
    received: Instant,
) -> Result<Draft, PublishError> {
    let (mut draft, names_product) = parse_payload(body, product, received, check_types)?;
    // The bytes CR and LF cannot occur in a JSON string (RFC 8259, section 7), so they are
    // white space. The frame's payload has one line.
    if draft.payload.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        draft.payload = strip_white_space(&draft.payload).into();
    }
    if !names_product {
        let text = std::str::from_utf8(&draft.payload).map_err(|_| Rejection::InvalidUtf8)?;
        draft.payload = insert_product_id(text, product)?.into();
    }
    Ok(draft)
}

/// Checks that every field that the relay acts on is text, or null where it may be absent.
fn check_types(fields: &PayloadFields<'_>) -> Result<(), PublishError> {
    let texts = [
        ("no_type", "type", &fields.kind, "a string"),
        ("wrong_product", "product_id", &fields.product_id, "a string or null"),
        ("wrong_type", "session_id", &fields.session_id, "a string or null"),
        ("wrong_type", "user_id", &fields.user_id, "a string or null"),
    ];
    let mistyped = texts.into_iter().find(|(_, _, value, _)| matches!(value, Scalar::Other));
    match mistyped {
        Some((reason, field, _, expected)) => {
            Err(PublishError::WrongType { reason, field, expected })
        }
        None => Ok(()),
    }
}

/// Removes the white space between the tokens of a JSON text.
fn strip_white_space(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut is_escaped) = (false, false);
    let keep_byte = |byte: &u8| {
        if in_string {
            in_string = is_escaped || *byte != b'"';
            is_escaped = !is_escaped && *byte == b'\\';
            return true;
        }
        in_string = *byte == b'"';
        !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
    };
    json.iter().copied().filter(keep_byte).collect()
}

/// Inserts the product into a JSON object that does not name it: instead of a null, or as the
/// first member.
fn insert_product_id(object: &str, product: &ProductId) -> Result<String, Rejection> {
    let name = serde_json::to_string(product.as_str()).map_err(|_| Rejection::InvalidJson)?;
    let members: ProductIdMember<'_> =
        serde_json::from_str(object).map_err(|_| Rejection::InvalidJson)?;
    let (before, member, after) = match members.product_id {
        Some(null) => {
            // `RawValue` borrows from `object`, so the difference of addresses is its offset.
            // serde_json has no other way to learn it.
            let at = null.get().as_ptr().addr() - object.as_ptr().addr();
            let (before, rest) = object.split_at_checked(at).ok_or(Rejection::InvalidJson)?;
            (before, name, rest.strip_prefix(null.get()).ok_or(Rejection::InvalidJson)?)
        }
        None => {
            let at = object.find('{').ok_or(Rejection::NotAnObject)? + 1;
            let (before, after) = object.split_at_checked(at).ok_or(Rejection::InvalidJson)?;
            // the object is not empty: it has a type
            (before, format!(r#""product_id":{name},"#), after)
        }
    };
    Ok([before, &member, after].concat())
}

/// The member that may be absent or null.
#[derive(Deserialize)]
struct ProductIdMember<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    product_id: Option<&'a RawValue>,
}

/// Deserializes a member that is there, also if it is null: `Option` alone would read null as
/// absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn publish(body: &str) -> Result<String, PublishError> {
        let product = ProductId::new(PRODUCT).unwrap();
        let draft =
            parse_published(Bytes::copy_from_slice(body.as_bytes()), &product, Instant::now())?;
        Ok(String::from_utf8(draft.payload.to_vec()).unwrap())
    }

    #[test]
    fn a_body_with_its_product_on_one_line_keeps_its_bytes() {
        for body in [
            r#"{"type":"a","product_id":"p \"1"}"#,
            " {\t\"type\" : \"a\" , \"product_id\":\"p \\\"1\", \"n\": 1.0e+05 } ",
            r#"{"type":"a","product\u005fid":"p\u0020\"1","s":"\r\n"}"#,
        ] {
            assert_eq!(publish(body).as_deref(), Ok(body));
        }
    }

    #[test]
    fn a_missing_product_is_added_and_everything_else_keeps_its_bytes() {
        for (body, expected) in [
            (r#"{"type":"a"}"#, r#"{"product_id":"p \"1","type":"a"}"#),
            (r#" { "type" : "a" } "#, r#" {"product_id":"p \"1", "type" : "a" } "#),
            (
                r#"{"type":"a","product_id": null ,"x":null}"#,
                r#"{"type":"a","product_id": "p \"1" ,"x":null}"#,
            ),
            (
                r#"{"x":{"product_id":null},"type":"a"}"#,
                r#"{"product_id":"p \"1","x":{"product_id":null},"type":"a"}"#,
            ),
            (r#"{"product\u005fid":null,"type":"a"}"#, r#"{"product\u005fid":"p \"1","type":"a"}"#),
        ] {
            assert_eq!(publish(body).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_body_of_several_lines_is_written_on_one() {
        let body = concat!(
            "\r\n{\n  \"type\": \"a b\\\\\",\r\n\t\"n\": [ 1.50 , -0, 1E400 ],",
            "\n \"s\" : \"\\\" { , } \\n\"\n}\n"
        );
        let expected =
            r#"{"product_id":"p \"1","type":"a b\\","n":[1.50,-0,1E400],"s":"\" { , } \n"}"#;
        assert_eq!(publish(body).as_deref(), Ok(expected));
    }

    #[test]
    fn the_rules_for_payloads_of_the_upstream_hold() {
        for (body, reason) in [
            ("", Rejection::InvalidJson),
            ("[1]", Rejection::NotAnObject),
            ("{}", Rejection::NoType),
            (r#"{"type":"a","product_id":"q"}"#, Rejection::WrongProduct),
            (r#"{"type":"a","product_id":null,"product_id":"p \"1"}"#, Rejection::InvalidJson),
            ("{\"type\":\"a\nb\"}", Rejection::InvalidJson),
            (r#"{"type":"a\nb"}"#, Rejection::ControlCharacter),
        ] {
            assert_eq!(publish(body), Err(reason.into()), "{body}");
        }
    }

    #[test]
    fn a_field_that_the_relay_acts_on_has_its_type() {
        for field in ["type", "product_id", "session_id", "user_id"] {
            for value in ["42", "true", "[]", "{}", r#"["s1"]"#, "-1.5e3"] {
                let rest = if field == "type" { "" } else { r#","type":"a""# };
                let body = format!("{{\"{field}\":{value}{rest}}}");
                let refused = publish(&body).unwrap_err();
                assert!(
                    matches!(refused, PublishError::WrongType { field: named, .. } if named == field),
                    "{body}: {refused:?}"
                );
                assert!(refused.to_string().contains(&format!("{field} must be ")), "{refused}");
            }
        }
        for body in [
            r#"{"product_id":null,"type":"a","session_id":null,"user_id":null}"#,
            r#"{"type":"a","session_id":"42","user_id":"7"}"#,
            r#"{"type":"a","sessionId":42,"x":{"session_id":42},"forwarded_at":"soon"}"#,
        ] {
            assert!(publish(body).is_ok(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn white_space_and_product_change_and_nothing_else(
            members in members(),
            spaces in spaces(),
            named in 0..3,
        ) {
            let mut tokens: Vec<String> =
                ["{", r#""type""#, ":", r#""a""#].map(str::to_owned).into();
            match named {
                0 => {}
                1 => tokens.extend([",", r#""product_id""#, ":", "null"].map(str::to_owned)),
                _ => tokens.extend([",", r#""product_id""#, ":", r#""p \"1""#].map(str::to_owned)),
            }
            for (n, value) in members.into_iter().enumerate() {
                tokens.extend([",".to_owned(), format!("\"m{n}\""), ":".to_owned()]);
                tokens.extend(value);
            }
            tokens.push("}".to_owned());
            let spaced = tokens
                .iter()
                .zip(spaces.iter().cycle())
                .map(|(token, space)| format!("{space}{token}"));
            let body: String = spaced.collect();
            let sent = publish(&body).unwrap();
            prop_assert!(!sent.contains(['\r', '\n']), "{sent}");
            let (mut before, after): (Value, Value) =
                (serde_json::from_str(&body).unwrap(), serde_json::from_str(&sent).unwrap());
            before["product_id"] = PRODUCT.into();
            prop_assert_eq!(before, after);
            if body.contains(['\r', '\n']) {
                // The tokens themselves, strings and numbers byte for byte.
                let own = match named {
                    0 => sent.replacen(r#""product_id":"p \"1","#, "", 1),
                    1 => sent.replacen(r#""product_id":"p \"1""#, r#""product_id":null"#, 1),
                    _ => sent,
                };
                prop_assert_eq!(&own, &tokens.concat());
            } else if named == 2 {
                prop_assert_eq!(&sent, &body);
            }
        }
    }

    /// Values as lists of their tokens.
    fn members() -> impl Strategy<Value = Vec<Vec<String>>> {
        let number = "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?";
        let text = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
        let plain = prop_oneof![
            number.prop_map(String::from),
            text,
            Just("true".to_owned()),
            Just("null".to_owned())
        ];
        let value = plain.prop_map(|token| vec![token]).prop_recursive(3, 12, 4, |inner| {
            prop::collection::vec(inner, 0..4).prop_map(|values| {
                let listed = values.into_iter().enumerate();
                let inside = listed.flat_map(|(n, value)| {
                    (n > 0).then(|| ",".to_owned()).into_iter().chain(value)
                });
                ["[".to_owned()].into_iter().chain(inside).chain(["]".to_owned()]).collect()
            })
        });
        prop::collection::vec(value, 0..5)
    }

    fn spaces() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(
            prop_oneof![3 => Just(String::new()), 1 => "[ \t]{1,2}", 1 => "[ \r\n\t]{1,3}"],
            1..30,
        )
    }

    const PRODUCT: &str = "p \"1";
}
