//! A subscriber of a user gets that user's events, live and from the log, on every way out.

use serde_json::json;

use super::event_by;
use crate::common::{
    SOCKET, STREAM,
    connector::{Connector, Link},
    page::{PAGES, Page, Storage, publish},
    relay::Relay,
    subscriber::Frame,
};

/// Session and user of the event with this number. Of every ten, four are of `ada`, one of them
/// without a session, and three of no user.
fn names_of(number: usize) -> (&'static str, &'static str) {
    [
        ("s1", "ada"),
        ("s2", "bob"),
        ("s1", ""),
        ("s3", "ada"),
        ("", "ada"),
        ("ada", ""),
        ("s2", "bob"),
        ("s1", "ada"),
        ("", ""),
        ("s1", "Ada"),
    ][number % 10]
}

fn send(relay: &Relay, link: &mut Link, numbers: std::ops::Range<usize>) -> Vec<Frame> {
    let payloads = numbers.map(|number| {
        let (session, user) = names_of(number);
        event_by(session, user, number)
    });
    publish(relay, link, payloads)
}

fn numbers_of(numbers: std::ops::Range<usize>, admits: fn(&str, &str) -> bool) -> Vec<usize> {
    let is_admitted = |number: &usize| {
        let (session, user) = names_of(*number);
        admits(session, user)
    };
    numbers.filter(is_admitted).collect()
}

#[test]
fn a_filter_by_user_selects_live_events_and_those_of_the_log_on_every_transport() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let frames = send(&relay, &mut link, 0..120);
        storage.wait_until_stored(&relay, 120);
        for (query, admits) in [
            ("user_id=ada", (|_, user| user == "ada") as fn(&str, &str) -> bool),
            ("user_id=ada&user_id=bob", |_, user| ["ada", "bob"].contains(&user)),
            ("user_id=ada&session_id=s1", |session, user| (session, user) == ("s1", "ada")),
            ("user_id=ada&session_id=s1&session_id=s2", |session, user| {
                (session, user) == ("s1", "ada")
            }),
            ("user_id=bob&type=actions", |_, user| user == "bob"),
            ("user_id=bob&type=summary", |_, _| false),
            ("user_id=inner", |_, _| false),
            ("user_id=s1", |_, _| false),
        ] {
            let case = format!("{storage:?} {query}");
            let expected = numbers_of(0..120, admits);
            for limit in [7, 1000] {
                let pages = Page::all(&relay, "0", &format!("{query}&limit={limit}"));
                let found: Vec<_> = pages.iter().flat_map(Page::numbers).collect();
                assert_eq!(found, expected, "{case}: pages of {limit}");
            }
            let behind = frames[53].id();
            let expected = numbers_of(54..120, admits);
            let mut resumed =
                relay.subscribe_to(&format!("{STREAM}?{query}&last_event_id={behind}"));
            assert_eq!(resumed.numbers(expected.len()), expected, "{case}");
            let mut socket = relay.socket(&format!("{SOCKET}?{query}&last_event_id={behind}"));
            assert_eq!(socket.numbers(expected.len()), expected, "{case}: WebSocket");
        }
        let mut live = relay.subscribe_to(&format!("{STREAM}?user_id=ada"));
        let mut socket = relay.socket(SOCKET);
        socket.send_text(r#"{"subscribe":{"user_ids":["bob","ada"],"session_ids":["s1","s2"]}}"#);
        assert_eq!(
            socket.message(),
            json!({
                "event": "subscribed",
                "data": { "session_ids": ["s1", "s2"], "user_ids": ["ada", "bob"], "types": [] }
            })
        );
        send(&relay, &mut link, 120..150);
        assert_eq!(live.numbers(12), numbers_of(120..150, |_, user| user == "ada"));
        let of_both = numbers_of(120..150, |session, user| {
            ["s1", "s2"].contains(&session) && ["ada", "bob"].contains(&user)
        });
        assert_eq!(socket.numbers(of_both.len()), of_both, "{storage:?}");
    }
}

#[test]
fn an_empty_user_is_400_and_a_thousand_values_are_the_most_of_all_filters_together() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let _link = connector.stream();
    for path in [STREAM, PAGES] {
        for query in ["user_id=", "user_id=a&user_id", "user_id=a%0Ab"] {
            relay.get(&format!("{path}?{query}"), &[]).problem(400);
        }
        let users = (0..999).map(|n| format!("user_id=u{n}&")).collect::<String>();
        relay.get(&format!("{path}?{users}session_id=a&type=x"), &[]).problem(400);
    }
    let users = (0..999).map(|n| format!("user_id=u{n}&")).collect::<String>();
    assert_eq!(Page::get(&relay, &format!("?{users}session_id=a")).numbers(), [0_usize; 0]);
}
