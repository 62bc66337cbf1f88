//! Damage between rows: rows that are gone, indices that leave out rows, counters that are wrong.

use std::fs;

use rusqlite::Connection;
use serde_json::json;

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event_of,
    page::Page,
    receiver::Receiver,
    relay::Relay,
    store::DataDir,
    subscriber::{Frame, Subscriber},
    wait,
    webhooks::{LOOPBACK, table},
};

#[test]
fn rows_that_are_gone_are_a_gap_for_every_reader_and_erased_ones_are_not() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 40, |n| if n == 20 { "erased" } else { "mine" });
    relay.wait_until_persisted(40);
    let erase = format!("/api/v1/events/{PRODUCT}?session_id=erased");
    assert_eq!(relay.call("DELETE", &erase, &json!(null)).status(), 200);
    relay.stop();
    drop(link);
    let lost = "DELETE FROM entries WHERE CAST(payload AS TEXT) LIKE '%\"count\":1_}'";
    assert_eq!(Connection::open(data.database()).unwrap().execute(lost, []), Ok(10));
    for _ in 0..2 {
        let relay = data.relay(&connector);
        let line = relay.process.log_line("rows of the store are gone: readers get a gap in their place; \
                                           replays of single sessions are slower until retention has removed the place");
        assert_eq!(line["level"], "ERROR");
        for query in ["", "?session_id=mine", "?type=actions"] {
            let path = format!("/stream/{PRODUCT}{query}");
            let fields = [("Last-Event-ID", frames[2].id())];
            let mut resumed = Subscriber::open(relay.public, &path, &fields);
            frames[3..10].iter().for_each(|frame| assert_eq!(resumed.event(), *frame, "{query}"));
            let notice = resumed.gap().json();
            assert_eq!(
                (&notice["reason"], &notice["after"], &notice["before"]),
                (&json!("not_kept"), &json!(frames[9].id()), &json!(frames[20].id())),
                "{query}"
            );
            frames[21..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame, "{query}"));
        }
        let first = Page::get(&relay, &format!("?last_event_id={}", frames[2].id()));
        assert_eq!((first.events.len(), first.reason()), (7, None));
        let second = Page::get(&relay, &format!("?last_event_id={}", first.next));
        assert_eq!((second.reason(), second.events.len()), (Some("not_kept"), 19));
        assert_eq!(relay.gaps("not_kept"), 1.0, "counted once");
        assert_eq!(lines(&relay, "a row of the store does not fit its checksum"), 1, "told once");
        assert_eq!(data.set_aside().len(), 0);
        relay.stop();
    }
}

#[test]
fn a_row_that_its_page_no_longer_counts_is_a_gap_and_a_dead_letter_where_it_is_owed() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    receiver.stop();
    let relay = setup.start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 12, |_| "s");
    relay.wait_until_persisted(12);
    relay.wait_for_pending("hook", 12);
    relay.stop();
    drop(link);
    uncount_last_row(&data, "entries", 0x0d);
    receiver.start();
    let relay = setup.start();
    let mut resumed = relay.resume(frames[2].id());
    frames[3..11].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    assert_eq!(resumed.gap().json()["reason"], "not_kept");
    receiver.wait_for_accepted(11);
    relay.wait_for_dead("hook", 1);
    let dead = relay.wait_for_deliveries("hook", "dead", 1).remove(0);
    assert_eq!((&dead["reason"], &dead["id"]), (&json!("damaged"), &json!(frames[11].id())));
    relay.wait_until_settled("hook");
}

#[test]
fn an_index_that_leaves_out_a_row_is_made_anew_and_costs_no_event() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, 40, |n| if n % 2 == 0 { "a" } else { "b" });
    relay.wait_until_persisted(40);
    relay.stop();
    drop(link);
    uncount_last_row(&data, "session_index", 0x0a);
    let relay = data.relay(&connector);
    for _ in 0..2 {
        for session in ["a", "b"] {
            let path = format!("/stream/{PRODUCT}?session_id={session}");
            let fields = [("Last-Event-ID", frames[1].id())];
            let mut resumed = Subscriber::open(relay.public, &path, &fields);
            let expected = (2..40).filter(|n| (n % 2 == 0) == (session == "a"));
            assert!(resumed.numbers(19).into_iter().eq(expected), "{session}");
        }
        assert_eq!(relay.process.log_line(REPAIRED)["level"], "ERROR");
    }
    assert_eq!((relay.gaps("not_kept"), data.set_aside().len()), (0.0, 0));
    relay.stop();
    let relay = data.relay(&connector);
    wait::until("the index is whole", || {
        let check = Connection::open(data.database()).unwrap();
        check.query_row("SELECT count(*) FROM session_index", [], |row| row.get(0)) == Ok(40)
    });
    assert_eq!(lines(&relay, REPAIRED), 0);
}

#[test]
fn counters_of_dead_letters_that_are_wrong_are_made_anew_and_delete_nothing() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::answering(400));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, 5, |_| "s");
    relay.wait_for_dead("hook", 5);
    relay.stop();
    drop(link);
    for change in
        ["dead = 9, dead_bytes = 1 << 50", "dead = -3, requeued = 2, dead_bytes = -1 << 50"]
    {
        let update = format!("UPDATE webhooks SET {change}");
        assert_eq!(Connection::open(data.database()).unwrap().execute(&update, []), Ok(1));
        let relay = setup.start();
        assert_eq!(relay.process.log_line(REPAIRED)["level"], "ERROR");
        relay.wait_for_dead("hook", 5);
        assert_eq!(relay.deliveries("hook", "dead").len(), 5, "{change}");
        assert_eq!(lines(&relay, "dead letters beyond their bound are lost"), 0, "{change}");
        assert_eq!(data.set_aside().len(), 0, "{change}");
        relay.stop();
    }
}

/// Publishes events of the sessions that `session_of` gives them.
fn publish(
    relay: &Relay,
    link: &mut Link,
    count: usize,
    session_of: impl Fn(usize) -> &'static str,
) -> Vec<Frame> {
    let mut all = relay.subscribe();
    let frames = (0..count).map(|n| {
        link.event(event_of(session_of(n), n));
        all.event()
    });
    frames.collect()
}

/// Lowers the count of rows in the last leaf of a table or an index, whose pages begin with `kind`.
fn uncount_last_row(data: &DataDir, name: &str, kind: u8) {
    let root: u32 = Connection::open(data.database())
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0))
        .unwrap();
    let mut bytes = fs::read(data.database()).unwrap();
    let mut page = (root as usize - 1) * 8192;
    let number = |bytes: &[u8], at: usize, length: usize| {
        bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    while bytes[page] != kind {
        page = (number(&bytes, page + 8, 4) - 1) * 8192;
    }
    let count = number(&bytes, page + 3, 2) - 1;
    bytes[page + 3..page + 5].copy_from_slice(&u16::try_from(count).unwrap().to_be_bytes());
    fs::write(data.database(), bytes).unwrap();
}

/// Returns how many lines of the log contain this text.
fn lines(relay: &Relay, text: &str) -> usize {
    relay.process.stderr.so_far().iter().filter(|line| line.contains(text)).count()
}

const REPAIRED: &str =
    "indices or counters of the store were damaged: they are made anew from its rows";
