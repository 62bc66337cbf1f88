//! Store sync with an outbox, before a store that answers only when a test says so.

use std::task::Waker;

use bytes::Bytes;

use super::*;
use crate::{
    config::WebhookConfig,
    event::{Event, EventId, Kind},
    store::testing::{self, TakenCommand, WriterInbox},
    webhook::{
        Disposition, WebhookSource,
        outbox::{DeliveryPolicy, EventStorage},
    },
    webhook_delivery::{Attempt, DeadLetterReason, Delivery, Outcome},
};

/// Sync and outbox before a store without threads.
struct StoreSyncHarness {
    store: Arc<StoreHandle>,
    inbox: WriterInbox,
    store_sync: StoreSync,
    outbox: Outbox,
}

impl StoreSyncHarness {
    /// Creates the harness of a webhook at `position`.
    fn new(position: u64) -> Self {
        let (store, inbox) = testing::idle_handle();
        let text = r#"{"id":"w","product_id":"p","url":"https://example.com/","secret":"s"}"#;
        let definition =
            Definition::new(WebhookConfig::from_stored(text).unwrap(), WebhookSource::Api);
        let store_sync =
            StoreSync::new(&definition, position, Arc::clone(&store), Arc::default(), None);
        let outbox = Outbox::new(POLICY, position, Vec::new(), Now::read());
        Self { store, inbox, store_sync, outbox }
    }

    fn enqueue(&mut self, position: u64) {
        let (id, kind) = (EventId::new(7, position), Kind::Actions);
        let event = Event::restored(id, position, kind, (None, None), &Bytes::from_static(b"{}"));
        self.outbox.enqueue(Arc::new(event), Now::read());
    }

    /// Answers the registration that the sync has sent.
    fn register(&mut self) {
        let taken = testing::take_command(&mut self.inbox);
        let Some(TakenCommand::Register { answer, .. }) = taken else { panic!("it has asked") };
        answer.send(()).unwrap();
        self.tick();
    }

    /// Releases every event that may be sent now.
    fn send_all(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.outbox.next(Now::read())).map(|event| event.position()).collect()
    }

    fn accept(&mut self, position: u64) {
        let attempt = Attempt {
            at: 0,
            duration_ms: 1,
            outcome: Outcome::Accepted,
            status: Some(200),
            error: None,
        };
        self.outbox.settle(position, attempt, &Disposition::Accepted, Now::read());
    }

    /// Starts due writes with a committed log, and handles one reply if there is one.
    fn tick(&mut self) {
        self.store_sync.start_writes(&mut self.outbox, u64::MAX);
        let next = std::pin::pin!(self.store_sync.handle_reply(&mut self.outbox));
        let _ = next.poll(&mut Context::from_waker(Waker::noop()));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_down_before_the_store_has_the_webhook() {
    let mut harness = StoreSyncHarness::new(3);
    for position in 4..8 {
        harness.enqueue(position);
        harness.tick();
        time::advance(POSITION_WRITE_INTERVAL).await;
    }
    let Some(TakenCommand::Register { position, answer }) =
        testing::take_command(&mut harness.inbox)
    else {
        panic!("it is registered")
    };
    assert_eq!(
        (position, testing::take_command(&mut harness.inbox).is_none()),
        (3, true),
        "and nothing else"
    );
    drop(answer); // the registration failed
    harness.tick();
    time::advance(REGISTER_RETRY_DELAY).await;
    harness.tick();
    let Some(TakenCommand::Register { position, answer }) =
        testing::take_command(&mut harness.inbox)
    else {
        panic!("again")
    };
    assert_eq!(
        (position, testing::take_command(&mut harness.inbox).is_none()),
        (3, true),
        "what has come since is not written down yet"
    );
    answer.send(()).unwrap();
    harness.tick();
    harness.tick();
    let Some(TakenCommand::Journal(changes)) = testing::take_command(&mut harness.inbox) else {
        panic!("now it is")
    };
    assert_eq!((changes.position, changes.deliveries.into_keys().collect()), (7, vec![4, 5, 6, 7]));
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_degraded_delivery_waits_neither_for_a_journal_nor_for_a_registration() {
    for is_registered in [true, false] {
        let mut harness = StoreSyncHarness::new(0);
        harness.tick();
        if is_registered {
            harness.register();
        }
        (1..=8).for_each(|position| harness.enqueue(position));
        assert_eq!(harness.send_all(), [1, 2]);
        (1..=2).for_each(|position| harness.accept(position));
        harness.store_sync.start_writes(&mut harness.outbox, u64::MAX);
        assert_eq!((harness.store_sync.is_writing(), harness.send_all()), (is_registered, vec![]));
        testing::set_unreadable(&harness.store, true);
        harness.store_sync.start_writes(&mut harness.outbox, u64::MAX);
        assert_eq!(harness.send_all(), [3, 4], "registered: {is_registered}");
    }
}

#[tokio::test(start_paused = true)]
async fn uncommitted_events_are_not_reported_as_passed_and_delivery_continues() {
    let mut harness = StoreSyncHarness::new(0);
    harness.tick();
    harness.register();
    (1..=8).for_each(|position| harness.enqueue(position));
    for round in 0..3 {
        assert_eq!(harness.send_all(), [round * 2 + 1, round * 2 + 2]);
        (1..=2).for_each(|position| harness.accept(round * 2 + position));
        harness.store_sync.start_writes(&mut harness.outbox, 7);
        time::advance(JOURNAL_RETRY_DELAY).await;
    }
    assert!(testing::take_command(&mut harness.inbox).is_none());
    harness.store_sync.start_writes(&mut harness.outbox, 8);
    let Some(TakenCommand::Journal(changes)) = testing::take_command(&mut harness.inbox) else {
        panic!("all is committed")
    };
    assert_eq!((changes.position, changes.deliveries.len()), (6, 0), "7 and 8 were never sent");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_asked_for_behind_those_that_were_looked_at_and_not_if_all_are_here() {
    let mut harness = StoreSyncHarness::new(0);
    harness.tick();
    harness.register();
    let notice = |requeued| WebhookNotice { requeued, ..WebhookNotice::default() };
    harness.store_sync.redeliver(&mut harness.outbox, &notice(2));
    assert!(matches!(
        testing::take_command(&mut harness.inbox),
        Some(TakenCommand::ListRequeued(0))
    ));
    harness.tick(); // the store gave no answer
    harness.store_sync.redeliver(&mut harness.outbox, &notice(2));
    time::advance(REDELIVERY_RETRY_DELAY).await;
    let delivery = Delivery {
        position: 5,
        event_id: EventId::new(7, 5),
        kind: Kind::Actions,
        session: None,
        created_at: 0,
        attempts: Vec::new(),
    };
    let dead_letter = DeadLetter {
        delivery,
        reason: DeadLetterReason::Refused,
        died_at: 0,
        payload: Bytes::from_static(b"{}"),
    };
    harness.outbox.redeliver(vec![dead_letter], Now::read());
    harness.store_sync.redeliver(&mut harness.outbox, &notice(1));
    assert!(
        testing::take_command(&mut harness.inbox).is_none()
            && harness.store_sync.due(&harness.outbox, &notice(1)).is_none()
    );
    harness.store_sync.redeliver(&mut harness.outbox, &notice(2));
    assert!(matches!(
        testing::take_command(&mut harness.inbox),
        Some(TakenCommand::ListRequeued(5))
    ));
}

const POLICY: DeliveryPolicy = DeliveryPolicy {
    max_retries: 3,
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(60),
    max_in_flight: 2,
    event_storage: EventStorage::InStore,
};
