//! Parsing of queries and bodies, and the JSON of deliveries.
//!

use serde_json::json;

use super::*;
use crate::{
    event::{Kind, SessionId},
    webhook_delivery::{DeadLetterReason, Outcome},
};

fn parse(query: &str) -> Result<DeliveryQuery, u16> {
    DeliveryQuery::read(query).map_err(|problem| problem.into_response().status().as_u16())
}

#[test]
fn a_query_names_a_state_and_perhaps_a_limit_and_a_cursor() {
    let plain = |state| DeliveryQuery { state, before: None, limit: 100 };
    assert_eq!(parse("state=pending"), Ok(plain(DeliveryState::Pending)));
    assert_eq!(parse("state=delivered&cache=1"), Ok(plain(DeliveryState::Delivered)));
    let bounded = DeliveryQuery { before: Some(7), limit: 1000, ..plain(DeliveryState::Dead) };
    assert_eq!(parse("limit=1000&after=7&state=dead"), Ok(bounded));
    assert_eq!(parse(""), Ok(plain(DeliveryState::Pending)));
    for query in [
        "state=",
        "state=Dead",
        "state=all",
        "state=dead&limit=0",
        "state=dead&limit=1001",
        "state=dead&limit=x",
        "state=dead&after=",
        "state=dead&after=-1",
        "state=dead&after=1-1",
    ] {
        assert_eq!(parse(query), Err(400), "{query}");
    }
}

#[test]
fn a_body_means_all_dead_letters_or_those_it_names() {
    assert!(matches!(parse_selection(br#"{"state":"dead"}"#), Ok(DeadLetterSelection::All)));
    let Ok(DeadLetterSelection::Events(ids)) =
        parse_selection(br#"{"delivery_ids":["7-1","7-2.3"]}"#)
    else {
        panic!("ids are named")
    };
    assert_eq!(ids, [EventId::new(7, 1), EventId::parse("7-2.3").unwrap()]);
    let selection = parse_selection(br#"{"delivery_ids":[]}"#);
    assert!(matches!(selection, Ok(DeadLetterSelection::Events(ids)) if ids.is_empty()));
}

#[test]
fn a_body_that_means_nothing_is_refused_with_its_errors_by_field() {
    let many = |count: usize| json!({ "delivery_ids": vec!["1-1"; count] }).to_string();
    assert!(parse_selection(many(1000).as_bytes()).is_ok());
    for (body, fields) in [
        ("", &[""][..]),
        ("[]", &[""]),
        ("{}", &[""]),
        (r#"{"state":"dead","delivery_ids":[]}"#, &[""]),
        (r#"{"state":"pending"}"#, &["state"]),
        (r#"{"state":["dead"]}"#, &["state"]),
        (r#"{"state":"dead","more":1}"#, &["more"]),
        (r#"{"delivery_ids":"1-1"}"#, &["delivery_ids"]),
        (
            r#"{"delivery_ids":["1-1","x",7,"01-1"]}"#,
            &["delivery_ids[1]", "delivery_ids[2]", "delivery_ids[3]"],
        ),
        (&many(1001), &["delivery_ids"]),
    ] {
        let errors = parse_selection(body.as_bytes()).unwrap_err();
        assert!(
            errors.iter().map(|error| error.field.as_str()).eq(fields.iter().copied()),
            "{errors:?}"
        );
    }
}

fn delivery() -> Delivery {
    let attempt = |status, error: Option<&str>| Attempt {
        at: 1_800_000_000_000,
        duration_ms: 5,
        outcome: Outcome::Failed,
        status,
        error: error.map(Into::into),
    };
    Delivery {
        position: 3,
        event_id: EventId::new(7, 3),
        kind: Kind::Summary,
        session: Some(SessionId::new("s1").unwrap()),
        created_at: 1_799_999_999_000,
        attempts: vec![attempt(Some(500), None), attempt(None, Some("reset"))],
    }
}

fn shown(listed: &ListedDelivery) -> Value {
    serde_json::to_value(DeliveryView::new(listed)).unwrap()
}

#[test]
fn a_delivery_is_shown_with_its_attempts() {
    let attempt = |status: Option<u16>, error: Option<&str>| {
        let at = "2027-01-15T08:00:00.000Z";
        json!({ "at": at, "duration_ms": 5, "outcome": "failed", "status": status, "error": error })
    };
    let expected = json!({
        "id": "7-3",
        "event_id": "7-3",
        "type": "summary",
        "session_id": "s1",
        "state": "pending",
        "created_at": "2027-01-15T07:59:59.000Z",
        "next_attempt_at": "2027-01-15T08:00:02.000Z",
        "attempts": [attempt(Some(500), None), attempt(None, Some("reset"))],
    });
    assert_eq!(shown(&ListedDelivery::Pending(delivery(), Some(1_800_000_002_000))), expected);
    let waiting = shown(&ListedDelivery::Pending(delivery(), None));
    assert_eq!(waiting["next_attempt_at"], Value::Null);
    let delivered = shown(&ListedDelivery::Delivered(Delivery { session: None, ..delivery() }));
    assert_eq!(
        (&delivered["state"], &delivered["session_id"]),
        (&json!("delivered"), &Value::Null)
    );
}

#[test]
fn a_dead_letter_is_shown_with_its_reason_and_payload() {
    let dead_letter = |payload: &'static [u8]| {
        let (delivery, reason) = (delivery(), DeadLetterReason::Exhausted);
        ListedDelivery::Dead(DeadLetter {
            delivery,
            reason,
            died_at: 1_800_000_000_000,
            payload: payload.into(),
        })
    };
    let dead = shown(&dead_letter(br#"{"type":"summary"}"#));
    assert_eq!((&dead["state"], &dead["reason"]), (&json!("dead"), &json!("exhausted")));
    assert_eq!(
        (&dead["died_at"], &dead["next_attempt_at"]),
        (&json!("2027-01-15T08:00:00.000Z"), &Value::Null)
    );
    // The payload's own text: no number is rounded, no field is moved.
    let text = r#"{"type":"a","n":1.00000000000000000001,"a":1}"#;
    let dead_letter_with_text = dead_letter(text.as_bytes());
    let page = DeliveryPageView {
        deliveries: vec![DeliveryView::new(&dead_letter_with_text)],
        next: None,
    };
    assert!(serde_json::to_string(&page).unwrap().contains(&format!(r#""payload":{text}"#)));
    assert_eq!(shown(&dead_letter(b"no \"json\"\xff"))["payload"], json!("no \"json\"\u{fffd}"));
}
