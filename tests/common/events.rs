//! Numbered event payloads.

use serde_json::Value;

use super::PRODUCT;

/// Returns an event of a session, with a number.
pub(crate) fn event_of(session: &str, number: usize) -> String {
    format!(
        r#"{{"type":"actions","product_id":"{PRODUCT}","session_id":"{session}","count":{number}}}"#
    )
}

/// Returns an event of the session `s1`, with a number.
pub(crate) fn event(number: usize) -> String {
    event_of("s1", number)
}

/// Returns an event of a type and a session, with a number.
pub(crate) fn event_like(kind: &str, session: &str, number: usize) -> String {
    format!(
        r#"{{"type":"{kind}","product_id":"{PRODUCT}","session_id":"{session}","count":{number}}}"#
    )
}

/// Returns the number of an event made by this module.
pub(crate) fn number(data: &[u8]) -> usize {
    let data: Value = serde_json::from_slice(data).unwrap();
    let number = data["count"].as_u64().unwrap_or_else(|| panic!("not a numbered event: {data}"));
    usize::try_from(number).unwrap()
}
