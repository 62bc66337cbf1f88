//! How many connections there may be, and the last file descriptor.
//!
//! Whoever comes when all places are taken is still let in to be told so, as long as there is one of a few more places for that;
//! everybody beyond is turned away without a word.
//!
//! May use: `throttle`.

use std::{fs::File, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::log_limit::Throttle;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    regular: Arc<Semaphore>,
    surplus: Arc<Semaphore>,
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

#[cfg(test)]
impl Place {
    /// Where nobody counts.
    pub(crate) fn of_nobody() -> Self {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned();
        Self { _permit: permit.expect("there is one") }
    }
}

impl Places {
    /// So many, and a few more.
    pub(super) fn new(most: usize) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Self { regular: semaphore(most), surplus: semaphore(SURPLUS) }
    }

    /// A place, and whether it is one of those beyond the limit. None if these are taken, too.
    pub(super) fn enter(&self) -> Option<(Place, bool)> {
        let take = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        let place = |permit, is_surplus| (Place { _permit: permit }, is_surplus);
        let regular = take(&self.regular).map(|permit| place(permit, false));
        regular.or_else(|| take(&self.surplus).map(|permit| place(permit, true)))
    }
}

/// A file descriptor that is kept for the moment when there is no other: given up, it lets in one connection, which is closed at
/// once. So newcomers are turned away instead of waiting for what may never come.
#[derive(Debug)]
pub(super) struct Spare {
    file: Option<File>,
    /// The operator need not hear of each connection.
    pub(super) throttle: Throttle,
}

impl Spare {
    pub(super) fn new() -> Self {
        Self { file: File::open(NOTHING).ok(), throttle: Throttle::default() }
    }

    /// Gives it up. False if it is gone: then there is nothing to do but to wait.
    pub(super) fn give_up(&mut self) -> bool {
        self.file.take().is_some()
    }

    /// Tries to have it again.
    pub(super) fn take_back(&mut self) {
        self.file = File::open(NOTHING).ok();
    }
}

/// Those who are being told that there is no place.
const SURPLUS: usize = 64;

/// Opening it neither waits nor reads anything.
const NOTHING: &str = "/dev/null";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_places_a_few_are_told_and_the_others_turned_away_until_somebody_leaves() {
        let places = Places::new(2);
        let is_surplus = |entered: &Option<(Place, bool)>| entered.as_ref().map(|(_, is_surplus)| *is_surplus);
        let mut regular: Vec<_> = (0..2).map(|_| places.enter()).collect();
        assert!(regular.iter().all(|place| is_surplus(place) == Some(false)));
        let surplus: Vec<_> = (0..SURPLUS).map(|_| places.enter()).collect();
        assert!(surplus.iter().all(|place| is_surplus(place) == Some(true)));
        assert!(places.enter().is_none());
        regular.pop();
        assert_eq!(is_surplus(&places.enter()), Some(false));
    }
}
