//! A process that reads `relay.db` while the relay writes it, as operators do.

use rusqlite::{Connection, OpenFlags};

use crate::common::{
    connector::{Connector, Link},
    events::event,
    relay::Relay,
    store::DataDir,
    wait,
};

/// Reader outside, with a read transaction that stays open.
fn begin_reading(data: &DataDir) -> Connection {
    let reader = Connection::open_with_flags(data.database(), OpenFlags::SQLITE_OPEN_READ_ONLY);
    let reader = reader.unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let events: u32 = reader.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap();
    assert!(events > 0);
    reader
}

/// Publishes events of 900 KB, [`OVER_THE_BOUND`] of which are more than the bound on the
/// write-ahead log.
fn publish_large(relay: &Relay, link: &mut Link, numbers: std::ops::Range<usize>) {
    let note = format!("\"note\":\"{}\",\"count\"", "x".repeat(900_000));
    for n in numbers.clone() {
        link.event(event(n).replacen("\"count\"", &note, 1));
    }
    relay.wait_until_persisted(numbers.end);
}

fn wal_bytes(relay: &Relay) -> f64 {
    relay.metrics().value("autoplay_relay_log_wal_bytes", &[]).unwrap()
}

fn has_warned(relay: &Relay) -> bool {
    relay.process.stderr.so_far().iter().any(|line| line.contains(HELD))
}

#[test]
fn a_reader_outside_that_holds_a_transaction_is_named_in_the_log() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..1);
    relay.wait_until_persisted(1);
    let reader = begin_reading(&data);
    publish_large(&relay, &mut link, 1..OVER_THE_BOUND);
    let warning = relay.process.log_line(HELD);
    assert_eq!(warning["level"], "WARN");
    assert!(warning["wal_bytes"].as_f64().unwrap() > BOUND, "{warning}");
    assert!(warning["file"].as_str().unwrap().ends_with("relay.db"), "{warning}");
    wait::until("the metric follows", || wal_bytes(&relay) > BOUND);
    assert_eq!(relay.metrics().value("autoplay_relay_log_degraded", &[]), Some(0.0));

    // Nothing more is written: the room comes back by itself.
    drop(reader);
    wait::until("the write-ahead log is small again", || wal_bytes(&relay) < SMALL);
    assert_eq!(relay.process.stderr.so_far().iter().filter(|line| line.contains(HELD)).count(), 1);
    relay.publish(&mut link, OVER_THE_BOUND..OVER_THE_BOUND + 3);
    relay.wait_until_persisted(OVER_THE_BOUND + 3);
}

#[test]
fn without_a_reader_the_write_ahead_log_stays_small() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    publish_large(&relay, &mut link, 0..OVER_THE_BOUND);
    wait::until("it is moved into the database", || wal_bytes(&relay) < BOUND);
    assert!(!has_warned(&relay));
}

#[test]
fn readers_outside_that_end_leave_no_warning() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..1);
    relay.wait_until_persisted(1);
    for part in 0..4 {
        let reader = begin_reading(&data);
        let first = 1 + part * OVER_THE_BOUND / 4;
        publish_large(&relay, &mut link, first..first + OVER_THE_BOUND / 4);
        drop(reader);
    }
    wait::until("it is moved into the database", || wal_bytes(&relay) < BOUND);
    assert!(!has_warned(&relay));
}

/// Bound on the write-ahead log.
const BOUND: f64 = 67_108_864.0;

/// Size at which the write-ahead log is moved into the database.
const SMALL: f64 = 4_194_304.0;

/// Events of 900 KB that make more than [`BOUND`].
const OVER_THE_BOUND: usize = 88;

/// Message of the log while a process outside holds a transaction.
const HELD: &str = "another process holds a read transaction on the store, so that its write-ahead log grows without \
                    bound: end that process (`fuser -v` names it), and do not page or pause what reads the file";
