//! Dead letters that are delivered again: a walk over those that wait for it in the store, by place, again and again.
//!
//! ```text
//! store   a1 a2 b1 a3 c1 …      a1 fails and waits: a2, a3 are left for a later walk, b1 and c1 are taken
//!               through ─┘
//! ```
//!
//! A session whose first delivery waits for its next attempt has no other letters here, so that it keeps no other session's
//! from coming. Once one of a session is left, those behind it are, too, until the next walk: they keep their order.
//!
//! May use: `delivery`, `event`.

use std::collections::{HashSet, VecDeque};

use super::*;

/// Dead letters that are under way, or could be, at one time; and of one session. A thousand of them do not crowd out what is new.
const MOST_LETTERS: usize = 16;
/// All that are here, those that wait for their next attempt among them: of so many sessions that fail, none keeps the others
/// waiting.
const MOST_LETTERS_HERE: usize = 256;
/// Bytes of them, and one more: as much as dead letters that wait for the store may take.
const MOST_LETTER_BYTES: usize = 16 << 20;
/// Sessions that one walk leaves behind; then it begins anew.
const MOST_LEFT: usize = 1000;
/// Longer than any answer of a store that works is on its way.
const STALE: Duration = Duration::from_secs(5);

/// Where the walk stands.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Everything up to here has been looked at.
    through: u64,
    /// Sessions of which something has been left behind.
    left: HashSet<SessionId>,
    /// Something has been taken since it began.
    has_taken: bool,
    /// Taken not long ago, and when: an answer that was on its way meanwhile may still name them.
    taken: VecDeque<(Instant, u64)>,
}

impl Outbox {
    /// How many dead letters are here to be delivered again.
    pub(in crate::webhook) fn letters(&self) -> u64 {
        self.letters.len() as u64
    }

    /// The place behind which to ask for dead letters, if there is room for any.
    pub(in crate::webhook) fn wants_letters_behind(&self) -> Option<u64> {
        self.has_room_for_letters().then_some(self.walk.through)
    }

    fn has_room_for_letters(&self) -> bool {
        let here = || self.letters.iter().filter_map(|place| self.items.get(place));
        let bytes: usize = here().filter_map(|item| item.event.as_ref()).map(|event| event.size_bytes()).sum();
        let waits = |item: &Item| matches!(item.stage, Stage::Blocked | Stage::Idle(Turn::Retry(Some(_))));
        let active = here().filter(|item| !waits(item)).count();
        self.letters.len() < MOST_LETTERS_HERE && bytes < MOST_LETTER_BYTES && active < MOST_LETTERS
    }

    /// Takes dead letters for another delivery, as far as there is room: those that wait behind the place that was asked for, by
    /// place; none when there are no more. Those that are here, or were and are not written down yet, are left: the store does
    /// not know better. Word of an expiry comes first: else one of these may have just been accepted.
    ///
    /// Tells whether it is worth asking again soon: not if a whole walk has found nothing.
    pub(in crate::webhook) fn redeliver(&mut self, letters: Vec<DeadLetter>, now: Now) -> bool {
        self.seen = now;
        let is_at_end = letters.is_empty();
        let has_found = !is_at_end || self.walk.has_taken;
        while self.walk.taken.pop_front_if(|(at, _)| *at + STALE < now.instant).is_some() {}
        for letter in letters {
            let (place, session) = (letter.delivery.place, letter.delivery.session.clone());
            let is_known = self.items.contains_key(&place) || self.journal.is_open(place);
            if !is_known && !self.may_be_taken(place, session.as_ref()) {
                self.walk.left.extend(session);
            } else if !is_known {
                if !self.has_room_for_letters() {
                    return has_found;
                }
                self.take_letter(letter);
            }
            self.walk.through = place;
        }
        if is_at_end || self.walk.left.len() > MOST_LEFT {
            self.walk_anew();
        }
        has_found
    }

    /// Notes that there are others, which may stand before those that have been looked at. What has been asked for is void.
    pub(in crate::webhook) fn walk_anew(&mut self) {
        self.walk = Walk { taken: std::mem::take(&mut self.walk.taken), ..Walk::default() };
    }

    /// Whether it is the turn of a letter: none of its session has been left behind, or holds it up.
    fn may_be_taken(&self, place: u64, session: Option<&SessionId>) -> bool {
        if self.walk.taken.iter().any(|(_, taken)| *taken == place) {
            return false; // it may be settled already
        }
        let Some(session) = session else { return true };
        let head = self.lanes.head(session).and_then(|head| self.items.get(&head));
        let is_held_up = head.is_some_and(|head| matches!(head.stage, Stage::Idle(Turn::Retry(Some(_)))));
        !is_held_up && !self.walk.left.contains(session) && self.letters_of(session).count() < MOST_LETTERS
    }

    /// The letters of a session that are here.
    fn letters_of<'a>(&'a self, session: &'a SessionId) -> impl Iterator<Item = &'a Item> {
        let letters = self.letters.iter().filter_map(|place| self.items.get(place));
        letters.filter(move |item| item.delivery.session.as_ref() == Some(session))
    }

    fn take_letter(&mut self, letter: DeadLetter) {
        let DeadLetter { delivery, payload, .. } = letter;
        let place = delivery.place;
        let (id, kind, session) = (delivery.event_id, delivery.kind.clone(), delivery.session.clone());
        let event = Arc::new(Event::restored(id, place, kind, session.clone(), &payload));
        self.walk.taken.push_back((self.seen.instant, place));
        self.walk.has_taken = true;
        self.admit(Item::new(delivery, Some(event), Claim::Letter), Turn::Fresh);
        if let Some(session) = session {
            self.step_ahead(&session, place);
        }
    }

    /// Lets an item go before the head of its lane, if it is older and the head has not been tried.
    fn step_ahead(&mut self, session: &SessionId, place: u64) {
        let head = self.lanes.head(session).and_then(|head| self.items.get(&head));
        let Some(head) = head.filter(|head| head.stage == Stage::Idle(Turn::Fresh)) else { return };
        let head = head.delivery.place;
        if place < head {
            self.lanes.lead(session, place);
            self.move_to(head, Stage::Blocked);
            self.move_to(place, Stage::Idle(Turn::Fresh));
        }
    }

    /// Leaves the letters of a session whose first delivery waits for its next attempt: the store has them.
    pub(super) fn leave_letters(&mut self, session: &SessionId) {
        let blocked = self.letters_of(session).filter(|item| item.stage == Stage::Blocked);
        let blocked: Vec<u64> = blocked.map(|item| item.delivery.place).collect();
        if !blocked.is_empty() {
            self.walk.left.insert(session.clone());
        }
        for place in blocked {
            self.remove(place);
        }
    }
}
