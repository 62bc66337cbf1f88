//! Deserialization of a payload: the fields that the relay acts on, and nothing else.
//!
//! Visitors of its own, because a derived `Deserialize` would reject a field of an unexpected type,
//! and a repeated `forwarded_at`. Other values are skipped as `IgnoredAny`, which serde_json reads
//! without recursion.
//!
//! May use: no other module.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Fields that the relay acts on.
#[derive(Default)]
pub(super) struct PayloadFields<'a> {
    pub(super) kind: Scalar<'a>,
    pub(super) product_id: Scalar<'a>,
    pub(super) session_id: Scalar<'a>,
    pub(super) user_id: Scalar<'a>,
    pub(super) forwarded_at: Option<f64>,
}

/// A field's value, as far as it matters: other types than strings are accepted and ignored.
#[derive(Default)]
pub(super) enum Scalar<'a> {
    #[default]
    Null,
    Text(Cow<'a, str>),
    Other,
}

impl Scalar<'_> {
    pub(super) fn text(&self) -> Option<&str> {
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

pub(super) struct PayloadFieldsVisitor;

impl<'de> Visitor<'de> for PayloadFieldsVisitor {
    type Value = PayloadFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = PayloadFields::default();
        let (mut kinds, mut products, mut sessions, mut users) = (0, 0, 0, 0);
        while let Some(FieldName(name)) = map.next_key()? {
            let (slot, occurrences) = match &*name {
                "type" => (&mut fields.kind, &mut kinds),
                "product_id" => (&mut fields.product_id, &mut products),
                "session_id" => (&mut fields.session_id, &mut sessions),
                "user_id" => (&mut fields.user_id, &mut users),
                "forwarded_at" => {
                    // Read on its own: a number beyond f64 is no reason to reject the event.
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
                // Which of the two a reader takes depends on its library. An upstream could pass
                // one filter with the first value and reach a subscriber with the second.
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
