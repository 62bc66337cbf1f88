//! Subscribers whose reads tests do by hand.
//!
//! May use: `event`, `fanout`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{Subscription, SubscriptionItem};
use crate::{
    event::{Gap, Kind, Only, Scope, SessionId, StartPosition, UserId},
    fanout::{FanoutHarness, SubscriberSignal},
};

impl FanoutHarness {
    pub(crate) fn subscribe(&self, scope: Scope, start: &StartPosition) -> FanoutReader {
        let wake_counter = Arc::new(FanoutWakeCounter::default());
        let subscription =
            Subscription::start(&self.fanout, SubscriberSignal::default(), scope, start);
        FanoutReader {
            subscription,
            wake_counter,
            seen: Vec::new(),
            is_on_shard: false,
            is_following: false,
        }
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct FanoutWakeCounter(AtomicUsize);

impl Wake for FanoutWakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A subscriber, and what it has received: positions of events, and gap notices.
pub(crate) struct FanoutReader {
    pub(crate) subscription: Subscription,
    wake_counter: Arc<FanoutWakeCounter>,
    pub(crate) seen: Vec<Result<u64, Gap>>,
    pub(crate) is_on_shard: bool,
    pub(crate) is_following: bool,
}

impl FanoutReader {
    pub(crate) fn resync_from(&mut self, position: u64) {
        self.is_following = false;
        self.subscription.resync_from(position);
    }

    /// Takes at most `max_items` items.
    pub(crate) fn read(&mut self, max_items: usize) {
        let waker = Waker::from(Arc::clone(&self.wake_counter));
        let mut context = Context::from_waker(&waker);
        for _ in 0..max_items {
            match self.subscription.poll_next(&mut context) {
                Poll::Ready(SubscriptionItem::Event { event, .. }) => {
                    self.seen.push(Ok(event.position()));
                }
                Poll::Ready(SubscriptionItem::Gap(gap)) => self.seen.push(Err(gap)),
                Poll::Pending => return,
            }
        }
    }

    pub(crate) fn events(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|item| item.as_ref().ok().copied()).collect()
    }

    pub(crate) fn gaps(&self) -> Vec<&Gap> {
        self.seen.iter().filter_map(|item| item.as_ref().err()).collect()
    }

    pub(crate) fn wakes(&self) -> usize {
        self.wake_counter.0.load(SeqCst)
    }
}

/// Returns the scope of these sessions and kinds; no value is no limit. A name behind a slash is
/// one of a user.
pub(crate) fn scope(names: &[&str], kinds: &[&str]) -> Scope {
    let users = names.iter().filter_map(|name| name.strip_prefix('/'));
    let users: BTreeSet<_> = users.map(|user| UserId::new(user).unwrap()).collect();
    let sessions = names.iter().filter(|name| !name.starts_with('/'));
    let sessions: BTreeSet<_> = sessions.map(|session| SessionId::new(session).unwrap()).collect();
    let kinds: BTreeSet<_> = kinds.iter().map(|kind| Kind::new(kind)).collect();
    Scope {
        sessions: if sessions.is_empty() { Only::Everything } else { Only::These(sessions.into()) },
        users: if users.is_empty() { Only::Everything } else { Only::These(users.into()) },
        kinds: if kinds.is_empty() { Only::Everything } else { Only::These(kinds.into()) },
    }
}
