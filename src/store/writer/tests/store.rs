//! The writer in a whole store: without a directory, and across restarts.

use std::{collections::BTreeSet, path::Path};

use super::*;
use crate::{
    event::ProductId,
    log::MemoryBounds,
    metrics::Metrics,
    store::{
        DeadLetterSelection, DeadLetterState, DeliveryChange, Store, WebhookNotice,
        WebhookRegistration,
        webhook_rows::tests::{changes, dead_letter, owed, webhook},
    },
};

/// Returns a store without a directory, and the log beside it.
fn in_memory_store(dead_letter_bytes: u64) -> (Store, Arc<Log>) {
    let metrics = Metrics::new().unwrap();
    let log =
        Log::new(product(), MemoryBounds { events: 16, bytes: u64::MAX }, metrics.log(&product()));
    let (log, hour) = (Arc::new(log), Duration::from_secs(3600));
    let settings = StoreSettings {
        directory: "/nonexistent".into(),
        retention: hour,
        retention_bytes: 1,
        dead_letter_retention: hour,
        dead_letter_bytes,
        max_concurrent_replays: 1,
    };
    (Store::in_memory(settings, vec![Arc::clone(&log)], &metrics).unwrap(), log)
}

/// Returns a dead letter that has died now.
fn fresh_dead_letter(position: u64) -> DeliveryChange {
    DeliveryChange::Dead(crate::webhook_delivery::DeadLetter {
        died_at: wall_clock::now().unix_ms,
        ..dead_letter(position, b"{}")
    })
}

#[tokio::test]
async fn without_a_directory_the_same_commands_are_executed_in_memory() {
    let (store, log) = in_memory_store(1 << 30);
    let (handle, webhook) = (Arc::clone(store.handle()), webhook("w", 0));
    handle.register(webhook.clone()).await.unwrap();
    (0..40).for_each(|_| append(&log));
    tail(&log, 0); // about 16 entries stay in memory
    let deliveries =
        [1, 2, 40].map(fresh_dead_letter).into_iter().chain([DeliveryChange::Owed(owed(5))]);
    handle.journal(&"w".into(), changes(40, deliveries)).await.unwrap();
    assert_eq!(webhook.notices.take(), WebhookNotice { dead: 3, ..WebhookNotice::default() });
    assert_eq!(handle.requeue("w", DeadLetterSelection::All).await.unwrap(), 3);
    assert_eq!(handle.requeued_dead_letters("w", 0, 9).await.unwrap().len(), 3);
    assert_eq!(
        handle.dead_letters("w", DeadLetterState::Requeued, None, 9).await.unwrap().len(),
        3
    );
    let session = SessionId::new("s").unwrap();
    let sessions = [session.clone()].into();
    let mut scope = ErasureScope { sessions, ..ErasureScope::default() };
    let in_memory = log.erase(&mut scope, &BTreeSet::new());
    assert_eq!(
        in_memory + handle.erase(product(), VisitorId::Session(session)).await.unwrap(),
        in_memory + 2,
        "the event at 40 is counted in memory"
    );
    assert_eq!(handle.requeued_dead_letters("w", 0, 9).await.unwrap(), []);
    handle.unregister("w").await.unwrap();
    assert!(!handle.is_degraded() && !handle.is_recovering());
    drop(store);
    handle.register(webhook).await.unwrap_err();
    assert!(!Path::new(":memory:").exists() && !Path::new(":memory:-wal").exists());
}

#[tokio::test]
async fn dead_letters_in_memory_are_bounded_too() {
    let (store, _log) = in_memory_store(2000);
    let webhook = webhook("w", 0);
    store.handle().register(webhook.clone()).await.unwrap();
    store
        .handle()
        .journal(&"w".into(), changes(40, (1..=40).map(fresh_dead_letter)))
        .await
        .unwrap();
    while webhook.notices.take().dead > 10 {
        tokio::time::timeout(Duration::from_secs(15), webhook.notices.changed())
            .await
            .expect("the worker is notified");
    }
    let left = store.handle().dead_letters("w", DeadLetterState::Dead, None, 100).await.unwrap();
    assert!((4..=10).contains(&left.len()) && left[0].1.delivery.position == 40, "{}", left.len());
}

#[tokio::test]
async fn a_store_in_memory_that_fails_is_begun_anew_with_its_webhooks() {
    let (metrics, file) = (Metrics::new().unwrap(), StoreFile::in_memory().unwrap());
    let (store, _log) = in_memory_store(1);
    let settings = WriterHarness::new(16).writer.settings;
    drop(store);
    let (handle, inbox) = StoreHandle::new(sqlite::IN_MEMORY_PATH.into(), 1);
    let mut writer = StoreWriter::new(
        (Arc::clone(&handle), inbox),
        vec![],
        file,
        settings,
        metrics.store().clone(),
    );
    let webhook = webhook("w", 4);
    for again in [false, true] {
        let registered = handle.register(webhook.clone());
        writer.run_round();
        registered.await.unwrap();
        assert_eq!(webhook.notices.take().is_replaced, again);
        if !again {
            writer.fail(&disk_error());
            assert!(handle.is_degraded());
            writer.state = WriterState::Failed { retry_at: Instant::now() };
            writer.run_round();
        }
    }
    writer.replace("says the test");
    assert!(!handle.is_degraded() && webhook.notices.take().is_replaced);
    assert!(!Path::new(sqlite::IN_MEMORY_PATH).exists());
}

/// Opens the store in a directory with these products, and returns the webhooks that it has.
pub(super) fn open_store(
    directory: &Path,
    products: &[ProductId],
) -> (Store, Vec<crate::store::StoredWebhook>) {
    let settings =
        StoreSettings { directory: directory.to_owned(), ..WriterHarness::new(16).writer.settings };
    let bounds = MemoryBounds { events: 16, bytes: u64::MAX };
    let (mut store, _) = Store::open(settings, bounds, products, &Metrics::new().unwrap()).unwrap();
    let webhooks = store.take_webhooks();
    assert!(store.take_webhooks().is_empty());
    (store, webhooks)
}

#[tokio::test]
async fn after_a_crash_webhooks_are_found_with_what_was_committed_if_their_product_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (store, found) = open_store(directory.path(), &[product()]);
    assert!(found.is_empty());
    let handle = Arc::clone(store.handle());
    handle.register(webhook("w", 2)).await.unwrap();
    handle
        .journal(&"w".into(), changes(9, [fresh_dead_letter(6), DeliveryChange::Owed(owed(7))]))
        .await
        .unwrap();
    store.crash();
    drop(store);
    let other = ProductId::new("other").unwrap();
    let (store, found) = open_store(directory.path(), std::slice::from_ref(&other));
    assert!(found.is_empty(), "its product is not configured");
    store
        .handle()
        .register(WebhookRegistration { product: other.clone(), ..webhook("o", 0) })
        .await
        .unwrap();
    drop(store);
    let (store, found) = open_store(directory.path(), &[product(), other]);
    let found: Vec<_> =
        found.into_iter().map(|it| (it.id, it.definition, it.position, it.owed)).collect();
    let about = |id: &str| (id.to_owned(), format!("about {id}"));
    let ((w, of_w), (o, of_o)) = (about("w"), about("o"));
    assert_eq!(found, [(w, of_w, 9, vec![owed(7)]), (o, of_o, 0, vec![])]);
    let again = webhook("w", 0);
    store.handle().register(again.clone()).await.unwrap();
    assert_eq!(
        again.notices.take(),
        WebhookNotice { dead: 1, ..WebhookNotice::default() },
        "notified once it is registered"
    );
}
