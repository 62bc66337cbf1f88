use std::task::Waker;

use bytes::Bytes;

use super::*;
use crate::{
    config::Webhook,
    event::{Event, EventId, Kind},
    store::testing::{self, Asked},
    webhook::{
        Source, Verdict,
        outbox::{Keeping, Policy},
    },
    webhook_delivery::{Attempt, DeadReason, Delivery, Outcome},
};

/// Records and an outbox before a store that does nothing by itself.
struct Bench {
    desk: Arc<Desk>,
    records: Records,
    outbox: Outbox,
}

impl Bench {
    /// Of a webhook that begins at this place.
    fn new(position: u64) -> Self {
        let desk = testing::desk();
        let text = r#"{"id":"w","product_id":"p","url":"https://example.com/","secret":"s"}"#;
        let definition = Definition::new(Webhook::from_stored(text).unwrap(), Source::Api);
        let records = Records::new(&definition, position, Arc::clone(&desk), Arc::default(), None);
        Self { desk, records, outbox: Outbox::new(POLICY, position, Vec::new(), Now::read()) }
    }

    fn take(&mut self, place: u64) {
        let (id, kind) = (EventId::new(7, place), Kind::Actions);
        let event = Event::restored(id, place, kind, None, &Bytes::from_static(b"{}"));
        self.outbox.take(Arc::new(event), Now::read());
    }

    /// Says that the webhook is registered, as it has asked.
    fn register(&mut self) {
        let Some(Asked::Register { answer, .. }) = testing::take(&self.desk) else { panic!("it has asked") };
        answer.send(()).unwrap();
        self.turn();
    }

    /// Sends all that goes out now.
    fn sent(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.outbox.next(Now::read())).map(|event| event.place()).collect()
    }

    fn accept(&mut self, place: u64) {
        let attempt = Attempt { at: 0, duration_ms: 1, outcome: Outcome::Accepted, status: Some(200), error: None };
        self.outbox.settle(place, attempt, &Verdict::Accepted, Now::read());
    }

    /// Writes down what can be while everything is committed, and hears what the store has to say.
    fn turn(&mut self) {
        self.records.write_down(&mut self.outbox, u64::MAX);
        let next = std::pin::pin!(self.records.next(&mut self.outbox));
        let _ = next.poll(&mut Context::from_waker(Waker::noop()));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_down_before_the_store_has_the_webhook() {
    let mut bench = Bench::new(3);
    for place in 4..8 {
        bench.take(place);
        bench.turn();
        time::advance(LAZY).await;
    }
    let Some(Asked::Register { position, answer }) = testing::take(&bench.desk) else { panic!("it is registered") };
    assert_eq!((position, testing::take(&bench.desk).is_none()), (3, true), "and nothing else");
    drop(answer); // it could not be
    bench.turn();
    time::advance(REGISTER_AGAIN).await;
    bench.turn();
    let Some(Asked::Register { position, answer }) = testing::take(&bench.desk) else { panic!("again") };
    assert_eq!(
        (position, testing::take(&bench.desk).is_none()),
        (3, true),
        "what has come since is not written down yet"
    );
    answer.send(()).unwrap();
    bench.turn();
    bench.turn();
    let Some(Asked::Journal(changes)) = testing::take(&bench.desk) else { panic!("now it is") };
    assert_eq!((changes.position, changes.fates.into_keys().collect()), (7, vec![4, 5, 6, 7]));
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_degraded_delivery_waits_neither_for_a_journal_nor_for_a_registration() {
    for is_registered in [true, false] {
        let mut bench = Bench::new(0);
        bench.turn();
        if is_registered {
            bench.register();
        }
        (1..=8).for_each(|place| bench.take(place));
        assert_eq!(bench.sent(), [1, 2]);
        (1..=2).for_each(|place| bench.accept(place));
        bench.records.write_down(&mut bench.outbox, u64::MAX);
        assert_eq!((bench.records.is_writing(), bench.sent()), (is_registered, vec![]));
        testing::cannot_be_read(&bench.desk, true);
        bench.records.write_down(&mut bench.outbox, u64::MAX);
        assert_eq!(bench.sent(), [3, 4], "registered: {is_registered}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_committed_is_not_called_passed_and_delivery_goes_on() {
    let mut bench = Bench::new(0);
    bench.turn();
    bench.register();
    (1..=8).for_each(|place| bench.take(place));
    for round in 0..3 {
        assert_eq!(bench.sent(), [round * 2 + 1, round * 2 + 2]);
        (1..=2).for_each(|place| bench.accept(round * 2 + place));
        bench.records.write_down(&mut bench.outbox, 7);
        time::advance(AGAIN).await;
    }
    assert!(testing::take(&bench.desk).is_none());
    bench.records.write_down(&mut bench.outbox, 8);
    let Some(Asked::Journal(changes)) = testing::take(&bench.desk) else { panic!("all is committed") };
    assert_eq!((changes.position, changes.fates.into_keys().collect()), (8, vec![7, 8]));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_asked_for_behind_those_that_were_looked_at_and_not_if_all_are_here() {
    let mut bench = Bench::new(0);
    bench.turn();
    bench.register();
    let notice = |requeued| Notice { requeued, ..Notice::default() };
    bench.records.redeliver(&mut bench.outbox, &notice(2));
    assert!(matches!(testing::take(&bench.desk), Some(Asked::Letters(0))));
    bench.turn(); // there was no answer
    bench.records.redeliver(&mut bench.outbox, &notice(2));
    time::advance(LETTERS_AGAIN).await;
    let delivery = Delivery {
        place: 5,
        event_id: EventId::new(7, 5),
        kind: Kind::Actions,
        session: None,
        created_at: 0,
        attempts: Vec::new(),
    };
    let letter = DeadLetter { delivery, reason: DeadReason::Refused, died_at: 0, payload: Bytes::from_static(b"{}") };
    bench.outbox.redeliver(vec![letter], Now::read());
    bench.records.redeliver(&mut bench.outbox, &notice(1));
    assert!(testing::take(&bench.desk).is_none() && bench.records.due(&bench.outbox, &notice(1)).is_none());
    bench.records.redeliver(&mut bench.outbox, &notice(2));
    assert!(matches!(testing::take(&bench.desk), Some(Asked::Letters(5))));
}

const POLICY: Policy = Policy {
    max_retries: 3,
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(60),
    max_in_flight: 2,
    keeping: Keeping::InStore,
};
