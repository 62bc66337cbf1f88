//! The clients connected to one product.
//!
//! In: frames. Out: a queue per client. Nothing is kept: who is not here, or has a full queue,
//! misses the frame, as with the real connector.
//!
//! May use: no other module.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{debug, warn};

/// Everybody connected to one product.
pub(crate) struct ConnectorClients {
    product: String,
    queues: Mutex<ClientQueues>,
}

/// Whether somebody may come in, and who is inside.
enum ClientQueues {
    Open(Vec<ConnectedClient>),
    Closed,
}

struct ConnectedClient {
    /// Holds [`CLIENT_QUEUE_FRAMES`] frames. When it is full, new frames are lost to this client
    /// alone; the log says how many.
    queue: mpsc::Sender<Bytes>,
    lost_frames: u64,
}

impl ConnectorClients {
    /// Nobody yet.
    pub(crate) fn new(product: &str) -> ConnectorClients {
        ConnectorClients {
            product: product.to_owned(),
            queues: Mutex::new(ClientQueues::Open(Vec::new())),
        }
    }

    /// A queue of every frame from now on, or nothing once closed. It ends when the audience is
    /// closed.
    pub(crate) fn try_connect(&self) -> Option<mpsc::Receiver<Bytes>> {
        let ClientQueues::Open(clients) = &mut *self.lock_queues() else {
            return None;
        };
        let (queue, frames) = mpsc::channel(CLIENT_QUEUE_FRAMES);
        clients.push(ConnectedClient { queue, lost_frames: 0 });
        Some(frames)
    }

    /// Puts a frame into every queue that has room. Never waits.
    pub(crate) fn broadcast(&self, frame: &Bytes) {
        if let ClientQueues::Open(clients) = &mut *self.lock_queues() {
            clients.retain_mut(|client| client.send(frame, &self.product));
        }
    }

    /// Ends every queue after what is already in it, and lets nobody in any more.
    pub(crate) fn close(&self) {
        let closed = mem::replace(&mut *self.lock_queues(), ClientQueues::Closed);
        if let ClientQueues::Open(clients) = closed {
            clients.iter().for_each(|client| client.log_departure(&self.product));
        }
    }

    fn lock_queues(&self) -> MutexGuard<'_, ClientQueues> {
        // A list of clients has no half-done state that a panic could leave behind.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectedClient {
    /// Whether the client is still there.
    fn send(&mut self, frame: &Bytes, product: &str) -> bool {
        match self.queue.try_send(frame.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                if self.lost_frames == 0 {
                    warn!(
                        product,
                        queue = CLIENT_QUEUE_FRAMES,
                        "a client reads too slowly and loses events"
                    );
                }
                self.lost_frames += 1;
                true
            }
            Err(TrySendError::Closed(_)) => {
                self.log_departure(product);
                false
            }
        }
    }

    fn log_departure(&self, product: &str) {
        match self.lost_frames {
            0 => debug!(product, "client gone"),
            lost => warn!(product, lost, "client gone that had lost events"),
        }
    }
}

/// Frames that wait for one client at most. The number is the connector's.
const CLIENT_QUEUE_FRAMES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_the_newest_events_of_its_own_client_only() {
        let connected = ConnectorClients::new("prod_abc");
        let mut slow = connected.try_connect().unwrap();
        let mut quick = connected.try_connect().unwrap();
        for number in 0..300 {
            connected.broadcast(&frame(number));
            assert_eq!(quick.try_recv().unwrap(), frame(number));
        }
        connected.close();
        let kept: Vec<_> = std::iter::from_fn(|| slow.try_recv().ok()).collect();
        assert_eq!(kept, (0..256).map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn who_comes_later_gets_nothing_of_what_was_before() {
        let connected = ConnectorClients::new("prod_abc");
        connected.broadcast(&frame(1));
        let mut client = connected.try_connect().unwrap();
        connected.broadcast(&frame(2));
        assert_eq!(client.try_recv().unwrap(), frame(2));
    }

    #[test]
    fn who_has_gone_is_forgotten_at_the_next_event() {
        let connected = ConnectorClients::new("prod_abc");
        drop(connected.try_connect());
        let _stays = connected.try_connect();
        connected.broadcast(&frame(1));
        let ClientQueues::Open(clients) = &*connected.lock_queues() else {
            panic!("nobody closed the doors")
        };
        assert_eq!(clients.len(), 1);
    }

    #[tokio::test]
    async fn closing_ends_every_queue_and_lets_nobody_in() {
        let connected = ConnectorClients::new("prod_abc");
        let mut client = connected.try_connect().unwrap();
        connected.broadcast(&frame(1));
        connected.close();
        assert_eq!(client.recv().await, Some(frame(1)));
        assert_eq!(client.recv().await, None);
        assert!(connected.try_connect().is_none());
    }

    fn frame(number: u32) -> Bytes {
        Bytes::from(number.to_string())
    }
}
