//! Turns of TLS handshakes: their computations do not fill the runtime.
//!
//! A handshake computes for some tenths of a millisecond, with an RSA key for longer, and a client
//! may begin as many as it opens connections. So only some compute at one time, and of one address
//! block no more than these wait in the common queue: a flood of one address delays handshakes of
//! others by a turn or two, and every other task of the runtime by no more than one.
//!
//! ```text
//! poll ─► turn of its address block ─► turn of all ─► one poll of the handshake ─► both returned
//! ```
//!
//! A handshake that waits for its peer holds no turn.
//!
//! May use: `client_address`.

use std::{
    collections::HashMap, future::poll_fn, pin::pin, sync::Arc, task::Poll,
    thread::available_parallelism,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use crate::client_address::AddressBlock;

/// Turns of the handshakes of one listener.
#[derive(Debug)]
pub(super) struct HandshakeTurns {
    turns: usize,
    of_all: Semaphore,
    by_block: Mutex<HashMap<AddressBlock, Arc<Semaphore>>>,
}

impl HandshakeTurns {
    /// Creates turns for half of the processors, so that the other half of the runtime's threads
    /// serves connections.
    pub(super) fn new() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::with(processors.div_ceil(2))
    }

    fn with(turns: usize) -> Self {
        Self { turns, of_all: Semaphore::new(turns), by_block: Mutex::default() }
    }

    /// Runs a handshake to its end, each of its polls in a turn of its own.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the handshake, and returns its turn.
    pub(super) async fn run<F: Future>(&self, block: AddressBlock, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        let of_block = BlockTurns { turns: self, block, semaphore: Some(self.of_block(block)) };
        loop {
            // The semaphores are never closed, so there is always a permit to wait for.
            let turns = (of_block.acquire().await, self.of_all.acquire().await.ok());
            let polled = poll_fn(|context| Poll::Ready(handshake.as_mut().poll(context))).await;
            drop(turns);
            match polled {
                Poll::Ready(ended) => return ended,
                Poll::Pending => wait_for_wake_up().await,
            }
        }
    }

    fn of_block(&self, block: AddressBlock) -> Arc<Semaphore> {
        let mut by_block = self.lock();
        Arc::clone(by_block.entry(block).or_insert_with(|| Arc::new(Semaphore::new(self.turns))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AddressBlock, Arc<Semaphore>>> {
        self.by_block.lock()
    }
}

/// Turns of one address block, for one of its handshakes.
struct BlockTurns<'a> {
    turns: &'a HandshakeTurns,
    block: AddressBlock,
    semaphore: Option<Arc<Semaphore>>,
}

impl BlockTurns<'_> {
    async fn acquire(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        match &self.semaphore {
            Some(semaphore) => semaphore.acquire().await.ok(),
            None => None,
        }
    }
}

impl Drop for BlockTurns<'_> {
    fn drop(&mut self) {
        let mut by_block = self.turns.lock();
        drop(self.semaphore.take());
        // Under the lock no other handshake can take a reference: the map's is the last one.
        if by_block.get(&self.block).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            by_block.remove(&self.block);
        }
    }
}

/// Waits until the task is woken, by the handshake's socket or by anything else.
async fn wait_for_wake_up() {
    let mut has_waited = false;
    poll_fn(|_| match std::mem::replace(&mut has_waited, true) {
        true => Poll::Ready(()),
        // The handshake's poll has registered the waker.
        false => Poll::Pending,
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        thread,
        time::Duration,
    };

    use tokio::{task::yield_now, time::timeout};

    use super::*;
    use crate::client_address::ClientAddress;

    fn block(last: u8) -> AddressBlock {
        ClientAddress::new([192, 0, 2, last].into()).block()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_handshakes_compute_at_one_time_than_there_are_turns() {
        let turns = Arc::new(HandshakeTurns::with(2));
        let (computing, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let handshakes: Vec<_> = (0..40)
            .map(|n| {
                let (turns, computing, most) =
                    (Arc::clone(&turns), Arc::clone(&computing), Arc::clone(&most));
                tokio::spawn(async move {
                    let handshake = async {
                        for _ in 0..3 {
                            most.fetch_max(computing.fetch_add(1, SeqCst) + 1, SeqCst);
                            thread::sleep(Duration::from_micros(300));
                            computing.fetch_sub(1, SeqCst);
                            yield_now().await;
                        }
                    };
                    turns.run(block(n % 3), handshake).await;
                })
            })
            .collect();
        for handshake in handshakes {
            handshake.await.unwrap();
        }
        assert_eq!(most.load(SeqCst), 2);
        assert!(turns.lock().is_empty(), "nothing is kept of addresses that are gone");
    }

    #[tokio::test]
    async fn a_flood_of_one_address_delays_another_by_a_turn_and_not_by_the_flood() {
        let turns = Arc::new(HandshakeTurns::with(1));
        let done = Arc::new(AtomicUsize::new(0));
        let handshake = |last| {
            let (turns, done) = (Arc::clone(&turns), Arc::clone(&done));
            tokio::spawn(async move {
                turns.run(block(last), async { done.fetch_add(1, SeqCst) }).await
            })
        };
        // Taken meanwhile, so that all of them wait.
        let turn = turns.of_all.acquire().await.unwrap();
        let flood: Vec<_> = (0..100).map(|_| handshake(1)).collect();
        let other = handshake(2);
        yield_now().await;
        drop(turn);
        assert!(other.await.unwrap() <= 2);
        for handshake in flood {
            handshake.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_handshake_that_waits_for_its_peer_holds_no_turn() {
        let turns = HandshakeTurns::with(1);
        let mut waiting = pin!(turns.run(block(1), std::future::pending::<()>()));
        assert!(poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
        let other = timeout(Duration::from_secs(5), turns.run(block(1), async { 1 })).await;
        assert_eq!(other, Ok(1));
    }
}
