//! Whose turn it is to read from the store: so many readers at one time, the others in the order they came.
//!
//! A reader keeps its turn until it has caught up, or until it has had its answer for [`PATIENCE`] without asking again: one
//! whose socket has stalled must not hold up the queue. While a question of its is out, the turn is in use, however slow the
//! disk is. A turn that comes free is given to the first in the queue at once: as long as anybody waits, all turns are taken.
//!
//! May use: nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// The turns there are.
#[derive(Debug)]
pub(crate) struct Turns {
    most: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    last_number: u64,
    /// Who has a turn, and since when it lies idle; none while a question is out.
    reading: BTreeMap<u64, Option<Instant>>,
    /// Who waits, in the order they came.
    waiting: BTreeMap<u64, Waker>,
    /// When idle turns were last looked for.
    looked: Option<Instant>,
    /// Turns that were looked at.
    #[cfg(test)]
    visited: usize,
}

impl Turns {
    /// Turns for `most` readers at one time.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), queue: Mutex::default() })
    }

    /// A ticket for the queue; nobody stands in it yet.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        Ticket { number: NOT_QUEUED, turns: Arc::clone(self) }
    }

    /// Notes since when the turn of this number lies idle, if there still is one.
    fn note(&self, number: u64, idle: Option<Instant>) {
        if let Some(turn) = self.queue().reading.get_mut(&number) {
            *turn = idle;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole after every statement: a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Takes back the turns that lie idle. Everybody who waits calls this every now and then: once in a while is enough.
    fn take_back_idle(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.duration_since(looked) < PATIENCE / 4) {
            return;
        }
        self.looked = Some(now);
        #[cfg(test)]
        {
            self.visited += self.reading.len();
        }
        self.reading.retain(|_, idle| idle.is_none_or(|since| now.duration_since(since) < PATIENCE));
    }

    /// Gives the turns that are free to those who have waited longest, who are to be woken.
    fn give(&mut self, most: usize, now: Instant) -> Vec<Waker> {
        let mut given = Vec::new();
        while self.reading.len() < most
            && let Some((number, waker)) = self.waiting.pop_first()
        {
            self.reading.insert(number, Some(now));
            given.push(waker);
        }
        given
    }

    /// Whether the ticket of this number, which gets a new one when it joins the queue, has a turn.
    fn has_turn(&mut self, number: &mut u64, most: usize, now: Instant, waker: &Waker) -> bool {
        if self.reading.contains_key(number) {
            return true;
        }
        if let Some(known) = self.waiting.get_mut(number) {
            known.clone_from(waker);
            return false;
        }
        self.last_number += 1;
        *number = self.last_number;
        if self.reading.len() < most {
            self.reading.insert(*number, Some(now));
            return true;
        }
        self.waiting.insert(*number, waker.clone());
        false
    }
}

/// One reader's place among all; given up when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Given when it joins the queue, and again when it has lost its turn.
    number: u64,
    turns: Arc<Turns>,
}

impl Ticket {
    /// Waits for the turn, or keeps it.
    ///
    /// The waker is called when there is a turn for it. Turns that are merely not used any more show at the next call.
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        let (now, most) = (Instant::now(), self.turns.most);
        let mut queue = self.turns.queue();
        if let Some(idle) = queue.reading.get_mut(&self.number) {
            *idle = Some(now);
            return Poll::Ready(());
        }
        let mut given = Vec::new();
        if queue.reading.len() >= most {
            queue.take_back_idle(now);
            given = queue.give(most, now);
        }
        let has_turn = queue.has_turn(&mut self.number, most, now, context.waker());
        drop(queue);
        given.into_iter().for_each(Waker::wake);
        if has_turn { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Notes that a question is put: until what is returned is dropped, the turn is in use. There is one at a time.
    pub(crate) fn asks(&self) -> Asked {
        self.turns.note(self.number, None);
        Asked { number: self.number, turns: Arc::clone(&self.turns) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.turns.queue();
        queue.reading.remove(&self.number);
        queue.waiting.remove(&self.number);
        let given = queue.give(self.turns.most, Instant::now());
        drop(queue);
        given.into_iter().for_each(Waker::wake);
    }
}

/// A question that is out. It goes with the question, not with the reader, who may not look for the answer for a long time.
#[derive(Debug)]
pub(crate) struct Asked {
    number: u64,
    turns: Arc<Turns>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.turns.note(self.number, Some(Instant::now()));
    }
}

/// The number of whoever has not joined the queue yet.
const NOT_QUEUED: u64 = 0;

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

    fn has_turn(ticket: &mut Ticket, bell: &Arc<Bell>) -> bool {
        let waker = Waker::from(Arc::clone(bell));
        ticket.poll(&Context::from_waker(&waker)).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_wait_in_the_order_they_came() {
        let (turns, bell) = (Turns::new(2), Arc::new(Bell::default()));
        let mut tickets: Vec<_> = (0..5).map(|_| turns.ticket()).collect();
        let turns_now =
            |tickets: &mut [Ticket]| tickets.iter_mut().map(|ticket| has_turn(ticket, &bell)).collect::<Vec<_>>();
        assert_eq!(turns_now(&mut tickets), [true, true, false, false, false]);
        assert_eq!(turns_now(&mut tickets), [true, true, false, false, false]);
        drop(tickets.remove(0));
        assert_eq!(bell.0.load(SeqCst), 1, "the next is told");
        assert!(!has_turn(&mut tickets[3], &bell), "and nobody else gets ahead");
        assert_eq!(turns_now(&mut tickets), [true, true, false, false]);
        drop(tickets.remove(2)); // who leaves the queue holds nobody up
        drop(tickets.remove(0));
        assert_eq!(turns_now(&mut tickets), [true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_use_its_turn_loses_it() {
        let (turns, bell) = (Turns::new(1), Arc::new(Bell::default()));
        let (mut stalled, mut other) = (turns.ticket(), turns.ticket());
        assert!(has_turn(&mut stalled, &bell) && !has_turn(&mut other, &bell));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(has_turn(&mut stalled, &bell) && !has_turn(&mut other, &bell));
        tokio::time::advance(PATIENCE).await;
        assert!(has_turn(&mut other, &bell) && !has_turn(&mut stalled, &bell));
        drop(other);
        assert!(has_turn(&mut stalled, &bell));
    }
    #[tokio::test(start_paused = true)]
    async fn a_turn_is_not_lost_while_a_question_is_out() {
        let (turns, bell) = (Turns::new(1), Arc::new(Bell::default()));
        let (mut patient, mut other) = (turns.ticket(), turns.ticket());
        assert!(has_turn(&mut patient, &bell));
        let asked = patient.asks();
        tokio::time::advance(PATIENCE * 40).await; // a slow disk
        assert!(!has_turn(&mut other, &bell));
        drop(asked);
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!has_turn(&mut other, &bell), "from the answer on, it has as long as ever");
        assert!(has_turn(&mut patient, &bell), "and may ask again");
        drop(patient.asks());
        tokio::time::advance(PATIENCE).await; // it does not look for the answer
        assert!(has_turn(&mut other, &bell));
        let asked = other.asks();
        drop(other);
        drop(asked);
        assert!(has_turn(&mut patient, &bell), "an answer that nobody waits for takes no turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_not_kept_for_one_that_waits_but_does_not_come() {
        let (turns, bell) = (Turns::new(1), Arc::new(Bell::default()));
        let (mut first, mut stalled, mut last) = (turns.ticket(), turns.ticket(), turns.ticket());
        assert!(has_turn(&mut first, &bell) && !has_turn(&mut stalled, &bell) && !has_turn(&mut last, &bell));
        drop(first);
        assert_eq!(bell.0.load(SeqCst), 1);
        assert!(!has_turn(&mut last, &bell), "it is the other's");
        tokio::time::advance(PATIENCE).await;
        assert!(has_turn(&mut last, &bell) && !has_turn(&mut stalled, &bell));
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_that_wait_look_at_little_more_than_one_does() {
        const MOST: usize = 64;
        let (turns, bell) = (Turns::new(MOST), Arc::new(Bell::default()));
        let mut tickets: Vec<_> = (0..20_000).map(|_| turns.ticket()).collect();
        for round in 0..10 {
            let with_turn = tickets.iter_mut().filter_map(|ticket| has_turn(ticket, &bell).then_some(())).count();
            assert_eq!((with_turn, turns.queue().visited), (MOST, MOST * (round + 1)), "one look for all");
            tokio::time::advance(PATIENCE / 4).await;
        }
        tickets.drain(..MOST);
        assert_eq!(bell.0.load(SeqCst), MOST, "nobody is woken for nothing");
        assert!(tickets[..MOST].iter_mut().all(|ticket| has_turn(ticket, &bell)));
        tickets.reverse(); // those who leave the queue cost it no more
        tickets.truncate(MOST);
        assert_eq!(turns.queue().waiting.len(), 0);
        assert_eq!(turns.queue().visited, MOST * 10);
    }
}
