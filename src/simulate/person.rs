//! One person of the crowd: who it is, how long the visit lasts, and which payload is due.
//!
//! In: random numbers, and which event it is. Out: a payload whose times are still to be filled in.
//!
//! May use: `visit`, `payload`, `site`.

use fastrand::Rng;

use super::{
    payload::{Identity, Payload},
    site::{FIRST_NAMES, LAST_NAMES},
    visit::{Visit, one_of},
};

/// Somebody in the product, from arriving to leaving.
pub(crate) struct Person {
    identity: Identity,
    visit: Visit,
    /// Batches until the person leaves.
    batches_left: u32,
    /// Actions after which the connector sums up.
    patience: u64,
    /// When the last batch was forwarded, Unix seconds.
    last_batch_at: Option<f64>,
}

/// What an event will be.
enum Due {
    Actions,
    Summary,
    Tour,
}

impl Person {
    /// Somebody known by name who has just arrived.
    pub(crate) fn customer(rng: &mut Rng) -> Person {
        let identity = customer(rng);
        Person::new(identity, rng)
    }

    /// Anybody who has just arrived, known or not.
    pub(crate) fn passer_by(rng: &mut Rng) -> Person {
        let identity = passer_by(rng);
        Person::new(identity, rng)
    }

    /// Whether there is nothing more to tell of this person.
    pub(crate) fn has_left(&self) -> bool {
        self.batches_left == 0
    }

    /// What the connector has to say in event number `turn`, forwarded at `now`.
    pub(crate) fn tell<'a>(&'a mut self, turn: u64, now: f64, product_id: &'a str, rng: &mut Rng) -> Payload<'a> {
        match self.due(turn, rng) {
            Due::Actions => self.act(now, product_id, rng),
            Due::Summary => self.sum_up(product_id),
            Due::Tour => self.offer_tour(product_id, rng),
        }
    }

    fn new(identity: Identity, rng: &mut Rng) -> Person {
        let noun = if identity.user_id.is_some() { "User" } else { "Visitor" };
        Person {
            identity,
            visit: Visit::new(noun, rng),
            batches_left: rng.u32(12..60),
            patience: rng.u64(6..30),
            last_batch_at: None,
        }
    }

    fn due(&self, turn: u64, rng: &mut Rng) -> Due {
        let unsummed = self.visit.unsummed_actions();
        let can_be_guided = self.identity.session_id.is_some();
        let tour_drawn = rng.u8(..25) == 0;
        match turn {
            FIRST_TOUR if can_be_guided => Due::Tour,
            FIRST_SUMMARY if unsummed > 0 => Due::Summary,
            _ if unsummed >= self.patience => Due::Summary,
            _ if tour_drawn && can_be_guided => Due::Tour,
            _ => Due::Actions,
        }
    }

    fn act<'a>(&'a mut self, now: f64, product_id: &'a str, rng: &mut Rng) -> Payload<'a> {
        let Person { identity, visit, batches_left, last_batch_at, .. } = self;
        *batches_left = batches_left.saturating_sub(1);
        let leaving = *batches_left == 0;
        let mut actions: Vec<_> = (0..rng.usize(1..=MAX_BATCH)).map(|_| visit.act(identity, rng)).collect();
        if leaving && actions.len() < MAX_BATCH {
            actions.push(visit.leave(identity));
        }
        Payload::Actions {
            product_id,
            who: identity,
            count: actions.len(),
            forwarded_at: 0.0,
            since: last_batch_at.replace(now),
            actions,
        }
    }

    fn sum_up<'a>(&'a mut self, product_id: &'a str) -> Payload<'a> {
        let (summary, replaces) = self.visit.sum_up();
        let session_id = self.identity.session_id.as_deref();
        Payload::Summary { product_id, session_id, summary, replaces, forwarded_at: 0.0 }
    }

    fn offer_tour<'a>(&'a self, product_id: &'a str, rng: &mut Rng) -> Payload<'a> {
        let (flow_id, reason) = self.visit.tour();
        let session_id = self.identity.session_id.as_deref().unwrap_or_default(); // `due` asks for one
        let reason = rng.bool().then(|| reason.to_owned());
        let user_id = self.identity.user_id.as_deref().filter(|_| rng.bool());
        Payload::UsertourTrigger { product_id, flow_id, session_id, reason, user_id }
    }
}

/// Anybody: half of them are customers, the others lack something, one in ten even a session.
fn passer_by(rng: &mut Rng) -> Identity {
    let known = customer(rng);
    match rng.u8(..20) {
        0..=1 => Identity { session_id: None, user_id: None, email: None, conversation_id: None },
        2..=6 => Identity { user_id: None, email: None, ..known },
        7..=9 => Identity { email: None, ..known },
        _ => known,
    }
}

/// A signed-in person in a new session. The number decides the name, so people come back.
fn customer(rng: &mut Rng) -> Identity {
    let number = rng.u32(1..=CUSTOMERS);
    let mut of_number = Rng::with_seed(u64::from(number));
    let (first, last) = (one_of(&FIRST_NAMES, &mut of_number), one_of(&LAST_NAMES, &mut of_number));
    let in_a_chat = rng.u8(..12) == 0;
    Identity {
        session_id: Some(format!("ps_{:012x}", rng.u64(..1 << 48))),
        user_id: Some(format!("user_{number:05}")),
        email: Some(format!("{first}.{last}{number}@example.com")),
        conversation_id: in_a_chat.then(|| format!("conv_{:08x}", rng.u32(..))),
    }
}

/// Actions in one payload at most.
const MAX_BATCH: usize = 5;
/// The event that is a tour, so that even a short demo has one. Even, as the first person's turns are.
const FIRST_TOUR: u64 = 6;
/// The event that is a summary, after six turns of the first person.
const FIRST_SUMMARY: u64 = 12;
/// People with an account.
const CUSTOMERS: u32 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_batch_of_a_visit_mostly_ends_with_leaving() {
        let mut rng = Rng::with_seed(1);
        let mut goodbyes = 0;
        for _ in 0..100 {
            let mut person = Person::customer(&mut rng);
            let mut last = String::new();
            while !person.has_left() {
                if let Payload::Actions { actions, .. } = person.tell(100, 0.0, "prod_abc", &mut rng) {
                    assert!(actions.len() <= MAX_BATCH);
                    last = actions.last().unwrap().title.clone();
                }
            }
            goodbyes += usize::from(last.starts_with("Leave "));
        }
        assert!(goodbyes > 60, "{goodbyes} of 100 left politely");
    }

    #[test]
    fn a_visitor_without_a_session_is_never_sent_on_a_tour() {
        let mut rng = Rng::with_seed(2);
        let identity = Identity { session_id: None, user_id: None, email: None, conversation_id: None };
        let mut nobody = Person::new(identity, &mut rng);
        for turn in 0..1000 {
            assert!(!matches!(nobody.tell(turn, 0.0, "prod_abc", &mut rng), Payload::UsertourTrigger { .. }));
        }
    }

    #[test]
    fn whoever_comes_back_has_the_same_address() {
        let mut rng = Rng::with_seed(3);
        let mut addresses = std::collections::BTreeMap::new();
        let mut returns = 0;
        for _ in 0..2000 {
            let Identity { user_id, email, .. } = customer(&mut rng);
            if let Some(before) = addresses.insert(user_id, email.clone()) {
                assert_eq!(before, email);
                returns += 1;
            }
        }
        assert!(returns > 10, "{returns} of 2000 came back");
    }
}
