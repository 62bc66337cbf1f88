//! Names in a query: a resume position is never ignored, and a misspelt filter never widens.

use std::time::Duration;

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::{Connector, Link},
    events::event_of,
    http,
    page::{PAGES, Page, publish},
    relay::Relay,
    subscriber::Frame,
};

#[test]
fn a_resume_position_counts_in_every_spelling_on_the_stream() {
    let connector = Connector::new();
    let (relay, _link, frames) = filled(&connector);
    for name in ["lastEventId", "last-event-id", "Last-Event-ID", "LASTEVENTID", "last_event_id"] {
        let mut resumed = relay.subscribe_to(&format!("{STREAM}?{name}={}", frames[1].id()));
        assert_eq!(resumed.numbers(3), [2, 3, 4], "{name}");
    }
}

#[test]
fn a_resume_position_counts_in_every_spelling_on_a_socket_a_page_and_the_operators_stream() {
    let connector = Connector::new();
    let (relay, _link, frames) = filled(&connector);
    for name in ["lastEventId", "last-Event_id", "LastEventID"] {
        let query = format!("?{name}={}", frames[2].id());
        assert_eq!(relay.socket(&format!("{SOCKET}{query}")).numbers(2), [3, 4], "{name}");
        assert_eq!(Page::get(&relay, &query).numbers(), [3, 4], "{name}");
        let path = format!("/api/v1/stream/{PRODUCT}{query}");
        let mut tail = crate::common::subscriber::Subscriber::open(relay.admin, &path, &[]);
        assert_eq!(tail.numbers(2), [3, 4], "{name}");
    }
}

#[test]
fn a_name_with_another_meaning_is_no_resume_position() {
    let connector = Connector::new();
    let (relay, _link, frames) = filled(&connector);
    let id = frames[1].id();
    let path = format!("{STREAM}?_={id}&nonce={id}&t={id}");
    relay.subscribe_to(&path).expect_nothing(Duration::from_millis(50));
    relay.get(&format!("{STREAM}?lastEventIds={id}"), &[]).problem(400);
}

#[test]
fn a_name_near_a_filter_is_400_and_the_answer_names_the_filter() {
    let connector = Connector::new();
    let (relay, _link, _frames) = filled(&connector);
    for (query, meant) in [
        ("session_id[]=s1&session_id[]=s2", "session_id"),
        ("session_id%5B%5D=s1", "session_id"),
        ("session_ids=s1", "session_id"),
        ("sessionId=s1", "session_id"),
        ("session=s1", "session_id"),
        ("sesion_id=s1", "session_id"),
        ("session_id=s1&session_ids=s2", "session_id"),
        ("types=actions", "type"),
        ("event=actions", "type"),
        ("tpye=actions", "type"),
        ("user=u1", "user_id"),
        ("userId=u1", "user_id"),
        ("last_even_id=1-1", "last_event_id"),
    ] {
        for path in [STREAM, PAGES] {
            let problem = relay.get(&format!("{path}?{query}"), &[]).problem(400).json();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.ends_with(&format!("write {meant}")), "{path} {query}: {detail}");
        }
        let (head, _wire) = crate::common::websocket::ask(
            relay.public,
            &format!("{SOCKET}?{query}"),
            &crate::common::websocket::UPGRADE,
        );
        assert_eq!(head.status(), 400, "{query}");
    }
    relay.get(&format!("{PAGES}?limt=1"), &[]).problem(400);
}

#[test]
fn a_name_near_a_parameter_of_the_admin_side_is_400() {
    let connector = Connector::new();
    let (relay, _link, frames) = filled(&connector);
    for (method, path) in [
        ("GET", "/api/v1/stream/prod_abc?sessionId=s1"),
        ("GET", "/api/v1/subscribers?limits=1"),
        ("GET", "/api/v1/subscribers?aftr=1"),
        ("GET", "/readyz?requires=upstream"),
        ("DELETE", "/api/v1/events/prod_abc?session_id=s1&session_ids=s2"),
        ("DELETE", "/api/v1/events/prod_abc?session_id=s1&user=u"),
        ("DELETE", "/api/v1/events/prod_abc?session_id=s1&userId=u"),
    ] {
        http::ask(relay.admin, method, path, &[]).problem(400);
    }
    assert_eq!(Page::get(&relay, "").events, frames, "nothing is erased");
}

#[test]
fn names_that_have_nothing_to_do_with_a_filter_are_ignored() {
    let connector = Connector::new();
    let (relay, _link, frames) = filled(&connector);
    let query = "?_=17&cb=1&v=2&trace=x&utm_source=y&limit=2&session_id=s1";
    assert_eq!(Page::get(&relay, query).events, [frames[1].clone(), frames[4].clone()]);
    let erased = "/api/v1/events/prod_abc?_=1&session_id=s1";
    assert_eq!(http::ask(relay.admin, "DELETE", erased, &[]).json()["erased"], 2);
    assert_eq!(http::get(relay.admin, "/api/v1/subscribers?_=1&limit=1", &[]).status(), 200);
    assert_eq!(http::get(relay.admin, "/readyz?probe=1", &[]).status(), 200);
}

/// Returns a relay with five events, of the sessions `s0`, `s1` and `s2` in turn.
fn filled(connector: &Connector) -> (Relay, Link, Vec<Frame>) {
    let relay = Relay::behind(connector);
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, (0..5).map(|n| event_of(&format!("s{}", n % 3), n)));
    (relay, link, frames)
}
