//! Laws of filters, in the query of a request and in a message of a WebSocket.

use hyper::{
    HeaderMap,
    header::{ACCEPT, HeaderName, HeaderValue},
};
use serde_json::Value;

use crate::{
    event::{Kind, Only, Scope, SessionId, StartPosition, UserId},
    http::{
        MAX_FILTER_VALUES, SubscriptionRequest, accepts_event_stream, encode_subscribed,
        parse_subscribe,
    },
};

/// Checks that a parsed filter is valid, and parses the same when it is written again.
pub fn filters(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut headers = HeaderMap::new();
    let from_query = SubscriptionRequest::parse(&text, &headers);
    if let Ok(request) = &from_query {
        check_scope(&request.scope);
        assert_eq!(&SubscriptionRequest::parse(&to_query(request), &headers).unwrap(), request);
    }
    if let Ok(value) = HeaderValue::from_bytes(input) {
        headers.insert(HeaderName::from_static("last-event-id"), value.clone());
        headers.insert(ACCEPT, value);
        accepts_event_stream(&headers);
        if let Ok(request) = from_query {
            let start =
                if input.is_empty() { request.start.clone() } else { StartPosition::parse(input) };
            assert_eq!(
                SubscriptionRequest::parse(&text, &headers).unwrap(),
                SubscriptionRequest { start, ..request }
            );
        }
    }
    if let Ok(scope) = parse_subscribe(input) {
        check_scope(&scope);
        let reply: Value = serde_json::from_str(&encode_subscribed(&scope)).unwrap();
        let message = serde_json::json!({ "subscribe": reply["data"] }).to_string();
        assert_eq!(parse_subscribe(message.as_bytes()), Ok(scope));
    }
}

fn check_scope(scope: &Scope) {
    let (sessions, users, kinds) = values(scope);
    assert!(sessions.len() + users.len() + kinds.len() <= MAX_FILTER_VALUES);
    let mut names = sessions.iter().chain(&users);
    assert!(names.all(|it| !it.is_empty() && !crate::sse::breaks_framing(it.as_bytes())));
    assert!(kinds.iter().all(|it| !it.is_empty()));
    let is_open = *scope == Scope::EVERYTHING;
    assert_eq!(is_open, sessions.is_empty() && users.is_empty() && kinds.is_empty());
}

fn values(scope: &Scope) -> (Vec<&str>, Vec<&str>, Vec<&str>) {
    fn all<T>(only: &Only<T>) -> impl Iterator<Item = &T> {
        let values = if let Only::These(values) = only { Some(values) } else { None };
        values.into_iter().flatten()
    }
    (
        all(&scope.sessions).map(SessionId::as_str).collect(),
        all(&scope.users).map(UserId::as_str).collect(),
        all(&scope.kinds).map(Kind::as_str).collect(),
    )
}

/// Returns a query for this request.
fn to_query(request: &SubscriptionRequest) -> String {
    let (sessions, users, kinds) = values(&request.scope);
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(sessions.into_iter().map(|session| ("session_id", session)));
    query.extend_pairs(users.into_iter().map(|user| ("user_id", user)));
    query.extend_pairs(kinds.into_iter().map(|kind| ("type", kind)));
    match &request.start {
        StartPosition::Now => {}
        StartPosition::Oldest => drop(query.append_pair("last_event_id", "0")),
        StartPosition::After(id) => drop(query.append_pair("last_event_id", &id.to_string())),
        StartPosition::Malformed => drop(query.append_pair("last_event_id", "?")),
    }
    query.finish()
}
