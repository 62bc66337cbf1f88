//! Rows of the store that were changed behind its back: none is served, and the others are.

use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_of, number},
    page::Page,
    receiver::Receiver,
    relay::Relay,
    store::DataDir,
    subscriber::{Frame, Subscriber},
    wait,
    webhooks::{LOOPBACK, table},
    websocket,
};

#[test]
fn a_flipped_byte_in_a_payload_is_one_not_kept_position_for_every_reader() {
    for flip in [0x80, 0x01] {
        let (connector, data) = (Connector::new(), DataDir::new());
        let frames = kept(&connector, &data, 60);
        flip_payload(&data, 30, flip);
        let relay = data.relay(&connector);
        let mut link = relay.reconnect(&connector);
        for _ in 0..2 {
            let mut resumed = relay.resume(frames[3].id());
            assert_one_is_missing(&mut resumed, &frames, 4, 30);
            let mut socket =
                relay.socket(&format!("/ws/{PRODUCT}?last_event_id={}", frames[28].id()));
            assert_eq!(websocket::number(&socket.event()), 29);
            let notice = socket.item();
            assert_eq!(
                (&notice["data"]["reason"], notice["id"].as_str()),
                (&json!("not_kept"), Some(frames[30].id()))
            );
            assert_eq!(websocket::number(&socket.event()), 31);
            let first = Page::get(&relay, &format!("?last_event_id={}", frames[3].id()));
            assert_eq!((&first.events[..], &first.gap), (&frames[4..30], &None));
            let second = Page::get(&relay, &format!("?last_event_id={}", first.next));
            assert_eq!(second.reason(), Some("not_kept"));
            assert_eq!(second.events, frames[31..]);
        }
        let mut behind = relay.resume(frames[30].id());
        assert_eq!(behind.event(), frames[31], "the id of the gap repeats neither it nor an event");
        assert_eq!(relay.gaps("not_kept"), 1.0, "counted once");
        assert_eq!(damaged_rows_in_the_log(&relay), 1, "told once");
        assert_eq!(relay.metrics().value("autoplay_relay_log_degraded", &[]), Some(0.0));
        assert_eq!(data.set_aside().len(), 0);
        link.event(event(60));
        let mut live = relay.resume(frames[59].id());
        live.gap(); // of the restart
        assert_eq!(live.numbers(1), [60]);
    }
}

#[test]
fn a_row_with_a_changed_column_or_the_payload_of_another_is_not_served() {
    for change in [
        "kind = 'summary'",
        "session = 's2'",
        "sequence = sequence + 1",
        "payload = (SELECT payload FROM entries AS other WHERE other.entry = entries.entry + 1)",
        "(payload, payload_sum) = (SELECT payload, payload_sum FROM entries AS other \
         WHERE other.entry = entries.entry + 1)",
    ] {
        let (connector, data) = (Connector::new(), DataDir::new());
        let frames = kept(&connector, &data, 12);
        let update = format!("UPDATE entries SET {change} WHERE CAST(payload AS TEXT) LIKE ?1");
        let changed = Connection::open(data.database()).unwrap();
        assert_eq!(changed.execute(&update, ["%\"count\":7}"]), Ok(1), "{change}");
        drop(changed);
        let relay = data.relay(&connector);
        let _link = relay.reconnect(&connector);
        // SQLite has moved the changed session in its index, which no disk does.
        let by_session = if change.starts_with("session") { "" } else { "?session_id=s1" };
        for query in ["", by_session, "?type=actions"] {
            let path = format!("/stream/{PRODUCT}{query}");
            let fields = [("Last-Event-ID", frames[2].id())];
            let mut resumed = Subscriber::open(relay.public, &path, &fields);
            assert_one_is_missing(&mut resumed, &frames, 3, 7);
        }
        assert_eq!((relay.gaps("not_kept"), damaged_rows_in_the_log(&relay)), (1.0, 1), "{change}");
    }
}

#[test]
fn a_reader_of_another_session_gets_no_gap_for_a_damaged_payload() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let frames: Vec<Frame> = (0..40)
        .map(|n| {
            link.event(event_of(if n == 20 { "other" } else { "mine" }, n));
            all.event()
        })
        .collect();
    relay.wait_until_persisted(40);
    relay.stop();
    drop(link);
    flip_payload(&data, 20, 0x01);
    let relay = data.relay(&connector);
    let _link = relay.reconnect(&connector);
    let resume = |session: &str| {
        let path = format!("/stream/{PRODUCT}?session_id={session}");
        Subscriber::open(relay.public, &path, &[("Last-Event-ID", frames[0].id())])
    };
    assert_eq!(resume("other").gap().reason(), "not_kept");
    assert!(resume("mine").numbers(38).into_iter().eq((1..40).filter(|n| *n != 20)));
}

#[test]
fn a_webhook_gives_up_an_event_whose_row_is_damaged_as_a_dead_letter_without_a_body() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    receiver.stop();
    let relay = setup.start();
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..60);
    relay.wait_until_persisted(60);
    relay.wait_for_pending("hook", 60);
    relay.stop();
    drop(link);
    flip_payload(&data, 30, 0x01);
    receiver.start();
    let relay = setup.start();
    receiver.wait_for_accepted(59);
    relay.wait_for_dead("hook", 1);
    relay.wait_until_settled("hook");
    assert!(receiver.requests().iter().all(|request| request.number() != 30));
    let dead = relay.wait_for_deliveries("hook", "dead", 1).remove(0);
    assert_eq!((&dead["reason"], &dead["payload"]), (&json!("damaged"), &Value::Null));
    assert_eq!((&dead["id"], &dead["session_id"]), (&json!(frames[30].id()), &json!("s1")));
    assert_eq!(relay.redeliver("hook", &json!({"state": "dead"})), 0, "there is nothing to send");
    assert_eq!(damaged_rows_in_the_log(&relay), 1);
    assert_eq!(
        relay.metrics().value("autoplay_relay_webhook_lost_total", &[("webhook", "hook")]),
        Some(0.0)
    );
}

#[test]
fn a_damaged_dead_letter_is_listed_without_its_body_and_not_delivered_again() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::answering(400));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let relay = setup.start();
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..3);
    relay.wait_for_dead("hook", 3);
    relay.stop();
    drop(link);
    let changed = Connection::open(data.database()).unwrap();
    let update = "UPDATE dead_letters SET payload = CAST(replace(CAST(payload AS TEXT), '\"count\":1}', \
                  '\"count\":7}') AS BLOB) WHERE CAST(payload AS TEXT) LIKE '%\"count\":1}'";
    assert_eq!(changed.execute(update, []), Ok(1));
    drop(changed);
    let accepting = Receiver::accepting();
    let setup = data.setup(&connector, "").more(&(table("hook", &accepting, "") + LOOPBACK));
    let relay = setup.start();
    let dead = relay.wait_for_deliveries("hook", "dead", 3);
    let of_one = dead.iter().find(|letter| letter["id"] == frames[1].id()).unwrap();
    assert_eq!((&of_one["reason"], &of_one["payload"]), (&json!("damaged"), &Value::Null));
    let line =
        relay.process.log_line("dead letters do not fit their checksum: they are not sent again");
    assert_eq!((&line["level"], &line["dead_letters"]), (&json!("ERROR"), &json!(1)));
    assert_eq!(relay.redeliver("hook", &json!({"state": "dead"})), 2);
    let mut sent: Vec<_> =
        accepting.wait_for_accepted(2).iter().map(|request| request.number()).collect();
    sent.sort_unstable();
    assert_eq!(sent, [0, 2]);
    wait::until("the damaged one stays", || relay.webhook("hook")["dead"] == 1);
}

/// Keeps this many events in a store that is closed again, and returns them.
fn kept(connector: &Connector, data: &DataDir, events: usize) -> Vec<Frame> {
    let relay = data.relay(connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..events);
    relay.wait_until_persisted(events);
    relay.stop();
    frames
}

/// Changes a digit of an event's number in the closed store, wherever the payload stands.
fn flip_payload(data: &DataDir, number: usize, flip: u8) {
    let mut bytes = fs::read(data.database()).unwrap();
    let text = format!("\"count\":{number}}}");
    let found: Vec<usize> = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, window)| *window == text.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!found.is_empty());
    found.into_iter().for_each(|at| bytes[at + text.len() - 2] ^= flip);
    fs::write(data.database(), bytes).unwrap();
}

/// Checks that a subscriber gets the frames from `next` on, and one gap in the place of `missing`.
fn assert_one_is_missing(resumed: &mut Subscriber, frames: &[Frame], next: usize, missing: usize) {
    frames[next..missing].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    let gap = resumed.gap();
    let notice = gap.json();
    assert_eq!((&notice["reason"], gap.id()), (&json!("not_kept"), frames[missing].id()));
    assert_eq!(
        (notice["after"].as_str(), notice["before"].as_str()),
        (Some(frames[missing - 1].id()), Some(frames[missing + 1].id()))
    );
    frames[missing + 1..].iter().for_each(|frame| {
        let event = resumed.event();
        assert_eq!((number(&event.data), event.id()), (number(&frame.data), frame.id()));
    });
}

/// Returns how many lines of the log are about damaged rows, after checking that they are errors.
fn damaged_rows_in_the_log(relay: &Relay) -> usize {
    let lines = relay.process.stderr.so_far();
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> = lines.filter(|line| line["message"] == DAMAGED).collect();
    assert!(lines.iter().all(|line| line["level"] == "ERROR"), "{lines:?}");
    lines.len()
}

const DAMAGED: &str = "a row of the store does not fit its checksum: its event is not kept";
