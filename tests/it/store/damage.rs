//! A store that is unusable, foreign or damaged.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::common::{
    connector::Connector,
    events::{event, event_of, number},
    process::{Finished, Process},
    relay::{Relay, Setup},
    store::DataDir,
    subscriber::Frame,
};

#[test]
fn a_second_relay_in_the_same_directory_is_refused_and_the_first_continues() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..30);
    let line = refused(&data.setup(&Connector::new(), ""));
    assert!(line.contains("in use by another autoplay-relay"), "{line}");
    let frames = relay.publish(&mut link, 30..60);
    assert!(relay.resume("0").numbers(60).into_iter().eq(0..60));
    relay.stop();
    let relay = data.relay(&connector);
    assert_eq!(relay.resume(frames[0].id()).event(), frames[1], "the directory is free again");
}

#[test]
fn an_unusable_directory_is_refused_in_one_line() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "something").unwrap();
    let occupied = parent.path().join("occupied");
    fs::create_dir_all(occupied.join("relay.db")).unwrap();
    for path in [&file, &file.join("below"), Path::new("/proc/of/no/process"), &occupied] {
        let line = refused(&Setup::new().log(&format!("data_dir = '{}'", path.display())));
        assert!(line.contains(&*path.to_string_lossy()), "{line}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "something");
}

#[test]
fn a_directory_without_write_permission_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let closed = parent.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let text = Setup::new().log(&format!("data_dir = '{}'", closed.display())).text();
    let configuration = parent.path().join("relay.toml");
    fs::write(&configuration, text).unwrap();
    let arguments = ["serve", "--config", configuration.to_str().unwrap()];
    // Root may write everywhere, so the test drops its capabilities.
    let is_root = uid() == 0;
    let finished = match is_root {
        true => Process::run_under("setpriv --inh-caps=-all --bounding-set=-all --", &arguments),
        false => Process::run(&arguments, &[]),
    };
    assert_refused(&finished);
}

fn uid() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_store_of_another_version_and_a_foreign_database_are_left_unchanged() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..5);
    relay.stop();
    let sql = |text: &str| {
        rusqlite::Connection::open(data.database()).unwrap().execute_batch(text).unwrap();
    };
    sql("PRAGMA user_version = 99");
    unchanged(
        &data,
        "is from a newer version: its schema has version 99, the newest known here is 4",
    );
    sql("PRAGMA user_version = 0");
    unchanged(&data, "its schema has version 0; a store has a version from 1 to ");
    fs::remove_file(data.database()).unwrap();
    sql("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('https://example.com')");
    unchanged(&data, "is no store of this relay");
    sql("PRAGMA journal_mode = WAL; PRAGMA application_id = 7");
    unchanged(&data, "is no store of this relay");
}

fn unchanged(data: &DataDir, expected: &str) {
    let before = fs::read(data.database()).unwrap();
    let line = refused(&data.setup(&Connector::new(), ""));
    assert!(line.contains(expected) && line.contains("relay.db"), "{line}");
    assert!(fs::read(data.database()).unwrap() == before, "{expected}: untouched");
    assert_eq!(data.set_aside().len(), 0);
}

#[test]
fn a_store_too_damaged_to_open_is_set_aside_and_the_relay_serves() {
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[..100].fill(b'#'),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes[100..8192].fill(b'#'), // the schema
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let (connector, data) = (Connector::new(), DataDir::new());
        let relay = data.relay(&connector);
        let mut link = connector.stream();
        let frames = relay.publish(&mut link, 0..300);
        relay.stop();
        drop(link);
        let bytes = overwrite(&data, damage);
        let relay = data.relay(&connector);
        let line = relay.process.log_line(SET_ASIDE);
        assert_eq!(line["level"], "ERROR");
        let aside = data.set_aside();
        assert_eq!(aside.len(), 1);
        assert_eq!(line["kept_as"].as_str(), aside[0].to_str());
        assert!(fs::read(&aside[0]).unwrap() == bytes, "damage {n}: with all its bytes");
        let mut link = relay.reconnect(&connector);
        let mut resumed = relay.resume(frames[3].id());
        let notice = resumed.gap().json();
        assert_eq!(
            (&notice["reason"], &notice["after"]),
            (&"unknown_id".into(), &frames[3].id().into())
        );
        assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect", "the outage is announced");
        let after = relay.publish(&mut link, 300..350);
        after.iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
        assert!(frames.iter().all(|old| after.iter().all(|new| new.id != old.id)));
        relay.stop();
        let relay = data.relay(&connector);
        let mut all = relay.resume("0");
        all.gap();
        assert!(all.numbers(50).into_iter().eq(300..350));
    }
}

#[test]
fn a_store_that_is_empty_or_lacks_a_table_is_set_aside() {
    let sql = |data: &DataDir, text: &str| {
        rusqlite::Connection::open(data.database()).unwrap().execute_batch(text).unwrap();
    };
    let damages: [&dyn Fn(&DataDir); 5] = [
        &|data| fs::write(data.database(), b"").unwrap(),
        &|data| sql(data, "DROP TABLE entries"),
        &|data| sql(data, "DROP TABLE spans"),
        &|data| sql(data, "DROP TABLE webhooks"),
        &|data| sql(data, "DROP TRIGGER one_more_is_dead"),
    ];
    for damage in damages {
        let (connector, data) = (Connector::new(), DataDir::new());
        let relay = data.relay(&connector);
        let mut link = connector.stream();
        let frames = relay.publish(&mut link, 0..30);
        relay.wait_until_persisted(30);
        relay.stop();
        drop(link);
        damage(&data);
        let relay = data.relay(&connector);
        assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
        assert_eq!(data.set_aside().len(), 1);
        let mut link = relay.reconnect(&connector);
        let mut resumed = relay.resume(frames[3].id());
        assert_eq!(resumed.gap().reason(), "unknown_id");
        let after = relay.publish(&mut link, 30..40);
        relay.wait_until_persisted(11); // the gap of the outage, too
        assert_eq!(relay.metrics().value("autoplay_relay_log_degraded", &[]), Some(0.0));
        relay.stop();
        let relay = data.relay(&connector);
        assert_eq!(data.set_aside().len(), 1, "the new store is whole");
        assert_eq!(relay.resume(after[0].id()).event(), after[1]);
    }
}

#[test]
fn a_table_that_is_dropped_while_the_relay_runs_sets_the_store_aside() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    let other = rusqlite::Connection::open(data.database()).unwrap();
    other.execute_batch("DROP TABLE missing; DROP TABLE entries").unwrap();
    drop(other);
    relay.publish(&mut link, 30..40);
    assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
    relay.wait_until_persisted(16); // what memory has
    assert_eq!(relay.metrics().value("autoplay_relay_log_degraded", &[]), Some(0.0));
}

#[test]
fn damage_found_by_a_reader_is_a_gap_and_replaces_the_store() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let (relay, frames) = damaged_in_the_middle(&connector, &data, Stop::InOrder);
    let mut link = relay.reconnect(&connector);
    let live = relay.publish(&mut link, 0..20);
    let mut resumed = relay.resume(frames[3].id());
    let mut next = 4;
    let gap = loop {
        let frame = resumed.item();
        if frame.event.is_some() {
            break frame.json();
        }
        assert_eq!(frame, frames[next]);
        next += 1;
    };
    assert_eq!(
        (&gap["reason"], gap["after"].as_str()),
        (&"not_kept".into(), Some(frames[next - 1].id()))
    );
    assert!(next > 500, "events before the damage can be read");
    assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
    relay.wait_until_persisted(16); // the new store has the events of memory
    let mut again = relay.resume(frames[3].id());
    let notice = again.gap().json();
    assert_eq!((&notice["reason"], &notice["before"]), (&"not_kept".into(), &live[4].id().into()));
    live[4..].iter().for_each(|frame| assert_eq!(again.event(), *frame));
    link.event(event(20));
    // The reader was in the middle of the old store.
    while resumed.item().data != event(20).into_bytes() {}
    relay.stop();
    let relay = data.relay(&connector);
    let mut again = relay.resume(live[3].id());
    live[4..].iter().for_each(|frame| assert_eq!(again.event(), *frame));
    assert_eq!(again.numbers(1), [20]);
}

#[test]
fn damage_found_by_the_check_after_an_unclean_end_is_a_gap() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let (relay, frames) = damaged_in_the_middle(&connector, &data, Stop::ByKill);
    assert_eq!(
        relay.process.log_line("the store was not closed in order; it is being checked")["level"],
        "WARN"
    );
    assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
    assert_eq!(data.set_aside().len(), 1);
    // Until the new file is in place, a reader would get a gap of its own, and events that leave
    // memory would not be kept.
    relay.wait_until_persisted(0);
    let mut link = relay.reconnect(&connector);
    let live = relay.publish(&mut link, 0..40);
    let mut resumed = relay.resume(frames[3].id());
    let notice = resumed.gap().json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"not_kept".into(), &frames[3].id().into()));
    let outage = resumed.gap();
    assert_eq!(notice["before"], outage.id());
    assert_eq!(
        outage.json()["after"],
        frames.last().unwrap().id(),
        "the former ids are still known"
    );
    live.iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    assert_eq!(relay.gaps("not_kept"), 1.0);
}

#[test]
fn live_delivery_has_no_hole_and_memory_is_kept_while_a_damaged_store_is_replaced() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let (relay, frames) = damaged_in_the_middle(&connector, &data, Stop::InOrder);
    let mut link = relay.reconnect(&connector);
    let is_replaced = AtomicBool::new(false);
    let mut witness = relay.subscribe();
    let live = std::thread::scope(|scope| {
        let live = scope.spawn(|| {
            let (mut live, mut more) = (Vec::new(), 200);
            while more > 0 {
                link.event(event(live.len()));
                let frame = witness.event();
                assert_eq!(number(&frame.data), live.len(), "no hole in live delivery");
                live.push(frame);
                more -= usize::from(is_replaced.load(Ordering::SeqCst));
            }
            live
        });
        let mut resumed = relay.resume(frames[3].id());
        while resumed.item().event.is_none() {}
        relay.process.log_line(SET_ASIDE);
        is_replaced.store(true, Ordering::SeqCst);
        live.join().unwrap()
    });
    let mut resumed = relay.resume(frames[3].id());
    let notice = resumed.gap().json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"not_kept".into(), &frames[3].id().into()));
    let first = live
        .iter()
        .position(|frame| frame.id() == notice["before"])
        .expect("the gap ends within the live events");
    assert!(live.len() - first > 200, "the new store begins with the events of memory");
    live[first..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    relay.stop();
    drop(link);
    let relay = data.relay(&connector);
    let mut resumed = relay.resume(live[first].id());
    live[first + 1..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    let mut resumed = relay.resume(frames[3].id());
    assert_eq!(
        resumed.gap().json()["reason"],
        "not_kept",
        "the loss is known after a restart, too"
    );
    assert_eq!(resumed.event(), live[first]);
}

#[derive(Clone, Copy)]
enum Stop {
    InOrder,
    ByKill,
}

/// Returns a relay whose store was damaged in the middle while it was closed, and the entries of
/// the store.
fn damaged_in_the_middle(connector: &Connector, data: &DataDir, stop: Stop) -> (Relay, Vec<Frame>) {
    let relay = data.relay(connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let mut frames: Vec<_> = (0..3000)
        .map(|n| {
            link.event(event_of(&"s".repeat(1 + n % 2000), n));
            all.event()
        })
        .collect();
    drop(all);
    relay.stop();
    drop(link);
    if let Stop::ByKill = stop {
        let mut relay = data.relay(connector);
        let mut witness = relay.subscribe();
        let _link = connector.stream();
        frames.push(witness.gap());
        relay.wait_until_persisted(3001); // the kill must not race with the commit of the gap
        relay.process.kill();
    }
    overwrite(data, |bytes| {
        let middle = bytes.len() / 8192 / 2 * 8192;
        bytes[middle..middle + 50 * 8192].fill(b'#');
    });
    (data.relay(connector), frames)
}

/// Changes the database, and returns its bytes.
fn overwrite(data: &DataDir, damage: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = fs::read(data.database()).unwrap();
    assert!(bytes.len() > 12 * 8192, "there is something to damage: {}", bytes.len());
    damage(&mut bytes);
    fs::write(data.database(), &bytes).unwrap();
    bytes
}

/// Checks that a relay refuses to start, and returns its message.
fn refused(setup: &Setup) -> String {
    let (_directory, file) = setup.write();
    assert_refused(&Process::run(&["serve", "--config", file.to_str().unwrap()], &[]))
}

fn assert_refused(finished: &Finished) -> String {
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    let lines: Vec<_> = finished.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("autoplay-relay: log.data_dir: "),
        "{lines:#?}"
    );
    lines[0].to_owned()
}

const SET_ASIDE: &str =
    "the store is damaged: set aside, and a new one begun; what it kept cannot be replayed";
