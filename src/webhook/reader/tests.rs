//! The reader and the reloader before a store that cannot be read for a while, and before damaged
//! rows.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    event::{Draft, Kind, ProductId},
    log::MemoryBounds,
    metrics::Metrics,
    store::{Store, StoreSettings, testing},
};

/// Opens a store with `events` events, of which the log keeps the last 16 in memory.
async fn store_with(directory: &tempfile::TempDir, events: u64) -> (Store, Arc<Fanout>) {
    let metrics = Metrics::new().unwrap();
    let settings = StoreSettings {
        directory: directory.path().to_owned(),
        retention: Duration::from_secs(3600),
        retention_bytes: 1 << 30,
        dead_letter_retention: Duration::from_secs(3600),
        dead_letter_bytes: 1 << 30,
        max_concurrent_replays: 4,
    };
    let (product, bounds) =
        (ProductId::new("p").unwrap(), MemoryBounds { events: 16, bytes: u64::MAX });
    let (store, logs) = Store::open(settings, bounds, &[product], &metrics).unwrap();
    let fanout = Arc::new(Fanout::new(Arc::clone(&logs[0]), 1));
    let running = Arc::clone(&fanout);
    tokio::spawn(async move { running.run(CancellationToken::new()).await });
    let mut persisted = logs[0].watch_persisted();
    for position in 1..=events {
        let (payload, received) = (Bytes::from_static(b"{}"), Instant::now());
        logs[0].append(Draft {
            kind: Kind::Actions,
            session: None,
            user: None,
            forwarded_at: None,
            payload,
            received,
        });
        while position % 40 == 0 && *persisted.borrow_and_update() < position {
            persisted.changed().await.unwrap();
        }
    }
    persisted.wait_for(|kept| *kept == events).await.unwrap();
    (store, fanout)
}

fn reader_of(fanout: &Arc<Fanout>, store: &Store, scope: Scope) -> WebhookReader {
    let progress = Arc::new(ReadProgress::new(Arc::clone(fanout)));
    WebhookReader::new(progress, Arc::clone(store.handle()), scope, 0)
}

fn position_of(read: ReadItem) -> u64 {
    match read {
        ReadItem::Event(event) => event.position(),
        lost @ (ReadItem::Lost { .. } | ReadItem::Damaged { .. }) => {
            panic!("nothing is lost, and yet {lost:?}")
        }
    }
}

#[tokio::test]
async fn events_that_cannot_be_read_for_a_while_are_awaited_and_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (store, fanout) = store_with(&directory, 400).await;
    let everything = Scope::EVERYTHING;
    let mut reader = reader_of(&fanout, &store, everything);
    let mut given = Vec::new();
    while given.len() < 100 {
        given.push(position_of(reader.next().await));
    }
    testing::set_unreadable(store.handle(), true);
    let meanwhile = async {
        loop {
            given.push(position_of(reader.next().await));
        }
    };
    let _: Result<(), _> = time::timeout(Duration::from_millis(500), meanwhile).await;
    assert!(given.len() < 150, "what comes next is in the store");
    testing::set_unreadable(store.handle(), false);
    while given.len() < 400 {
        given.push(position_of(reader.next().await));
    }
    assert!(given.into_iter().eq(1..=400));
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_asked_for_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, fanout) = store_with(&directory, 400).await;
    let mut reloader = EventReloader::new(fanout);
    let mut asked = async |position| match reloader.reload(position).await {
        Reloaded::Events(events) => Some((events[0].position(), events.len())),
        Reloaded::Unreadable => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(50).await, Some((50, 64)));
    testing::set_unreadable(store.handle(), true);
    assert_eq!(asked(50).await, None);
    testing::set_unreadable(store.handle(), false);
    assert_eq!(asked(60).await, Some((60, 1)), "its neighbour may be at fault");
    assert_eq!(asked(60).await, Some((60, 64)));
}

/// Changes rows of a store that is open, as no relay does.
fn damage(directory: &tempfile::TempDir, changes: &[&str]) {
    let other = rusqlite::Connection::open(directory.path().join("relay.db")).unwrap();
    other.busy_timeout(Duration::from_secs(5)).unwrap();
    for change in changes {
        assert_eq!(other.execute(&format!("UPDATE entries SET {change}"), []), Ok(1));
    }
}

#[tokio::test]
async fn an_event_with_a_damaged_payload_is_told_by_name_and_one_of_which_nothing_is_whole_is_lost()
{
    let directory = tempfile::tempdir().unwrap();
    let (store, fanout) = store_with(&directory, 400).await;
    damage(
        &directory,
        &["payload = x'20' WHERE entry & 0xFFFF = 100", "suffix = 1 WHERE entry & 0xFFFF = 200"],
    );
    let everything = Scope::EVERYTHING;
    let mut reader = reader_of(&fanout, &store, everything);
    for position in 1..=400 {
        match reader.next().await {
            ReadItem::Event(event) => assert_eq!(event.position(), position),
            ReadItem::Damaged { position: found, event } => {
                assert_eq!((found, position), (100, 100));
                assert_eq!((Some(event.id), event.kind), (fanout.log().id_at(100), Kind::Actions));
            }
            ReadItem::Lost { is_evicted, positions } => {
                assert_eq!((is_evicted, positions, position), (false, 1, 200));
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_event_that_is_asked_for_again_is_told_and_those_around_it_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, fanout) = store_with(&directory, 400).await;
    damage(
        &directory,
        &["payload = x'20' WHERE entry & 0xFFFF = 100", "suffix = 1 WHERE entry & 0xFFFF = 101"],
    );
    let mut reloader = EventReloader::new(fanout);
    let mut asked = async |position| match reloader.reload(position).await {
        Reloaded::Events(events) => (events[0].position(), events.len()),
        Reloaded::Damaged => (position, 0),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(98).await, (98, 2), "up to the damage");
    assert_eq!(asked(100).await, (100, 0));
    assert_eq!(asked(101).await, (101, 0));
    assert_eq!(asked(102).await, (102, 64));
}
