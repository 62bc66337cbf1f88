//! The contents of pages.

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::{event, event_like, event_of},
    page::{PAGES, Page, Storage, publish},
    relay::{Relay, Setup},
    wait,
};

#[test]
fn pages_read_by_next_return_every_event_once_in_order_byte_for_byte() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let frames = publish(&relay, &mut link, (0..150).map(peculiar));
        storage.wait_until_stored(&relay, 150);
        for limit in [1, 7, 16, 150, 1000] {
            let pages = Page::all(&relay, "0", &format!("limit={limit}"));
            assert_eq!(pages.len(), 150_usize.div_ceil(limit), "{storage:?} {limit}");
            let events: Vec<_> = pages.iter().flat_map(|page| page.events.clone()).collect();
            assert_eq!(events, frames, "{storage:?} {limit}");
            assert!(pages.iter().all(|page| page.next == page.events.last().unwrap().id()));
        }
        for from in [0, 1, 15, 100, 133, 134, 135, 148, 149] {
            let rest = Page::all_events(&relay, frames[from].id(), "limit=40");
            assert_eq!(rest, frames[from + 1..], "{storage:?} behind {from}");
        }
    }
}

/// Returns a numbered payload in a form that no serializer would write again.
fn peculiar(number: usize) -> String {
    let rest = match number % 5 {
        0 => r#""price" : 1.50e+02,"price":1"#.to_owned(),
        1 => "\"text\":\"\\u00e4 \u{1f980} \\/\"".to_owned(),
        2 => "\"lines\":\n[1,\n\n2]".to_owned(),
        3 => format!("\"large\":\"{}\"", "x".repeat(3000)),
        _ => "\"number\":123456789012345678901234567890".to_owned(),
    };
    format!(
        r#"{{"type":"actions","product_id":"{PRODUCT}","session_id":"s{}","count":{number}, {rest} }}"#,
        number % 3
    )
}

#[test]
fn a_page_keeps_white_space_around_a_payload_and_is_valid_json() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.send("data:  \t{\"type\":\"x\"} \n\ndata: {\ndata:\ndata: \"type\":\"y\"}\n\n");
    let (first, second) = (subscriber.event().id.unwrap(), subscriber.event().id.unwrap());
    let answer = relay.get(PAGES, &[]);
    assert_eq!((answer.status(), answer.field("content-type")), (200, Some("application/json")));
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let expected = format!(
        "{{\"events\":[{{\"id\":\"{first}\",\"data\": \t{{\"type\":\"x\"}} }},\
         {{\"id\":\"{second}\",\"data\":{{\n\n\"type\":\"y\"}}}}],\
         \"next\":\"{second}\",\"gap\":null}}"
    );
    assert_eq!(answer.text(), expected);
    assert_eq!(answer.json()["events"][1]["data"]["type"], "y");
}

#[test]
fn a_filtered_page_has_its_events_and_a_next_id_past_hidden_ones() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let kind = |n| if n % 3 == 0 { "summary" } else { "actions" };
        let payloads =
            (0..120).map(|n| event_like(kind(n), ["mine", "hers", "other", "other"][n % 4], n));
        let frames = publish(&relay, &mut link, payloads);
        storage.wait_until_stored(&relay, 120);
        let is_mine = |n: &usize| n.is_multiple_of(4);
        let is_hers_or_mine = |n: &usize| n % 4 < 2;
        let is_summary = |n: &usize| n.is_multiple_of(3);
        let numbers = |query: &str| -> Vec<usize> {
            let pages = Page::all(&relay, "0", query);
            let is_at_end = pages.last().is_some_and(|page| page.next == frames[119].id());
            assert!(
                is_at_end || query.contains("limit"),
                "{query}: the last page has the newest id"
            );
            pages.iter().flat_map(Page::numbers).collect()
        };
        for limit in ["", "&limit=4", "&limit=1"] {
            let check = |query: &str, expected: Vec<usize>| {
                assert_eq!(
                    numbers(&format!("{query}{limit}")),
                    expected,
                    "{storage:?} {query}{limit}"
                );
            };
            check("session_id=mine", (0..120).filter(is_mine).collect());
            check("session_id=mine&session_id=hers", (0..120).filter(is_hers_or_mine).collect());
            check("type=summary", (0..120).filter(is_summary).collect());
            check(
                "type=summary&session_id=mine",
                (0..120).filter(|n| is_mine(n) && is_summary(n)).collect(),
            );
        }
    }
}

#[test]
fn a_page_whose_filter_hides_everything_advances_and_misses_no_later_event() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let frames = publish(&relay, &mut link, (0..60).map(event));
        for filter in ["session_id=mine", "type=summary"] {
            let page = Page::get(&relay, &format!("?{filter}"));
            assert_eq!(
                (page.events.len(), page.gap, page.next.as_str()),
                (0, None, frames[59].id()),
                "{storage:?}"
            );
        }
        let behind_others =
            Page::get(&relay, &format!("?session_id=mine&last_event_id={}", frames[20].id()));
        assert_eq!((behind_others.events.len(), behind_others.next.as_str()), (0, frames[59].id()));
        let mine = publish(&relay, &mut link, [event_of("mine", 60), event_of("other", 61)]);
        let page =
            Page::get(&relay, &format!("?session_id=mine&last_event_id={}", behind_others.next));
        assert_eq!(
            (&page.events[..], page.next.as_str()),
            (&mine[..1], mine[1].id()),
            "{storage:?}"
        );
    }
}

#[test]
fn polling_at_the_end_of_the_log_neither_repeats_nor_loses_events() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        // An empty log has an id to continue from, too.
        let empty = Page::get(&relay, "");
        assert!(
            empty.events.is_empty() && empty.gap.is_none() && empty.next.ends_with("-0"),
            "{empty:?}"
        );
        let mut link = connector.stream();
        let mut next = empty.next;
        for round in 0..3 {
            for _ in 0..2 {
                let page = Page::get(&relay, &format!("?last_event_id={next}"));
                assert!(page.events.is_empty() && page.gap.is_none(), "{storage:?} {page:?}");
                assert_eq!(page.next, next, "{storage:?}: nothing has happened");
            }
            let frames = publish(&relay, &mut link, (0..round * 20 + 1).map(event));
            let page = Page::get(&relay, &format!("?last_event_id={next}"));
            assert_eq!((page.events, page.gap), (frames, None), "{storage:?}");
            next = page.next;
        }
    }
}

#[test]
fn pages_have_no_duplicate_and_no_hole_while_events_arrive() {
    const EVENTS: usize = 1000;
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let mut seen = Vec::new();
        let mut next = Page::get(&relay, "").next;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..EVENTS {
                    link.event(event(n));
                    std::thread::yield_now();
                }
            });
            wait::until("all events have arrived", || {
                let page = Page::get(&relay, &format!("?last_event_id={next}&limit=37"));
                assert_eq!(page.gap, None, "{storage:?}");
                seen.extend(page.numbers());
                next = page.next;
                seen.len() >= EVENTS
            });
        });
        assert!(seen.into_iter().eq(0..EVENTS), "{storage:?}");
    }
}

#[test]
fn a_page_never_crosses_a_gap() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let before = publish(&relay, &mut link, (0..3).map(event));
        let link = reconnect(&relay, &connector, link, 1.0);
        let mut link = reconnect(&relay, &connector, link, 2.0);
        let after = publish(&relay, &mut link, (3..40).map(event));
        let mut resumed = relay.resume(before[2].id());
        let (first, second) = (resumed.gap(), resumed.gap());

        let pages = Page::all(&relay, "0", "");
        assert_eq!(pages.len(), 3, "{storage:?} {pages:?}");
        assert_eq!((&pages[0].events, &pages[0].gap), (&before, &None));
        assert_eq!(pages[0].next, before[2].id(), "the gap is the next page's");
        assert_eq!(
            (pages[1].events.len(), &pages[1].gap),
            (0, &Some(first.json())),
            "a second gap ends the page, too"
        );
        assert_eq!(pages[1].next, first.id());
        assert_eq!((&pages[2].events, &pages[2].gap), (&after, &Some(second.json())));
        assert_eq!(pages[2].next, after[36].id());

        let shortest = Page::all(&relay, before[1].id(), "limit=1");
        let gaps: Vec<_> = shortest.iter().take(4).map(|page| page.gap.clone()).collect();
        assert_eq!(gaps, [None, Some(first.json()), Some(second.json()), None], "{storage:?}");
        assert_eq!((shortest[2].numbers(), shortest[3].numbers()), (vec![3], vec![4]));
        let of_unknown = Page::all(&relay, "0", "session_id=nobody");
        assert_eq!(of_unknown.len(), 2, "a gap passes every filter: {of_unknown:?}");
        assert_eq!(
            (&of_unknown[1].gap, of_unknown[1].next.as_str()),
            (&Some(second.json()), after[36].id())
        );
    }
}

/// Resets the upstream connection, and returns the next one once the relay has logged the gap.
fn reconnect(relay: &Relay, connector: &Connector, link: Link, gaps: f64) -> Link {
    link.reset();
    let link = connector.stream();
    wait_for_gaps(relay, gaps);
    link
}

/// Waits until the relay has logged this many gaps.
fn wait_for_gaps(relay: &Relay, gaps: f64) {
    let labels = [("product_id", PRODUCT), ("reason", "upstream_reconnect")];
    relay.wait_for_metric("autoplay_relay_gaps_total", &labels, gaps);
}

#[test]
fn a_page_announces_evicted_events_before_its_first_event() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, (0..50).map(event));
    let pages = Page::all(&relay, frames[3].id(), "limit=10");
    assert_eq!(pages.len(), 2);
    let gap = pages[0].gap.as_ref().unwrap();
    assert_eq!(
        (&gap["type"], &gap["reason"], &gap["product_id"]),
        (&"gap".into(), &"evicted".into(), &PRODUCT.into())
    );
    assert_eq!(
        (gap["after"].as_str(), gap["before"].as_str()),
        (Some(frames[3].id()), Some(frames[34].id()))
    );
    assert_eq!((&pages[0].events[..], &pages[1].gap), (&frames[34..44], &None));
    assert_eq!(pages[1].events, frames[44..]);
    for from in ["", "?last_event_id=0"] {
        let kept = Page::get(&relay, from);
        assert_eq!(
            (&kept.events[..], kept.gap),
            (&frames[34..], None),
            "a reader of every kept event misses none"
        );
    }
}

#[test]
fn an_unknown_id_gets_a_gap_and_every_kept_event() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        relay.wait_for_upstream("connected");
        for (id, after) in [("7-7", Some("7-7")), ("nonsense", None)] {
            let page = Page::get(&relay, &format!("?last_event_id={id}"));
            assert_eq!(
                (page.reason(), page.events.len()),
                (Some("unknown_id"), 0),
                "{storage:?} {id}"
            );
            let gap = page.gap.unwrap();
            assert_eq!((gap["after"].as_str(), &gap["before"]), (after, &serde_json::Value::Null));
            let again = Page::get(&relay, &format!("?last_event_id={}", page.next));
            assert_eq!((again.gap, again.next), (None, page.next), "the relay's own id is known");
        }
        let frames = publish(&relay, &mut link, (0..30).map(event));
        for id in ["7-7", "nonsense"] {
            let by_header = Page::read(
                &relay.get(&format!("{PAGES}?limit=20&last_event_id=0"), &[("Last-Event-ID", id)]),
            );
            assert_eq!(
                (by_header.reason(), &by_header.events[..]),
                (Some("unknown_id"), &frames[..20]),
                "{storage:?} {id}"
            );
            assert_eq!(by_header.gap.unwrap()["before"], frames[0].id());
            let rest = Page::get(&relay, &format!("?last_event_id={}", by_header.next));
            assert_eq!((rest.gap, &rest.events[..]), (None, &frames[20..]));
        }
    }
}

#[test]
fn a_page_has_a_hundred_events_by_default_and_a_thousand_at_most() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..1010).map(event));
    for (query, count) in [("", 100), ("?limit=1", 1), ("?limit=101", 101), ("?limit=1000", 1000)] {
        assert_eq!(Page::get(&relay, query).events.len(), count, "{query}");
    }
    for limit in ["0", "1001", "", "x", "-1", "1.5", "1e2", "18446744073709551616", "5&limit=0"] {
        relay.get(&format!("{PAGES}?limit={limit}"), &[]).problem(400);
    }
    for query in ["session_id=", "type=", "limit"] {
        relay.get(&format!("{PAGES}?{query}"), &[]).problem(400);
    }
}

#[test]
fn a_page_has_at_most_a_mebibyte_unless_one_event_is_larger() {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "max_event_bytes = '8MiB'").start();
    let mut link = connector.stream();
    let large = |bytes: usize, n| event_of(&"x".repeat(bytes), n);
    let payloads = (0..9).map(|n| large(if n == 6 { 2 << 20 } else { 250 << 10 }, n));
    let frames = publish(&relay, &mut link, payloads);
    let pages = Page::all(&relay, "0", "");
    let counts: Vec<_> = pages.iter().map(|page| page.events.len()).collect();
    assert_eq!(counts, [4, 2, 1, 2]);
    assert!(pages.into_iter().flat_map(|page| page.events).eq(frames));
}

#[test]
fn pages_continue_after_a_restart() {
    let connector = Connector::new();
    let (setup, _directory) = Storage::Disk.setup(&connector);
    let mut relay = setup.start();
    let mut link = connector.stream();
    let before = publish(&relay, &mut link, (0..40).map(event));
    let first = Page::get(&relay, "?limit=25");
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    drop(link);

    let relay = setup.start();
    let second = Page::get(&relay, &format!("?last_event_id={}", first.next));
    assert_eq!((&second.events[..], second.gap), (&before[25..], None));
    let mut link = connector.stream();
    wait_for_gaps(&relay, 1.0);
    let after = publish(&relay, &mut link, (40..60).map(event));
    let pages = Page::all(&relay, &second.next, "");
    assert_eq!(
        (pages.len(), pages[0].reason(), &pages[0].events),
        (1, Some("upstream_reconnect"), &after)
    );
    let everything = Page::all(&relay, "0", "");
    assert!(
        everything.into_iter().flat_map(|page| page.events).eq(before.into_iter().chain(after))
    );
}
