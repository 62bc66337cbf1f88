//! Webhooks, deliveries and dead letters for the store's tests.

use super::*;
use crate::{
    event::{Kind, SessionId},
    webhook_delivery::{Attempt, DeadLetterReason, Outcome},
};

/// Scope of everything.
pub(in crate::store) const EVERYTHING: Scope = Scope::EVERYTHING;

/// Returns a webhook of product `p` that begins behind `position` and receives everything.
pub(in crate::store) fn webhook(id: &str, position: u64) -> WebhookRegistration {
    WebhookRegistration {
        id: id.into(),
        product: ProductId::new("p").unwrap(),
        scope: EVERYTHING,
        definition: format!("about {id}"),
        position,
        notices: Arc::default(),
    }
}

/// Returns an owed delivery of the event at `position` in session `s`, attempted once.
pub(in crate::store) fn owed(position: u64) -> OwedDelivery {
    OwedDelivery { delivery: delivery(position, "s"), next_attempt_at: Some(position + 1000) }
}

/// Returns the delivery of the event at `position` under the id 7-`position`; an empty text is no
/// session.
pub(in crate::store) fn delivery(position: u64, session: &str) -> Delivery {
    let error = position.is_multiple_of(2).then(|| "nobody \"listens\"".into());
    let attempt =
        Attempt { at: 5, duration_ms: 6, outcome: Outcome::Failed, status: Some(503), error };
    Delivery {
        position,
        event_id: EventId::new(7, position),
        kind: Kind::Actions,
        session: (!session.is_empty()).then(|| SessionId::new(session).unwrap()),
        created_at: 4,
        attempts: vec![attempt],
    }
}

/// Returns a dead letter of session `s` that died at time `position`.
pub(in crate::store) fn dead_letter(position: u64, payload: &[u8]) -> DeadLetter {
    let (reason, payload) = (DeadLetterReason::Exhausted, payload.to_vec().into());
    DeadLetter { delivery: delivery(position, "s"), reason, died_at: position, payload }
}

/// Returns changes with this position and these deliveries.
pub(in crate::store) fn changes(
    position: u64,
    deliveries: impl IntoIterator<Item = DeliveryChange>,
) -> WebhookChanges {
    let position_of = |change: &DeliveryChange| match change {
        DeliveryChange::Owed(owed) => owed.delivery.position,
        DeliveryChange::Dead(letter) => letter.delivery.position,
        DeliveryChange::Settled => panic!("a settled delivery has no position: see `settled`"),
    };
    WebhookChanges {
        position,
        deliveries: deliveries.into_iter().map(|change| (position_of(&change), change)).collect(),
    }
}

/// Returns changes that settle these positions.
pub(in crate::store) fn settled(positions: impl IntoIterator<Item = u64>) -> WebhookChanges {
    WebhookChanges {
        position: 0,
        deliveries: positions
            .into_iter()
            .map(|position| (position, DeliveryChange::Settled))
            .collect(),
    }
}

#[test]
fn a_notice_counts_losses_since_the_last_look_and_keeps_the_rest() {
    let notices = WebhookNotices::default();
    notices.update(|notice| (notice.dead, notice.lost, notice.is_replaced) = (3, 2, true));
    notices.update(|notice| notice.lost += 1);
    assert_eq!(
        notices.take(),
        WebhookNotice { dead: 3, lost: 3, is_replaced: true, ..WebhookNotice::default() }
    );
    assert_eq!(notices.take(), WebhookNotice { dead: 3, ..WebhookNotice::default() });
}
