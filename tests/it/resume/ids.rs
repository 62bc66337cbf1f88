//! Resuming with `Last-Event-ID`: exactly the following events, and a notice for every possible
//! loss.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::common::{
    PRODUCT, STREAM,
    connector::{Connector, Link},
    events::{event, event_of, number},
    relay::{Relay, Setup},
    subscriber::{Frame, Subscriber},
    wait,
};

#[test]
fn a_resume_returns_exactly_the_events_after_its_id() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 0..30);
    for (n, frame) in frames.iter().enumerate() {
        let mut resumed = relay.resume(frame.id());
        for expected in &frames[n + 1..] {
            assert_eq!(resumed.event(), *expected);
        }
        if n % 10 == 9 {
            resumed.expect_nothing(Duration::from_millis(50));
        }
    }
}

#[test]
fn last_event_id_0_returns_every_kept_event_without_a_gap() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    publish(&relay, &mut link, 0..40);
    let mut all = relay.resume("0");
    assert!(all.numbers(16).into_iter().eq(24..40), "the newest 16 are kept");
    link.event(event(40));
    assert_eq!(all.numbers(1), [40]);
    let mut by_query = relay.subscribe_to(&format!("{STREAM}?last_event_id=0"));
    assert!(by_query.numbers(16).into_iter().eq(25..41));
    assert_eq!(gaps(&relay, "evicted"), 0.0);
}

#[test]
fn a_resume_has_no_duplicate_and_no_hole_while_events_arrive() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let first = publish(&relay, &mut link, 0..50);
    let ids = Mutex::new(first.into_iter().map(|frame| frame.id.unwrap()).collect::<Vec<_>>());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = SetOnDrop(&is_over);
        scope.spawn(|| {
            let mut witness = relay.subscribe();
            while !is_over.load(Ordering::SeqCst) {
                let known = ids.lock().unwrap().len();
                (known..known + 4).for_each(|n| link.event(event(n)));
                for n in known..known + 4 {
                    let frame = witness.event();
                    assert_eq!(number(&frame.data), n);
                    ids.lock().unwrap().push(frame.id.unwrap());
                }
            }
        });
        for round in 0..100 {
            let (from, id) = {
                let ids = ids.lock().unwrap();
                let from = ids.len() - 1 - round % 40;
                (from, ids[from].clone())
            };
            let mut resumed = relay.resume(&id);
            let expected = from + 1..from + 150;
            assert!(resumed.numbers(149).into_iter().eq(expected), "behind {from}");
        }
    });
}

/// Stops the thread beside a test, even if the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_chain_of_short_connections_sees_every_event_once() {
    const EVENTS: usize = 400;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..EVENTS {
                link.event(event(n));
                std::thread::yield_now();
            }
        });
        while seen.len() < EVENTS {
            let mut id = String::new();
            for _ in 0..8.min(EVENTS - seen.len()) {
                let frame = subscriber.event();
                seen.push(number(&frame.data));
                id = frame.id.unwrap();
            }
            subscriber = relay.resume(&id);
        }
    });
    assert!(seen.into_iter().eq(0..EVENTS));
}

#[test]
fn an_unknown_id_gets_a_gap_and_every_kept_event() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 0..5);
    let (epoch, sequence) = frames[4].id().split_once('-').unwrap();
    let (foreign, of_a_later_log) = (format!("1-{sequence}"), format!("99{epoch}-1"));
    let long = format!("{epoch}-{:0>128}", 1);
    let cases = [
        (foreign.as_str(), Some(foreign.as_str())),
        (&of_a_later_log, Some(&of_a_later_log)),
        ("not an id", None),
        (epoch, None),
        (&long, None),
    ];
    for (n, (id, after)) in cases.into_iter().enumerate() {
        let mut resumed = relay.resume(id);
        let gap = resumed.gap();
        let notice = gap.json();
        assert_eq!(notice["reason"], "unknown_id", "{id}");
        assert_eq!(notice["product_id"], PRODUCT);
        assert_eq!(notice["after"].as_str(), after, "{id}");
        assert_eq!(notice["before"], frames[0].id(), "{id}");
        assert!(resumed.numbers(5).into_iter().eq(0..5), "{id}");
        assert_eq!(gaps(&relay, "unknown_id"), (n + 1) as f64);
        let mut again = relay.resume(gap.id());
        assert!(
            again.numbers(5).into_iter().eq(0..5),
            "the id of the gap repeats neither it nor an event"
        );
    }
}

#[test]
fn a_gap_for_an_unknown_id_in_an_empty_log_has_no_before_id() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut resumed = relay.resume("1-1");
    let gap = resumed.gap();
    assert_eq!(
        (&gap.json()["after"], &gap.json()["before"]),
        (&"1-1".into(), &serde_json::Value::Null)
    );
    link.event(event(0));
    assert_eq!(resumed.numbers(1), [0]);
    let mut again = relay.resume(gap.id());
    assert_eq!(again.numbers(1), [0], "no gap: its id is known");
}

#[test]
fn a_reader_whose_next_events_are_evicted_gets_a_gap_between_two_ids() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 0..50);
    let mut resumed = relay.resume(frames[3].id());
    let gap = resumed.gap();
    let notice = gap.json();
    assert_eq!(notice["reason"], "evicted");
    assert_eq!(
        (notice["after"].as_str(), notice["before"].as_str()),
        (Some(frames[3].id()), Some(frames[34].id()))
    );
    for frame in &frames[34..] {
        assert_eq!(resumed.event(), *frame);
    }
    assert_eq!(gaps(&relay, "evicted"), 1.0);
    let mut again = relay.resume(gap.id());
    for frame in &frames[34..] {
        assert_eq!(again.event(), *frame, "the id of the gap repeats neither it nor an event");
    }
    let mut in_time = relay.resume(frames[33].id());
    assert_eq!(in_time.event(), frames[34], "a reader that missed no event gets no gap");
    assert_eq!(gaps(&relay, "evicted"), 1.0);
}

#[test]
fn events_evicted_by_the_byte_limit_are_a_gap() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_bytes = '64KiB'").start();
    let mut link = connector.stream();
    let large = |n: usize| event_of(&"x".repeat(3000), n);
    let mut subscriber = relay.subscribe();
    let frames: Vec<_> = (0..60)
        .map(|n| {
            link.event(large(n));
            subscriber.event()
        })
        .collect();
    let mut resumed = relay.resume(frames[0].id());
    let gap = resumed.gap().json();
    assert_eq!(
        (gap["reason"].as_str(), gap["after"].as_str()),
        (Some("evicted"), Some(frames[0].id()))
    );
    let first = resumed.event();
    assert_eq!(gap["before"].as_str(), Some(first.id()));
    let first = number(&first.data);
    assert!((35..60).contains(&first), "64 KiB hold about twenty of them: {first}");
    assert!(resumed.numbers(59 - first).into_iter().eq(first + 1..60));
}

#[test]
fn a_session_whose_events_are_all_kept_has_no_gap_when_others_are_evicted() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let mine = event_of("mine", 0);
    let mut all = relay.subscribe();
    for n in 0..3 {
        link.event(event_of("other", n));
    }
    link.event(&mine);
    let frames: Vec<_> = (0..4).map(|_| all.event()).collect();
    for n in 0..12 {
        link.event(event_of("other", n));
    }
    link.event(event_of("other", 12));
    link.event(event_of("other", 13));
    (0..14).for_each(|_| drop(all.event()));
    // The first two events are evicted; the only event of "mine" is kept.
    let path = "/stream/prod_abc?session_id=mine";
    let mut resumed = Subscriber::open(relay.public, path, &[("Last-Event-ID", frames[0].id())]);
    assert_eq!(resumed.event(), frames[3]);
    assert_eq!(gaps(&relay, "evicted"), 0.0);
    let mut other = Subscriber::open(
        relay.public,
        "/stream/prod_abc?session_id=other",
        &[("Last-Event-ID", frames[0].id())],
    );
    assert_eq!(other.gap().json()["reason"], "evicted", "a session with evicted events gets a gap");
}

#[test]
fn a_session_whose_last_seen_event_is_evicted_has_no_gap_while_its_next_one_is_kept() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let frames: Vec<_> = (0..21)
        .map(|n| {
            link.event(event_of(if n % 10 == 0 { "mine" } else { "other" }, n));
            all.event()
        })
        .collect();
    let mut resumed = Subscriber::open(relay.public, MINE, &[("Last-Event-ID", frames[0].id())]);
    assert_eq!(resumed.event(), frames[10]);
    assert_eq!(resumed.event(), frames[20]);
    assert_eq!(gaps(&relay, "evicted"), 0.0);
}

#[test]
fn a_burst_of_other_sessions_larger_than_the_log_is_no_gap_for_a_connected_session() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let mut mine = relay.subscribe_to(MINE);
    for round in 0..20 {
        (0..100).for_each(|n| link.event(event_of("other", n)));
        link.event(event_of("mine", round));
        assert_eq!(mine.numbers(1), [round]);
    }
    assert_eq!(gaps(&relay, "evicted"), 0.0);
}

#[test]
fn an_outage_evicted_from_the_log_is_still_a_gap_for_a_session() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let (mut all, mut mine) = (relay.subscribe(), relay.subscribe_to(MINE));
    link.event(event_of("mine", 0));
    let seen = mine.event();
    assert_eq!(all.event(), seen);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(mine.gap().id, all.gap().id);
    for n in 1..31 {
        link.event(event_of(if n == 30 { "mine" } else { "other" }, n));
        assert_eq!(all.numbers(1), [n]);
    }
    assert_eq!(mine.numbers(1), [30], "a connected subscriber has missed no event");
    let mut resumed = Subscriber::open(relay.public, MINE, &[("Last-Event-ID", seen.id())]);
    let notice = resumed.gap().json();
    assert_eq!((&notice["reason"], notice["after"].as_str()), (&"evicted".into(), Some(seen.id())));
    assert_eq!(resumed.numbers(1), [30]);
}

#[test]
fn an_unknown_id_with_a_filter_gets_the_gap_and_the_filtered_events() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    (0..20).for_each(|n| link.event(event_of(if n % 5 == 0 { "mine" } else { "other" }, n)));
    let first = all.event();
    assert!(all.numbers(19).into_iter().eq(1..20));
    let mut resumed = Subscriber::open(relay.public, MINE, &[("Last-Event-ID", "7-7")]);
    let gap = resumed.gap();
    assert_eq!(
        (&gap.json()["reason"], &gap.json()["before"]),
        (&"unknown_id".into(), &first.id().into())
    );
    assert_eq!(resumed.numbers(4), [0, 5, 10, 15]);
}

/// Path of the stream of one session.
const MINE: &str = "/stream/prod_abc?session_id=mine";

/// Sends events, and returns the frames that a subscriber receives.
fn publish(relay: &Relay, link: &mut Link, numbers: std::ops::Range<usize>) -> Vec<Frame> {
    let mut subscriber = relay.subscribe();
    numbers
        .map(|n| {
            link.event(event(n));
            let frame = subscriber.event();
            assert_eq!(number(&frame.data), n);
            frame
        })
        .collect()
}

/// Returns how many gaps of a reason have been counted.
fn gaps(relay: &Relay, reason: &str) -> f64 {
    let labels = [("product_id", PRODUCT), ("reason", reason)];
    wait::value("the counter exists", || {
        relay.metrics().value("autoplay_relay_gaps_total", &labels)
    })
}
