//! Scoped tokens: the events that they admit, their errors, and the end of streams at their expiry.

use std::time::{Duration, Instant};

use super::{answer, open, relay_with_upstream, relay_without_upstream, setup};
use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::{event_like, number},
    http::{self, Wire},
    page::{PAGES, Page},
    relay::Setup,
    subscriber::Ending,
    token::{SECRET, bearer, jwt, now, signed, token},
    wait,
};
use serde_json::json;

#[test]
fn a_token_limits_live_events_replay_and_pages_to_its_sessions_and_types() {
    let (_connector, mut link, relay) = relay_with_upstream("", "");
    let both = bearer(&json!({"session_id": ["s1", "s2"], "type": "summary"}));
    let mut live = open(&relay, STREAM, &both);
    let mut one = open(&relay, &format!("{STREAM}?session_id=s2"), &both);
    let mut all = open(&relay, STREAM, &bearer(&json!({})));
    for (n, (kind, session)) in [
        ("summary", "s1"),
        ("actions", "s1"),
        ("summary", "s2"),
        ("summary", "s3"),
        ("own", "s2"),
        ("summary", "s1"),
    ]
    .into_iter()
    .enumerate()
    {
        link.event(event_like(kind, session, n));
    }
    // without a session
    link.event(format!(r#"{{"type":"summary","product_id":"{PRODUCT}","count":6}}"#));
    assert_eq!(all.numbers(7), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(live.numbers(3), [0, 2, 5]);
    assert_eq!(one.numbers(1), [2]);
    live.expect_nothing(Duration::from_millis(300));
    one.expect_nothing(Duration::from_millis(100));
    let mut replayed = open(&relay, &format!("{STREAM}?last_event_id=0"), &both);
    assert_eq!(replayed.numbers(3), [0, 2, 5]);
    replayed.expect_nothing(Duration::from_millis(300));
    let page = |query: &str| {
        let page = Page::read(&relay.get(&format!("{PAGES}{query}"), &[("Authorization", &both)]));
        page.events.iter().map(|frame| number(&frame.data)).collect::<Vec<_>>()
    };
    assert_eq!(page(""), [0, 2, 5]);
    assert_eq!(page("?session_id=s1"), [0, 5]);
    assert_eq!(page("?session_id=s2&type=summary"), [2]);
}

#[test]
fn a_request_beyond_its_grant_gets_403() {
    let relay = relay_without_upstream("", "");
    let limited = bearer(&json!({"session_id": ["s1", "s2"], "type": ["summary"]}));
    for query in [
        "session_id=s3",
        "session_id=s1&session_id=s3",
        "type=actions",
        "type=summary&type=actions",
        "session_id=S1",
    ] {
        for path in [STREAM, PAGES] {
            relay.get(&format!("{path}?{query}"), &[("Authorization", &limited)]).problem(403);
        }
    }
    for path in ["/stream/prod_xyz", "/events/prod_xyz", "/stream/prod_nothing"] {
        relay.get(path, &[("Authorization", &limited)]).problem(403);
    }
    let only_publish = bearer(&json!({"permissions": ["publish"]}));
    relay.get(STREAM, &[("Authorization", &only_publish)]).problem(403);
    let elsewhere = bearer(&json!({"product_id": "prod_nothing"}));
    relay.get("/stream/prod_nothing", &[("Authorization", &elsewhere)]).problem(404);
}

#[test]
fn a_token_of_users_sees_and_publishes_their_events_only() {
    let (_connector, mut link, relay) = relay_with_upstream("", "");
    let mut witness = open(&relay, STREAM, &bearer(&json!({})));
    let of_ada = bearer(&json!({"user_id": "ada", "permissions": ["subscribe", "publish"]}));
    let mut stream = open(&relay, STREAM, &of_ada);
    for (n, user) in [r#""ada""#, r#""bob""#, "null", r#""ada""#].iter().enumerate() {
        link.event(format!(
            r#"{{"type":"actions","session_id":"s","user_id":{user},"count":{n}}}"#
        ));
    }
    assert_eq!(witness.numbers(4), [0, 1, 2, 3]);
    assert_eq!(stream.numbers(2), [0, 3]);
    let both = bearer(&json!({"user_id": ["ada", "bob"]}));
    for (token, query, seen) in [
        (&of_ada, "", [0, 3].as_slice()),
        (&of_ada, "?user_id=ada", &[0, 3]),
        (&both, "", &[0, 1, 3]),
        (&both, "?user_id=bob", &[1]),
        (&both, "?user_id=bob&session_id=other", &[]),
    ] {
        let page = relay.get(&format!("{PAGES}{query}"), &[("Authorization", token)]);
        assert_eq!(Page::read(&page).numbers(), seen, "{query}");
    }
    for path in [STREAM, PAGES] {
        for query in ["user_id=bob", "user_id=ada&user_id=bob", "user_id=Ada"] {
            relay.get(&format!("{path}?{query}"), &[("Authorization", &of_ada)]).problem(403);
        }
    }
    let publish = |user: &str| {
        let body = format!(r#"{{"type":"own","user_id":{user},"count":9}}"#);
        http::ask_with(relay.public, "POST", PAGES, &[("Authorization", &of_ada)], &body)
    };
    for user in [r#""bob""#, "null"] {
        publish(user).problem(403);
    }
    assert_eq!(publish(r#""ada""#).status(), 202);
    assert_eq!(witness.numbers(1), [9]);
    assert_eq!(stream.numbers(1), [9]);
}

#[test]
fn a_token_with_a_limit_that_does_not_apply_gets_401() {
    let (_connector, mut link, relay) = relay_with_upstream("", "");
    let mut witness = open(&relay, STREAM, &bearer(&json!({})));
    link.event(event_like("own", "s1", 1));
    assert_eq!(witness.numbers(1), [1]);
    for name in [
        "sessionId",
        "session_ids",
        "session",
        "types",
        "event",
        "permission",
        "user",
        "userId",
        "consumer",
    ] {
        let limited = bearer(&json!({ name: "x" }));
        for path in [STREAM, PAGES] {
            relay.get(path, &[("Authorization", &limited)]).problem(401);
        }
    }
    for subject in [String::new(), "x".repeat(129)] {
        let owner = bearer(&json!({ "sub": subject }));
        relay.get(PAGES, &[("Authorization", &owner)]).problem(401);
    }
    let from_provider = bearer(&json!({"sub": "x".repeat(128), "typ": "Bearer", "sid": "x",
                                       "session_state": "x", "type": "own"}));
    let page = Page::read(&relay.get(PAGES, &[("Authorization", &from_provider)]));
    assert_eq!(page.events.len(), 1);
}

#[test]
fn every_invalid_token_gets_the_same_response_and_the_log_has_the_reason() {
    let setup = setup("audience = 'relay'", "")
        .auth(&format!("allow_anonymous = true\n{}", jwt("audience = 'relay'")));
    let mut relay = setup.start_with(&[("RUST_LOG", "debug")]);
    let of = |claims: serde_json::Value| {
        let mut all = json!({"aud": "relay"});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        token(&all)
    };
    let good = of(json!({}));
    open(&relay, STREAM, &format!("Bearer {good}"));
    let claims = json!({"exp": now() + 60.0, "product_id": PRODUCT, "aud": "relay"});
    let bad = [
        "nonsense".to_owned(),
        "not.a.token".to_owned(),
        of(json!({"exp": now() - 1.0})),
        of(json!({"nbf": now() + 60.0})),
        of(json!({"aud": "other"})),
        of(json!({"product_id": []})),
        of(json!({"session_id": null})),
        signed(&json!({"alg": "none"}), &claims),
        signed(&json!({"alg": "HS512"}), &claims),
        signed(&json!({"alg": "HS256", "crit": ["exp"]}), &claims),
        format!("{good}x"),
        format!("{}.", good.rsplit_once('.').unwrap().0),
    ];
    let expected = answer(&relay.get(STREAM, &[("Authorization", "Bearer ")]).problem(401));
    for token in &bad {
        for path in [STREAM, PAGES, "/stream/prod_nothing"] {
            let refused =
                relay.get(path, &[("Authorization", &format!("Bearer {token}"))]).problem(401);
            assert_eq!(answer(&refused), expected, "{token}");
        }
    }
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    let log = relay.process.stderr.whole();
    for reason in [
        "the token has expired",
        "not valid yet",
        "audience",
        "the claim product_id",
        "the claim session_id",
        "algorithm",
        "crit",
        "signature",
    ] {
        assert!(log.contains(reason), "{reason} in the log");
    }
    for secret in bad
        .iter()
        .skip(1)
        .chain([&good])
        .flat_map(|token| token.split('.'))
        .filter(|part| part.len() > 5)
    {
        assert!(!log.contains(secret), "{secret} in the log");
    }
    assert!(!log.contains(SECRET));
}

#[test]
fn a_busy_stream_ends_when_its_token_expires() {
    let (_connector, mut link, relay) = relay_with_upstream("", "");
    let began = now();
    let authorization = bearer(&json!({"exp": began + 2.0}));
    let mut busy = open(&relay, STREAM, &authorization);
    let mut idle = open(&relay, &format!("{STREAM}?session_id=nobody"), &authorization);
    let since = Instant::now();
    let mut n = 0;
    while !busy.has_ended() && since.elapsed() < wait::TIMEOUT {
        link.event(event_like("actions", "s1", n));
        n += 1;
        std::thread::sleep(Duration::from_millis(5)); // the rate of events, not a wait
    }
    let lasted = now() - began;
    assert!((1.5..2.0 + wait::SLACK.as_secs_f64()).contains(&lasted), "it lasted {lasted} s");
    assert!(n > 50, "{n} events");
    for subscriber in [&mut busy, &mut idle] {
        let (rest, ending) = subscriber.rest();
        assert_eq!(ending, Ending::Proper);
        assert!(String::from_utf8_lossy(&rest).contains("retry: "));
    }
    relay.wait_for_metric(
        "autoplay_relay_subscriber_disconnects_total",
        &[("transport", "sse"), ("reason", "expired")],
        2.0,
    );
    relay.get(STREAM, &[("Authorization", &bearer(&json!({"exp": now() - 0.01})))]).problem(401);
}

#[test]
fn an_expired_token_ends_a_stream_that_reads_nothing() {
    let (_connector, mut link, relay) = relay_with_upstream("", "");
    let mut stalled = open(&relay, STREAM, &bearer(&json!({"exp": now() + 3.0})));
    let session = "x".repeat(8000);
    (0..3000).for_each(|n| link.event(event_like("actions", &session, n)));
    let labels = [("transport", "sse"), ("reason", "expired")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    assert_eq!(stalled.rest().1, Ending::BrokenOff, "cut without its last bytes");
}

#[test]
fn the_limit_per_key_counts_each_token_separately() {
    let (_connector, _link, relay) = relay_with_upstream("", "max_subscribers_per_key = 2");
    let (one, other) = (bearer(&json!({"sub": "a"})), bearer(&json!({"sub": "b"})));
    let connected = [open(&relay, STREAM, &one), open(&relay, STREAM, &one)];
    relay.get(STREAM, &[("Authorization", &one)]).problem(429);
    let _others = [open(&relay, STREAM, &other), open(&relay, STREAM, &other)];
    relay.get(STREAM, &[("Authorization", &other)]).problem(429);
    let listed = relay.ask_admin("/api/v1/subscribers").json();
    assert!(
        listed["subscribers"].as_array().unwrap().iter().all(|it| it["key"] == "token"),
        "{listed}"
    );
    drop(connected);
    relay.wait_for_subscribers(2.0);
    open(&relay, STREAM, &one);
}

#[test]
fn a_stream_that_ends_with_its_token_closes_its_connection() {
    let (_connector, _link, relay) = relay_with_upstream("", "");
    let mut first = open(&relay, STREAM, &bearer(&json!({"exp": now() + 1.0})));
    assert_eq!(first.rest().1, Ending::Proper);
    wait::until("the connection is closed", || {
        first.wire.rest().is_empty() && first.wire.is_at_end()
    });
}

#[test]
fn a_token_that_expires_during_the_body_publishes_nothing() {
    let (_connector, _link, relay) = relay_with_upstream("", "");
    let mut witness = open(&relay, STREAM, &bearer(&json!({})));
    let begin = |ends: f64| {
        let authorization = bearer(&json!({"exp": ends, "permissions": ["publish"]}));
        let body = event_like("own", "s1", 1);
        let length = body.len().to_string();
        let mut wire = Wire::connect(relay.public);
        let fields = [("Authorization", authorization.as_str()), ("Content-Length", &length)];
        wire.send(http::request(relay.public, "POST", PAGES, &fields) + &body[..10]);
        (wire, body)
    };
    let ends = now() + 1.0;
    let (mut late, body) = begin(ends);
    let (mut early, _) = begin(ends + 60.0);
    wait::until("the token has expired", || now() > ends + 0.1);
    late.send(&body[10..]);
    assert_eq!(late.head().status(), 401);
    early.send(&body[10..]);
    assert_eq!(early.head().status(), 202);
    assert_eq!(witness.numbers(1), [1]);
    witness.expect_nothing(Duration::from_millis(200));
}

#[test]
fn a_token_that_expires_while_its_page_waits_gets_401() {
    let edge = Connector::new();
    let relay = Setup::behind_relay(edge.address).auth(&jwt("")).start();
    let mut link = edge.accept_leaf();
    let ask = |ends: f64| {
        let authorization = bearer(&json!({"exp": ends}));
        let mut wire = Wire::connect(relay.public);
        let path = format!("{PAGES}?last_event_id=7-41"); // an id that the leaf may still receive
        wire.send(http::request(relay.public, "GET", &path, &[("Authorization", &authorization)]));
        wire
    };
    let ends = now() + 1.0;
    let (mut late, mut early) = (ask(ends), ask(ends + 60.0));
    wait::until("the token has expired", || now() > ends + 0.1);
    link.event_as("7-41", event_like("actions", "s1", 1));
    link.heartbeat();
    assert_eq!((late.head().status(), early.head().status()), (401, 200));
}
