use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    event::{Draft, Kind, ProductId},
    log::Bounds,
    metrics::Metrics,
    store::{Settings, Store, testing},
};

/// A store with so many events, of which the log has the last few in memory.
async fn store_of(directory: &tempfile::TempDir, events: u64) -> (Store, Arc<Fanout>) {
    let metrics = Metrics::new().unwrap();
    let settings = Settings {
        directory: directory.path().to_owned(),
        retention: Duration::from_secs(3600),
        retention_bytes: 1 << 30,
        dead_letter_retention: Duration::from_secs(3600),
        dead_letter_bytes: 1 << 30,
        max_concurrent_replays: 4,
    };
    let (product, bounds) = (ProductId::new("p").unwrap(), Bounds { events: 16, bytes: u64::MAX });
    let (store, logs) = Store::open(settings, bounds, &[product], &metrics).unwrap();
    let fanout = Arc::new(Fanout::new(Arc::clone(&logs[0]), 1));
    let running = Arc::clone(&fanout);
    tokio::spawn(async move { running.run(CancellationToken::new()).await });
    let mut kept = logs[0].kept();
    for place in 1..=events {
        let (payload, received) = (Bytes::from_static(b"{}"), Instant::now());
        logs[0].append(Draft { kind: Kind::Actions, session: None, forwarded_at: None, payload, received });
        while place % 40 == 0 && *kept.borrow_and_update() < place {
            kept.changed().await.unwrap();
        }
    }
    kept.wait_for(|kept| *kept == events).await.unwrap();
    (store, fanout)
}

fn place_of(read: Read) -> u64 {
    match read {
        Read::Event(event) => event.place(),
        lost @ Read::Lost { .. } => panic!("nothing is lost, and yet {lost:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_read_for_a_while_is_waited_for_and_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (store, fanout) = store_of(&directory, 400).await;
    let everything = Scope { sessions: Only::Everything, kinds: Only::Everything };
    let mut reader = Reader::new(fanout, Arc::clone(store.desk()), everything, 0);
    let mut given = Vec::new();
    while given.len() < 100 {
        given.push(place_of(reader.next().await));
    }
    testing::cannot_be_read(store.desk(), true);
    let meanwhile = async {
        loop {
            given.push(place_of(reader.next().await));
        }
    };
    let _: Result<(), _> = time::timeout(Duration::from_millis(500), meanwhile).await;
    assert!(given.len() < 150, "what comes next is in the store");
    testing::cannot_be_read(store.desk(), false);
    while given.len() < 400 {
        given.push(place_of(reader.next().await));
    }
    assert!(given.into_iter().eq(1..=400));
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_asked_for_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, fanout) = store_of(&directory, 400).await;
    let mut reloader = Reloader::new(fanout);
    let mut asked = async |place| match reloader.reload(place).await {
        Reloaded::Events(events) => Some((events[0].place(), events.len())),
        Reloaded::Unreadable => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(50).await, Some((50, 64)));
    testing::cannot_be_read(store.desk(), true);
    assert_eq!(asked(50).await, None);
    testing::cannot_be_read(store.desk(), false);
    assert_eq!(asked(60).await, Some((60, 1)), "its neighbour may be at fault");
    assert_eq!(asked(60).await, Some((60, 64)));
}
