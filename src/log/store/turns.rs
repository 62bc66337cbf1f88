//! Whose turn it is to read from the store: so many readers at one time, the others in the order they came.
//!
//! A reader keeps its turn until it has caught up, or until it has not asked for [`PATIENCE`]: one whose socket has stalled
//! must not hold up the queue.
//!
//! May use: nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// The turns there are.
#[derive(Debug)]
pub(super) struct Turns {
    most: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// Who has a turn, and when it last used it.
    reading: Vec<(u64, Instant)>,
    waiting: VecDeque<(u64, Waker)>,
}

impl Turns {
    /// Turns for `most` readers at one time.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), queue: Mutex::default() })
    }

    /// A ticket for the queue; nobody stands in it yet.
    pub(super) fn ticket(self: &Arc<Self>) -> Ticket {
        let mut queue = self.queue();
        queue.next_ticket += 1;
        Ticket { number: queue.next_ticket, turns: Arc::clone(self) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole after every statement: a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's place among all; given up when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    turns: Arc<Turns>,
}

impl Ticket {
    /// Waits for the turn, or keeps it.
    ///
    /// The waker is called when a turn is given up. One that is merely not used any more shows at the next call.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut queue = self.turns.queue();
        if let Some((_, used)) = queue.reading.iter_mut().find(|(number, _)| *number == self.number) {
            *used = now;
            return Poll::Ready(());
        }
        if queue.reading.len() >= self.turns.most {
            queue.reading.retain(|(_, used)| now.duration_since(*used) < PATIENCE);
        }
        let ahead = queue.waiting.iter().position(|(number, _)| *number == self.number);
        let free = self.turns.most - queue.reading.len().min(self.turns.most);
        if ahead.unwrap_or(queue.waiting.len()) < free {
            if let Some(at) = ahead {
                queue.waiting.remove(at);
            }
            queue.reading.push((self.number, now));
            return Poll::Ready(());
        }
        match ahead.and_then(|at| queue.waiting.get_mut(at)) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => queue.waiting.push_back((self.number, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.turns.queue();
        queue.reading.retain(|(number, _)| *number != self.number);
        queue.waiting.retain(|(number, _)| *number != self.number);
        let next = queue.waiting.front().map(|(_, waker)| waker.clone());
        drop(queue);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// How long a turn may lie idle.
const PATIENCE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn has_turn(ticket: &Ticket, bell: &Arc<Bell>) -> bool {
        let waker = Waker::from(Arc::clone(bell));
        ticket.poll(&Context::from_waker(&waker)).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_wait_in_the_order_they_came() {
        let (turns, bell) = (Turns::new(2), Arc::new(Bell::default()));
        let mut tickets: Vec<_> = (0..5).map(|_| turns.ticket()).collect();
        let turns_now = |tickets: &[Ticket]| tickets.iter().map(|ticket| has_turn(ticket, &bell)).collect::<Vec<_>>();
        assert_eq!(turns_now(&tickets), [true, true, false, false, false]);
        assert_eq!(turns_now(&tickets), [true, true, false, false, false]);
        drop(tickets.remove(0));
        assert_eq!(bell.0.load(SeqCst), 1, "the next is told");
        assert!(!has_turn(&tickets[3], &bell), "and nobody else gets ahead");
        assert_eq!(turns_now(&tickets), [true, true, false, false]);
        drop(tickets.remove(2)); // who leaves the queue holds nobody up
        drop(tickets.remove(0));
        assert_eq!(turns_now(&tickets), [true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_use_its_turn_loses_it() {
        let (turns, bell) = (Turns::new(1), Arc::new(Bell::default()));
        let (stalled, other) = (turns.ticket(), turns.ticket());
        assert!(has_turn(&stalled, &bell) && !has_turn(&other, &bell));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(has_turn(&stalled, &bell) && !has_turn(&other, &bell));
        tokio::time::advance(PATIENCE).await;
        assert!(has_turn(&other, &bell) && !has_turn(&stalled, &bell));
        drop(other);
        assert!(has_turn(&stalled, &bell));
    }
}
