//! Payloads as tests tell them apart.

use serde_json::Value;

use super::PRODUCT;

/// An event of a session, with a number.
pub(crate) fn event_of(session: &str, number: usize) -> String {
    format!(
        r#"{{"type":"actions","product_id":"{PRODUCT}","session_id":"{session}","count":{number}}}"#
    )
}

/// An event of some session, with a number.
pub(crate) fn event(number: usize) -> String {
    event_of("s1", number)
}

/// An event of some session and a type, with a number.
pub(crate) fn event_like(kind: &str, session: &str, number: usize) -> String {
    format!(
        r#"{{"type":"{kind}","product_id":"{PRODUCT}","session_id":"{session}","count":{number}}}"#
    )
}

/// The number of an event made here.
pub(crate) fn number(data: &[u8]) -> usize {
    let data: Value = serde_json::from_slice(data).unwrap();
    let number = data["count"].as_u64().unwrap_or_else(|| panic!("not a numbered event: {data}"));
    usize::try_from(number).unwrap()
}
