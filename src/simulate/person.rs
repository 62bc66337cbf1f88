//! One simulated user: identity, length of the visit, and the next payload.
//!
//! In: random numbers, and the number of the event. Out: a payload whose times are still to be
//! filled in.
//!
//! May use: no other module.

use fastrand::Rng;

use super::{
    payload::{StreamPayload, UserIdentity},
    site::{FIRST_NAMES, LAST_NAMES},
    visit::{Visit, pick},
};

/// A user of the product, from arrival to departure.
pub(crate) struct Person {
    identity: UserIdentity,
    visit: Visit,
    /// Batches until the user leaves.
    batches_left: u32,
    /// Actions after which the connector sends a summary.
    summary_threshold: u64,
    /// Time at which the last batch was forwarded, in Unix seconds.
    last_batch_at: Option<f64>,
}

/// Kind of the next event.
enum DueEvent {
    Actions,
    Summary,
    Tour,
}

impl Person {
    /// Creates a signed-in user who has just arrived.
    pub(crate) fn customer(rng: &mut Rng) -> Person {
        let identity = customer_identity(rng);
        Person::new(identity, rng)
    }

    /// Creates a user who has just arrived, signed in or not.
    pub(crate) fn random_visitor(rng: &mut Rng) -> Person {
        let identity = visitor_identity(rng);
        Person::new(identity, rng)
    }

    /// Returns whether the user has left.
    pub(crate) fn has_left(&self) -> bool {
        self.batches_left == 0
    }

    /// Returns the payload of event number `turn`, forwarded at `now`.
    pub(crate) fn next_payload<'a>(
        &'a mut self,
        turn: u64,
        now: f64,
        product_id: &'a str,
        rng: &mut Rng,
    ) -> StreamPayload<'a> {
        match self.due_event(turn, rng) {
            DueEvent::Actions => self.act(now, product_id, rng),
            DueEvent::Summary => self.sum_up(product_id),
            DueEvent::Tour => self.offer_tour(product_id, rng),
        }
    }

    fn new(identity: UserIdentity, rng: &mut Rng) -> Person {
        let noun = if identity.user_id.is_some() { "User" } else { "Visitor" };
        Person {
            identity,
            visit: Visit::new(noun, rng),
            batches_left: rng.u32(12..60),
            summary_threshold: rng.u64(6..30),
            last_batch_at: None,
        }
    }

    fn due_event(&self, turn: u64, rng: &mut Rng) -> DueEvent {
        let unsummed = self.visit.unsummarized_actions();
        let has_session = self.identity.session_id.is_some();
        let tour_drawn = rng.u8(..25) == 0;
        match turn {
            FIRST_TOUR if has_session => DueEvent::Tour,
            FIRST_SUMMARY if unsummed > 0 => DueEvent::Summary,
            _ if unsummed >= self.summary_threshold => DueEvent::Summary,
            _ if tour_drawn && has_session => DueEvent::Tour,
            _ => DueEvent::Actions,
        }
    }

    fn act<'a>(&'a mut self, now: f64, product_id: &'a str, rng: &mut Rng) -> StreamPayload<'a> {
        let Person { identity, visit, batches_left, last_batch_at, .. } = self;
        *batches_left = batches_left.saturating_sub(1);
        let leaving = *batches_left == 0;
        let mut actions: Vec<_> =
            (0..rng.usize(1..=MAX_BATCH)).map(|_| visit.act(identity, rng)).collect();
        if leaving && actions.len() < MAX_BATCH {
            actions.push(visit.leave(identity));
        }
        StreamPayload::Actions {
            product_id,
            user: identity,
            count: actions.len(),
            forwarded_at: 0.0,
            since: last_batch_at.replace(now),
            actions,
        }
    }

    fn sum_up<'a>(&'a mut self, product_id: &'a str) -> StreamPayload<'a> {
        let (summary, replaces) = self.visit.sum_up();
        let session_id = self.identity.session_id.as_deref();
        StreamPayload::Summary { product_id, session_id, summary, replaces, forwarded_at: 0.0 }
    }

    fn offer_tour<'a>(&'a self, product_id: &'a str, rng: &mut Rng) -> StreamPayload<'a> {
        let (flow_id, reason) = self.visit.tour();
        // `due_event` returns a tour only for a user with a session.
        let session_id = self.identity.session_id.as_deref().unwrap_or_default();
        let reason = rng.bool().then(|| reason.to_owned());
        let user_id = self.identity.user_id.as_deref().filter(|_| rng.bool());
        StreamPayload::UsertourTrigger { product_id, flow_id, session_id, reason, user_id }
    }
}

/// Returns a random identity: half of them are customers, the others lack something, and one in ten
/// has no session.
fn visitor_identity(rng: &mut Rng) -> UserIdentity {
    let known = customer_identity(rng);
    match rng.u8(..20) {
        0..=1 => {
            UserIdentity { session_id: None, user_id: None, email: None, conversation_id: None }
        }
        2..=6 => UserIdentity { user_id: None, email: None, ..known },
        7..=9 => UserIdentity { email: None, ..known },
        _ => known,
    }
}

/// Returns a signed-in user in a new session. The number decides the name, so a returning user has
/// the same name.
fn customer_identity(rng: &mut Rng) -> UserIdentity {
    let number = rng.u32(1..=CUSTOMER_COUNT);
    let mut name_rng = Rng::with_seed(u64::from(number));
    let (first, last) = (pick(&FIRST_NAMES, &mut name_rng), pick(&LAST_NAMES, &mut name_rng));
    let in_a_chat = rng.u8(..12) == 0;
    UserIdentity {
        session_id: Some(format!("ps_{:012x}", rng.u64(..1 << 48))),
        user_id: Some(format!("user_{number:05}")),
        email: Some(format!("{first}.{last}{number}@example.com")),
        conversation_id: in_a_chat.then(|| format!("conv_{:08x}", rng.u32(..))),
    }
}

/// Maximum actions in one payload.
const MAX_BATCH: usize = 5;
/// Number of the event that is a tour, so that even a short demo has one. It is even, as the turns
/// of the first user are.
const FIRST_TOUR: u64 = 6;
/// Number of the event that is a summary, after six turns of the first user.
const FIRST_SUMMARY: u64 = 12;
/// Number of users with an account.
const CUSTOMER_COUNT: u32 = 20_000;

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
                if let StreamPayload::Actions { actions, .. } =
                    person.next_payload(100, 0.0, "prod_abc", &mut rng)
                {
                    assert!(actions.len() <= MAX_BATCH);
                    last = actions.last().unwrap().title.clone();
                }
            }
            goodbyes += usize::from(last.starts_with("Leave "));
        }
        assert!(goodbyes > 60, "{goodbyes} of 100 ended with leaving");
    }

    #[test]
    fn a_visitor_without_a_session_is_never_sent_on_a_tour() {
        let mut rng = Rng::with_seed(2);
        let identity =
            UserIdentity { session_id: None, user_id: None, email: None, conversation_id: None };
        let mut visitor = Person::new(identity, &mut rng);
        for turn in 0..1000 {
            assert!(!matches!(
                visitor.next_payload(turn, 0.0, "prod_abc", &mut rng),
                StreamPayload::UsertourTrigger { .. }
            ));
        }
    }

    #[test]
    fn a_returning_customer_has_the_same_address() {
        let mut rng = Rng::with_seed(3);
        let mut addresses = std::collections::BTreeMap::new();
        let mut returns = 0;
        for _ in 0..2000 {
            let UserIdentity { user_id, email, .. } = customer_identity(&mut rng);
            if let Some(before) = addresses.insert(user_id, email.clone()) {
                assert_eq!(before, email);
                returns += 1;
            }
        }
        assert!(returns > 10, "{returns} of 2000 came back");
    }
}
