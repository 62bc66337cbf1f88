//! WebSocket messages other than events, of both directions, in JSON.
//!
//! In: gaps, filters in force; the client's text. Out: JSON; a [`Scope`]. `ws_frame` has the frames
//! and the events.
//!
//! May use: `event`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    event::{EventId, Gap, Kind, Only, Scope, SessionId, UserId},
    http::public::request::{MAX_FILTER_VALUES, only_or_everything},
};

/// Encodes `{"id":"…","event":"heartbeat"}`, without `id` if the client has the newest id already.
pub(super) fn encode_heartbeat(id: Option<EventId>) -> String {
    match id {
        Some(id) => format!(r#"{{"id":"{id}","event":"heartbeat"}}"#),
        None => r#"{"event":"heartbeat"}"#.to_owned(),
    }
}

/// Encodes `{"id":"…","event":"gap","data":{…}}`.
pub(super) fn encode_gap(gap: &Gap) -> String {
    format!(r#"{{"id":"{}","event":"gap","data":{}}}"#, gap.id, gap.notice_json())
}

/// Encodes `{"event":"subscribed","data":{…}}` with the filter now in force.
pub(crate) fn encode_subscribed(scope: &Scope) -> String {
    let filter = FilterInForce {
        session_ids: filter_values(&scope.sessions, SessionId::as_str),
        user_ids: filter_values(&scope.users, UserId::as_str),
        types: filter_values(&scope.kinds, Kind::as_str),
    };
    encode_message("subscribed", filter)
}

/// Encodes `{"event":"error","data":{"title":"…"}}`.
pub(super) fn encode_error(title: &str) -> String {
    encode_message("error", ErrorDetail { title })
}

fn encode_message<T: Serialize>(event: &'static str, data: T) -> String {
    // Lists and strings always serialize.
    serde_json::to_string(&ServerMessage { event, data }).unwrap_or_default()
}

fn filter_values<T>(only: &Only<T>, as_str: impl Fn(&T) -> &str) -> Vec<&str> {
    match only {
        Only::Everything => Vec::new(),
        Only::These(values) => values.iter().map(as_str).collect(),
    }
}

/// Parses the filter that a client requests.
///
/// # Errors
///
/// A description of the mistake, for the client.
pub(crate) fn parse_subscribe(text: &[u8]) -> Result<Scope, String> {
    let filter = parse_object(text)
        .and_then(|message: SubscribeMessage<'_>| parse_object(message.subscribe.get().as_bytes()));
    let RequestedFilter { session_ids, user_ids, types } = filter.ok_or(
        r#"not understood; write {"subscribe":{"session_ids":[…],"user_ids":[…],"types":[…]}}"#,
    )?;
    let sessions: Result<BTreeSet<_>, _> =
        session_ids.iter().map(|session| SessionId::new(session)).collect();
    let sessions = sessions.map_err(|error| format!("session_ids: a value {error}"))?;
    let users: Result<BTreeSet<_>, _> = user_ids.iter().map(|user| UserId::new(user)).collect();
    let users = users.map_err(|error| format!("user_ids: a value {error}"))?;
    if types.iter().any(String::is_empty) {
        return Err("types: a value must not be empty".to_owned());
    }
    let kinds: BTreeSet<_> = types.iter().map(|kind| Kind::new(kind)).collect();
    if sessions.len() + users.len() + kinds.len() > MAX_FILTER_VALUES {
        return Err(format!("at most {MAX_FILTER_VALUES} values"));
    }
    Ok(Scope {
        sessions: only_or_everything(sessions),
        users: only_or_everything(users),
        kinds: only_or_everything(kinds),
    })
}

/// Parses a JSON object. serde alone would accept an array of the fields' values as well.
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
    user_ids: Vec<String>,
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
    user_ids: Vec<&'a str>,
    types: Vec<&'a str>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    title: &'a str,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::{GapReason, ProductId};

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
            r#"{"event":"subscribed","data":{"session_ids":[],"user_ids":[],"types":[]}}"#
        );
        let some = parse_subscribe(
            br#"{"subscribe":{"types":["x","actions"],"user_ids":["u"],"session_ids":["\"s\"","s"]}}"#,
        )
        .unwrap();
        let some: Value = serde_json::from_str(&encode_subscribed(&some)).unwrap();
        assert_eq!(
            some["data"],
            json!({
                "session_ids": ["\"s\"", "s"],
                "user_ids": ["u"],
                "types": ["actions", "x"]
            })
        );
    }

    #[test]
    fn malformed_filters_are_refused() {
        let of_types = |count: usize| {
            let types: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            json!({ "subscribe": { "types": types } })
        };
        let too_many = of_types(MAX_FILTER_VALUES + 1);
        let largest = of_types(MAX_FILTER_VALUES);
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
            r#"{"subscribe":{"user_ids":[""]}}"#,
            r#"{"subscribe":{"user_ids":"u"}}"#,
            r#"{"subscribe":{"user_id":["u"]}}"#,
            r#"{"subscribe":{},"more":1}"#,
            r#"{"subscribe":{},"subscribe":{}}"#,
            &too_many.to_string(),
        ] {
            assert!(parse_subscribe(text.as_bytes()).is_err(), "{text}");
        }
    }
}
