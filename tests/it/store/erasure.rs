//! Erasure: erased events are shown to no reader, are in no file, and are no gap.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT, STREAM,
    connector::{Connector, Link},
    events::event_of,
    http::{self, Answer},
    page::{Page, Storage, publish},
    relay::{Relay, Setup},
    subscriber::Frame,
    wait,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// The session that is erased.
const MINE: &str = "session-of-mine";

#[test]
fn an_erased_session_is_hidden_from_all_readers_counted_once_and_no_gap() {
    for storage in Storage::ALL {
        let (relay, mut link, frames, _directory) = filled(storage);
        let others: Vec<_> = frames.iter().filter(|frame| !is_mine(frame)).cloned().collect();
        let mut live = relay.subscribe();
        let mut live_of_mine = relay.subscribe_to(&format!("{STREAM}?session_id={MINE}"));
        assert_eq!(erase(&relay, &format!("session_id={MINE}")), 40, "{storage:?}");
        for limit in ["limit=7", "limit=1000"] {
            assert_eq!(Page::all_events(&relay, "0", limit), others, "{storage:?}");
        }
        let of_mine = Page::get(&relay, &format!("?session_id={MINE}"));
        assert_eq!(
            (of_mine.events.len(), of_mine.gap, of_mine.next.as_str()),
            (0, None, frames[119].id())
        );
        // All ids can be resumed from, those of erased events too.
        for from in [0, 1, 50, 90, 117] {
            let mut resumed = relay.resume(frames[from].id());
            let rest: Vec<_> = frames[from + 1..].iter().filter(|frame| !is_mine(frame)).collect();
            assert!(
                rest.iter().all(|frame| resumed.item() == **frame),
                "{storage:?} behind {from}"
            );
        }
        let path = format!("{STREAM}?session_id={MINE}&last_event_id={}", frames[0].id());
        relay.subscribe_to(&path).expect_nothing(Duration::from_millis(100));
        assert_eq!(
            erase(&relay, &format!("session_id={MINE}")),
            0,
            "{storage:?}: no event is left"
        );

        let later = publish(&relay, &mut link, [event_of(MINE, 120), event_of("other", 121)]);
        assert_eq!(
            (live.item(), live.item()),
            (later[0].clone(), later[1].clone()),
            "live subscribers saw no other entry"
        );
        assert_eq!(live_of_mine.item(), later[0], "{storage:?}: later events are delivered");
        assert_eq!(
            Page::get(&relay, &format!("?session_id={MINE}")).events,
            later[..1],
            "{storage:?}"
        );
        for reason in ["evicted", "not_kept", "unknown_id", "upstream_reconnect"] {
            let labels = [("product_id", PRODUCT), ("reason", reason)];
            assert_eq!(
                relay.metrics().value("autoplay_relay_gaps_total", &labels),
                Some(0.0),
                "{storage:?} {reason}"
            );
        }
    }
}

#[test]
fn several_sessions_are_erased_at_once_and_other_products_are_untouched() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let elsewhere = Connector::new();
        let relay = setup.upstream("prod_xyz", &elsewhere.url("prod_xyz"), "").start();
        let mut link = connector.stream();
        let mut link_elsewhere = elsewhere.stream();
        let frames = publish(
            &relay,
            &mut link,
            (0..60).map(|n| event_of(["a b", "ä/&", "a", "b"][n % 4], n)),
        );
        let mut witness = relay.subscribe_to("/stream/prod_xyz");
        link_elsewhere.event(r#"{"type":"actions","session_id":"a b","count":0}"#);
        witness.event();
        assert_eq!(
            erase(
                &relay,
                "session_id=a+b&session_id=%C3%A4%2F%26&session_id=nobody&session_id=a%20b"
            ),
            30
        );
        let rest: Vec<_> = frames
            .into_iter()
            .enumerate()
            .filter(|(n, _)| n % 4 > 1)
            .map(|(_, frame)| frame)
            .collect();
        assert_eq!(Page::all_events(&relay, "0", ""), rest, "{storage:?}");
        let elsewhere = Page::read(&relay.get("/events/prod_xyz", &[]));
        assert_eq!(elsewhere.numbers(), [0], "{storage:?}");
    }
}

#[test]
fn erased_events_are_in_no_file_and_do_not_return_after_a_restart() {
    for signal in ["TERM", "KILL"] {
        let connector = Connector::new();
        let (setup, directory) = Storage::Disk.setup(&connector);
        let mut relay = setup.start();
        let mut link = connector.stream();
        let frames = publish(&relay, &mut link, mixed());
        let labels = [("product_id", PRODUCT), ("tier", "disk")];
        relay.wait_for_metric("autoplay_relay_log_events", &labels, 120.0);
        assert!(files_with(directory.path(), MINE) > 0, "stored events are in a file");
        assert!(files_with(directory.path(), SECRET) > 0);
        assert_eq!(erase(&relay, &format!("session_id={MINE}")), 40);
        // SQLite's copies in other files disappear a moment after the response.
        wait::until("no file and no index contains the session", || {
            files_with(directory.path(), MINE) == 0
        });
        assert_eq!(files_with(directory.path(), SECRET), 0);
        assert_eq!(relay.status()["log"][PRODUCT]["disk"]["events"], 80);
        relay.process.signal(signal);
        relay.process.exit_code();
        drop(link);
        assert_eq!(files_with(directory.path(), SECRET), 0);

        let relay = setup.start();
        let others: Vec<_> = frames.iter().filter(|frame| !is_mine(frame)).cloned().collect();
        assert_eq!(Page::all_events(&relay, "0", ""), others, "{signal}");
        let mut resumed = relay.resume(frames[1].id());
        assert!(others[1..].iter().all(|frame| resumed.item() == *frame), "{signal}");
        let of_mine =
            Page::get(&relay, &format!("?session_id={MINE}&last_event_id={}", frames[1].id()));
        assert_eq!((of_mine.events.len(), of_mine.gap), (0, None), "{signal}");
        assert_eq!(erase(&relay, &format!("session_id={MINE}")), 0, "{signal}");
    }
}

#[test]
fn an_event_is_erased_and_counted_once_however_recent() {
    let connector = Connector::new();
    let (setup, _directory) = Storage::Disk.setup(&connector);
    let relay = setup.start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    for round in 0..60 {
        // Some events are stored by now, some are on the way, some are not taken by the store's
        // writer yet.
        (0..3).for_each(|n| link.event(event_of(MINE, n)));
        subscriber.numbers(3);
        std::thread::sleep(Duration::from_micros(200 * (round % 30)));
        link.event(event_of(MINE, 3));
        subscriber.numbers(1);
        assert_eq!(erase(&relay, &format!("session_id={MINE}")), 4, "{round}");
    }
    assert!(Page::all(&relay, "0", "").is_empty());
    let labels = [("product_id", PRODUCT), ("tier", "disk")];
    relay.wait_for_metric("autoplay_relay_log_events", &labels, 0.0);
}

#[test]
fn a_reader_in_the_middle_of_the_store_does_not_return_erased_events() {
    let (relay, _link, frames, _directory) = filled(Storage::Disk);
    let half = Page::get(&relay, "?limit=60");
    erase(&relay, &format!("session_id={MINE}"));
    let rest = Page::all_events(&relay, &half.next, "limit=7");
    assert!(rest.iter().eq(frames[60..].iter().filter(|frame| !is_mine(frame))));
}

#[test]
fn an_erasure_that_the_store_cannot_write_is_refused_and_can_be_repeated() {
    let (relay, mut link, frames, directory) = filled(Storage::Disk);
    let others: Vec<_> = frames.into_iter().filter(|frame| !is_mine(frame)).collect();
    // An operator locks the database: the relay's writer waits a second, and gives up.
    let operator = Connection::open(directory.path().join("data/relay.db")).unwrap();
    operator.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = ask(&relay, "DELETE", &format!("session_id={MINE}")).problem(503);
    assert!(refused.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert!(refused.json()["detail"].as_str().unwrap().contains("repeat"), "{refused:?}");
    expect_degraded(&relay, true);

    link.event(event_of("other", 120));
    let in_memory = wait::value("events are still served", || {
        let page = Page::get(&relay, &format!("?last_event_id={}", others[76].id()));
        (page.events.len() == 4).then_some(page.events)
    });
    assert_eq!(in_memory[..3], others[77..], "memory is erased already");
    operator.execute_batch("ROLLBACK").unwrap();
    expect_degraded(&relay, false);
    assert_eq!(erase(&relay, &format!("session_id={MINE}")), 40, "the store had all events");
    assert_eq!(Page::all_events(&relay, "0", "")[..80], others);
    assert_eq!(relay.status()["log"][PRODUCT]["disk"]["events"], 81);
}

/// Waits until readiness, status and metrics show this state of the store.
fn expect_degraded(relay: &Relay, is_degraded: bool) {
    relay.wait_for_metric("autoplay_relay_log_degraded", &[], f64::from(u8::from(is_degraded)));
    let ready = relay.ask_admin("/readyz");
    assert_eq!(
        (ready.status(), &ready.json()["degraded"]),
        (200, &is_degraded.into()),
        "the relay serves all the same"
    );
    assert_eq!(ready.json()["log_degraded"], is_degraded, "beside a list of products, too");
    assert_eq!(relay.status()["store"]["degraded"], is_degraded);
}

#[test]
fn an_erasure_requires_a_product_a_session_and_the_admin_key() {
    let connector = Connector::new();
    let key = "an-admin-key-of-the-test";
    let setup =
        Setup::behind(&connector).auth(&format!("allow_anonymous = true\nadmin_key = '{key}'"));
    let relay = setup.start();
    let as_admin =
        |method, path: &str| http::ask(relay.admin, method, path, &[("X-Admin-Key", key)]);
    let path = "/api/v1/events/prod_abc";
    for query in [
        "",
        "?",
        "?session_id=",
        "?session_id",
        "?session=a",
        "?session_id=a&session_id=",
        "?session_id=a%0Ab",
    ] {
        as_admin("DELETE", &format!("{path}{query}")).problem(400);
    }
    let too_many = (0..1001).map(|n| format!("session_id=s{n}&")).collect::<String>();
    as_admin("DELETE", &format!("{path}?{too_many}")).problem(400);
    as_admin("DELETE", "/api/v1/events/prod_xyz?session_id=a").problem(404);
    as_admin("DELETE", "/api/v1/events/?session_id=a").problem(404);
    let by_get = as_admin("GET", &format!("{path}?session_id=a")).problem(405);
    assert_eq!(by_get.field("allow"), Some("DELETE"));
    http::ask(relay.admin, "DELETE", &format!("{path}?session_id=a"), &[]).problem(401);
    http::ask(relay.admin, "DELETE", &format!("{path}?session_id=a"), &[("X-Admin-Key", "wrong")])
        .problem(401);
    http::ask(relay.public, "DELETE", &format!("{path}?session_id=a"), &[]).problem(404);
    let unknown = as_admin("DELETE", &format!("{path}?session_id=a"));
    assert_eq!((unknown.status(), unknown.json()), (200, serde_json::json!({ "erased": 0 })));
    let line = relay.process.log_line("erased on request");
    assert_eq!(
        (&line["product"], &line["sessions"], &line["events"]),
        (&"prod_abc".into(), &1.into(), &0.into())
    );
}

#[test]
fn the_log_records_an_erasure_without_its_session() {
    let (relay, _link, _frames, _directory) = filled(Storage::Memory);
    erase(&relay, &format!("session_id={MINE}"));
    let line = relay.process.log_line("erased on request");
    assert_eq!((&line["level"], &line["events"]), (&"INFO".into(), &40.into()));
    assert!(!relay.process.stderr.so_far().join("\n").contains(MINE));
}

/// Starts a relay with 120 events of three sessions, one of which is to be erased.
fn filled(storage: Storage) -> (Relay, Link, Vec<Frame>, TempDir) {
    let connector = Connector::new();
    let (setup, directory) = storage.setup(&connector);
    let relay = setup.start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, mixed());
    storage.wait_until_stored(&relay, 120);
    (relay, link, frames, directory)
}

/// Returns payloads of which every third is of the session to be erased.
fn mixed() -> impl Iterator<Item = String> {
    (0..120).map(|n| match n % 3 {
        0 => event_of(MINE, n).replace(
            "\"count\"",
            &format!("\"note\":\"{SECRET}{}\",\"count\"", "x".repeat(n * 50)),
        ),
        _ => event_of(["", "hers", "his"][n % 3], n),
    })
}

/// Contained in each payload of the session to be erased.
const SECRET: &str = "nobody-may-know";

fn is_mine(frame: &Frame) -> bool {
    frame.json()["session_id"] == MINE
}

/// Erases, and returns the number of erased events.
fn erase(relay: &Relay, query: &str) -> u64 {
    let answer = ask(relay, "DELETE", query);
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()["erased"].as_u64().unwrap()
}

fn ask(relay: &Relay, method: &str, query: &str) -> Answer {
    let begin = Instant::now();
    let answer = http::ask(relay.admin, method, &format!("/api/v1/events/{PRODUCT}?{query}"), &[]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    answer
}

/// Counts the files below a directory that contain these bytes.
fn files_with(directory: &Path, text: &str) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let has_it = |path: &Path| {
        std::fs::read(path).unwrap().windows(text.len()).any(|it| it == text.as_bytes())
    };
    entries
        .map(
            |path| if path.is_dir() { files_with(&path, text) } else { usize::from(has_it(&path)) },
        )
        .sum()
}
