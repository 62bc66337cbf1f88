//! What is written down, and what comes of it.
//!
//! May use: the store's words.

use super::*;

impl Outbox {
    /// What is to be written down, if anything is that should not wait, or the first part of it. One at a time: [`Outbox::committed`] or
    /// [`Outbox::not_committed`] follows.
    pub(in crate::webhook) fn changes(&mut self) -> Option<Changes> {
        self.journal.is_due().then(|| self.batch())
    }

    /// What is not written down yet, or the first part of it, also what can wait.
    pub(in crate::webhook) fn all_changes(&mut self) -> Option<Changes> {
        self.journal.has_any(self.position).then(|| self.batch())
    }

    fn batch(&mut self) -> Changes {
        let (items, seen) = (&self.items, self.seen);
        self.journal.batch(self.position, |place| {
            let item = items.get(&place).filter(|item| item.claim == Claim::Owed)?;
            Some((owed_of(item, seen), item.row))
        })
    }

    /// Notes that the last changes are in the store.
    pub(in crate::webhook) fn committed(&mut self) {
        for place in self.journal.committed() {
            if let Some(item) = self.items.get_mut(&place) {
                item.row = Row::There;
            }
        }
    }

    /// Notes that these could not be written. They come again, with what has happened since.
    pub(in crate::webhook) fn not_committed(&mut self, changes: Changes) {
        let items = &self.items;
        let is_owed = |place| items.get(&place).is_some_and(|item| item.claim == Claim::Owed);
        for place in self.journal.not_committed(changes, is_owed) {
            if let Some(item) = self.items.get_mut(&place) {
                item.row = Row::Perhaps;
            }
        }
    }

    /// Notes that nothing can be written now, though it may be on its way: what is sent from now on does not wait for that.
    pub(in crate::webhook) fn cannot_be_written(&mut self) {
        self.journal.cannot_be_written();
    }

    /// Notes that the store has forgotten everything.
    pub(in crate::webhook) fn rewrite(&mut self) {
        self.journal.rewrite();
        for (place, item) in self.items.iter_mut().filter(|(_, item)| item.claim == Claim::Owed) {
            item.row = Row::None;
            self.journal.touch(*place, true);
        }
    }

    /// Dead letters that were lost since the last look, because the store could not be written for too long.
    pub(in crate::webhook) fn take_lost(&mut self) -> u64 {
        self.journal.take_lost()
    }
}

/// What the store keeps of a delivery that is owed. One that is under way may be tried again at once after a crash.
fn owed_of(item: &Item, now: Now) -> Owed {
    let next_attempt_at = match item.stage {
        Stage::Idle(Turn::Retry(Some(due))) => Some(unix_ms_of(due, now)),
        _ => (item.spent > 0).then_some(now.unix_ms),
    };
    Owed { delivery: item.delivery.clone(), next_attempt_at }
}
