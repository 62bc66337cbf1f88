//! The clients connected to one product.
//!
//! In: frames. Out: a queue per client. Nothing is kept: who is not here, or has a full queue, misses the frame, as with
//! the real connector.
//!
//! May use: nothing of ours.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{debug, warn};

/// Everybody connected to one product.
pub(crate) struct Audience {
    product: String,
    doors: Mutex<Doors>,
}

/// Whether somebody may come in, and who is inside.
enum Doors {
    Open(Vec<Client>),
    Closed,
}

struct Client {
    /// Holds [`QUEUE`] frames. When it is full, new frames are lost to this client alone; the log says how many.
    queue: mpsc::Sender<Bytes>,
    lost: u64,
}

impl Audience {
    /// Nobody yet.
    pub(crate) fn new(product: &str) -> Audience {
        Audience { product: product.to_owned(), doors: Mutex::new(Doors::Open(Vec::new())) }
    }

    /// A queue of every frame from now on, or nothing once closed. It ends when the audience is closed.
    pub(crate) fn try_join(&self) -> Option<mpsc::Receiver<Bytes>> {
        let Doors::Open(clients) = &mut *self.doors() else {
            return None;
        };
        let (queue, frames) = mpsc::channel(QUEUE);
        clients.push(Client { queue, lost: 0 });
        Some(frames)
    }

    /// Puts a frame into every queue that has room. Never waits.
    pub(crate) fn tell(&self, frame: &Bytes) {
        if let Doors::Open(clients) = &mut *self.doors() {
            clients.retain_mut(|client| client.tell(frame, &self.product));
        }
    }

    /// Ends every queue after what is already in it, and lets nobody in any more.
    pub(crate) fn close(&self) {
        let left_behind = mem::replace(&mut *self.doors(), Doors::Closed);
        if let Doors::Open(clients) = left_behind {
            clients.iter().for_each(|client| client.say_goodbye(&self.product));
        }
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        // A list of clients has no half-done state that a panic could leave behind.
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Whether the client is still there.
    fn tell(&mut self, frame: &Bytes, product: &str) -> bool {
        match self.queue.try_send(frame.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                if self.lost == 0 {
                    warn!(product, queue = QUEUE, "a client reads too slowly and loses events");
                }
                self.lost += 1;
                true
            }
            Err(TrySendError::Closed(_)) => {
                self.say_goodbye(product);
                false
            }
        }
    }

    fn say_goodbye(&self, product: &str) {
        match self.lost {
            0 => debug!(product, "client gone"),
            lost => warn!(product, lost, "client gone that had lost events"),
        }
    }
}

/// Frames that wait for one client at most. The number is the connector's.
const QUEUE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_the_newest_events_of_its_own_client_only() {
        let audience = Audience::new("prod_abc");
        let mut slow = audience.try_join().unwrap();
        let mut quick = audience.try_join().unwrap();
        for number in 0..300 {
            audience.tell(&frame(number));
            assert_eq!(quick.try_recv().unwrap(), frame(number));
        }
        audience.close();
        let kept: Vec<_> = std::iter::from_fn(|| slow.try_recv().ok()).collect();
        assert_eq!(kept, (0..256).map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn who_comes_later_gets_nothing_of_what_was_before() {
        let audience = Audience::new("prod_abc");
        audience.tell(&frame(1));
        let mut client = audience.try_join().unwrap();
        audience.tell(&frame(2));
        assert_eq!(client.try_recv().unwrap(), frame(2));
    }

    #[test]
    fn who_has_gone_is_forgotten_at_the_next_event() {
        let audience = Audience::new("prod_abc");
        drop(audience.try_join());
        let _stays = audience.try_join();
        audience.tell(&frame(1));
        let Doors::Open(clients) = &*audience.doors() else { panic!("nobody closed the doors") };
        assert_eq!(clients.len(), 1);
    }

    #[tokio::test]
    async fn closing_ends_every_queue_and_lets_nobody_in() {
        let audience = Audience::new("prod_abc");
        let mut client = audience.try_join().unwrap();
        audience.tell(&frame(1));
        audience.close();
        assert_eq!(client.recv().await, Some(frame(1)));
        assert_eq!(client.recv().await, None);
        assert!(audience.try_join().is_none());
    }

    fn frame(number: u32) -> Bytes {
        Bytes::from(number.to_string())
    }
}
