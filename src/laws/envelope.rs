//! Laws of the envelope, compared with a general JSON parser.

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    envelope::{self, Rejection},
    event::{Draft, ProductId},
    sse::{self, Frame},
};

/// Checks that a payload is rejected for a true reason, or kept byte for byte under a kind, a
/// session and a user that cannot break a frame; and that a published payload keeps its meaning, on
/// one line, and names its product.
pub fn envelope(input: &[u8]) {
    let product = ProductId::new("prod_abc").unwrap();
    let (payload, now) = (Bytes::copy_from_slice(input), Instant::now());
    let value: Option<Value> = serde_json::from_slice(input).ok();
    for event in ["", "gap", "heartbeat"] {
        let frame = Frame {
            event: event.into(),
            data: payload.clone(),
            id: Bytes::new(),
            has_own_id: false,
        };
        let classified = envelope::classify(frame, &product, now);
        assert!(event.is_empty() || classified.is_ok(), "a notice is never refused");
    }
    match envelope::parse_draft(payload.clone(), &product, now) {
        Ok(draft) => check_draft(&draft, input, value.as_ref(), &product),
        Err(rejection) => check_rejection(rejection, input, value.as_ref(), &product),
    }
    if let Ok(draft) = envelope::parse_published(payload, &product, now) {
        check_published(draft, value, &product);
    }
}

fn check_draft(draft: &Draft, input: &[u8], value: Option<&Value>, product: &ProductId) {
    assert_eq!(draft.payload, input);
    assert!(
        !draft.kind.as_str().is_empty() && !sse::breaks_framing(draft.kind.as_str().as_bytes())
    );
    assert!(
        draft
            .session
            .as_ref()
            .is_none_or(|session| !sse::breaks_framing(session.as_str().as_bytes()))
    );
    let user = draft.user.as_ref().map(|user| user.as_str());
    assert!(user.is_none_or(|user| !sse::breaks_framing(user.as_bytes())));
    assert!(draft.forwarded_at.is_none_or(f64::is_finite));
    // Numbers out of range, for example, are no `Value` and pass through.
    let Some(value) = value else { return };
    assert_eq!(value["type"].as_str(), Some(draft.kind.as_str()));
    let session = value["session_id"].as_str().filter(|session| !session.is_empty());
    assert_eq!(session, draft.session.as_ref().map(|session| session.as_str()));
    assert_eq!(value["user_id"].as_str().filter(|user| !user.is_empty()), user);
    assert!(value["product_id"].is_null() || value["product_id"] == product.as_str());
}

fn check_rejection(rejection: Rejection, input: &[u8], value: Option<&Value>, product: &ProductId) {
    let breaks = |name: &str, value: &Value| {
        value[name].as_str().is_some_and(|it| sse::breaks_framing(it.as_bytes()))
    };
    let Some(value) = value else { return };
    let is_justified = match rejection {
        Rejection::InvalidUtf8 | Rejection::TooLarge | Rejection::FutureId => false,
        Rejection::InvalidJson => ["type", "product_id", "session_id", "user_id"]
            .iter()
            .any(|name| value.get(name).is_some()),
        Rejection::NotAnObject => !value.is_object(),
        Rejection::NoType => value["type"].as_str().is_none_or(str::is_empty),
        Rejection::WrongProduct => {
            !value["product_id"].is_null() && value["product_id"] != product.as_str()
        }
        Rejection::ControlCharacter => {
            let names = ["type", "session_id", "user_id"];
            input.contains(&0) || names.iter().any(|name| breaks(name, value))
        }
    };
    assert!(is_justified, "{rejection:?}");
}

fn check_published(draft: Draft, value: Option<Value>, product: &ProductId) {
    assert!(!sse::breaks_framing(&draft.payload), "one line");
    if let Some(mut value) = value {
        value["product_id"] = product.as_str().into();
        assert_eq!(serde_json::from_slice::<Value>(&draft.payload).unwrap(), value);
    }
    let republished = envelope::parse_published(draft.payload.clone(), product, draft.received);
    assert_eq!(republished, Ok(draft), "publishing it again changes nothing");
}
