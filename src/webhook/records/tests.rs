use std::task::Waker;

use bytes::Bytes;

use super::*;
use crate::{
    config::Webhook,
    event::{Event, EventId, Kind},
    log::store::idle::{self, Asked},
    webhook::{
        Source,
        outbox::{Keeping, Policy},
    },
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
        let desk = idle::desk();
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
    let Some(Asked::Register { position, answer }) = idle::take(&bench.desk) else { panic!("it is registered") };
    assert_eq!((position, idle::take(&bench.desk).is_none()), (3, true), "and nothing else");
    drop(answer); // it could not be
    bench.turn();
    time::advance(REGISTER_AGAIN).await;
    bench.turn();
    let Some(Asked::Register { position, answer }) = idle::take(&bench.desk) else { panic!("again") };
    assert_eq!((position, idle::take(&bench.desk).is_none()), (3, true), "what has come since is not written down yet");
    answer.send(()).unwrap();
    bench.turn();
    bench.turn();
    let Some(Asked::Journal(changes)) = idle::take(&bench.desk) else { panic!("now it is") };
    assert_eq!((changes.position, changes.fates.into_keys().collect()), (7, vec![4, 5, 6, 7]));
}

const POLICY: Policy = Policy {
    max_retries: 3,
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(60),
    max_in_flight: 2,
    keeping: Keeping::InStore,
};
