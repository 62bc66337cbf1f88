//! Webhooks, deliveries and dead letters as the store's tests have them.

use super::*;
use crate::{
    event::{Kind, Only, SessionId},
    webhook_delivery::{Attempt, DeadReason, Outcome},
};

/// Gets everything there is.
pub(in crate::store) const EVERYTHING: Scope = Scope { sessions: Only::Everything, kinds: Only::Everything };

/// A webhook of product `p` that begins behind `position` and gets everything.
pub(in crate::store) fn webhook(id: &str, position: u64) -> Registration {
    Registration {
        id: id.into(),
        product: ProductId::new("p").unwrap(),
        scope: EVERYTHING,
        definition: format!("about {id}"),
        position,
        notices: Arc::default(),
    }
}

/// What is owed of the event at `place` of session `s`, tried once.
pub(in crate::store) fn owed(place: u64) -> Owed {
    Owed { delivery: delivery(place, "s"), next_attempt_at: Some(place + 1000) }
}

/// The delivery of the event at `place` under the id 7-`place`; no session for an empty text.
pub(in crate::store) fn delivery(place: u64, session: &str) -> Delivery {
    let error = place.is_multiple_of(2).then(|| "nobody \"listens\"".into());
    let attempt = Attempt { at: 5, duration_ms: 6, outcome: Outcome::Failed, status: Some(503), error };
    Delivery {
        place,
        event_id: EventId::new(7, place),
        kind: Kind::Actions,
        session: (!session.is_empty()).then(|| SessionId::new(session).unwrap()),
        created_at: 4,
        attempts: vec![attempt],
    }
}

/// A dead letter of session `s` that died at `place`.
pub(in crate::store) fn letter(place: u64, payload: &[u8]) -> DeadLetter {
    let (reason, payload) = (DeadReason::Exhausted, payload.to_vec().into());
    DeadLetter { delivery: delivery(place, "s"), reason, died_at: place, payload }
}

/// A position, and what has become of deliveries.
pub(in crate::store) fn changes(position: u64, fates: impl IntoIterator<Item = Fate>) -> Changes {
    let place = |fate: &Fate| match fate {
        Fate::Owed(owed) => owed.delivery.place,
        Fate::Dead(letter) => letter.delivery.place,
        Fate::Settled => panic!("nobody knows its place: see `settled`"),
    };
    Changes { position, fates: fates.into_iter().map(|fate| (place(&fate), fate)).collect() }
}

/// That these have been settled.
pub(in crate::store) fn settled(places: impl IntoIterator<Item = u64>) -> Changes {
    Changes { position: 0, fates: places.into_iter().map(|place| (place, Fate::Settled)).collect() }
}

#[test]
fn a_notice_counts_losses_since_the_last_look_and_keeps_the_rest() {
    let notices = Notices::default();
    notices.tell(|notice| (notice.dead, notice.lost, notice.is_replaced) = (3, 2, true));
    notices.tell(|notice| notice.lost += 1);
    assert_eq!(notices.take(), Notice { dead: 3, lost: 3, is_replaced: true, ..Notice::default() });
    assert_eq!(notices.take(), Notice { dead: 3, ..Notice::default() });
}
