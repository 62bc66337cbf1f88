//! The clients that are connected to one product.
//!
//! In: frames. Out: a queue per client. No frame is kept: a client that is not connected, or has a
//! full queue, misses it, as with the real connector.
//!
//! May use: no other module.

use std::mem;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{debug, warn};

/// The clients that are connected to one product.
pub(crate) struct ConnectorClients {
    product: String,
    queues: Mutex<ClientQueues>,
}

/// Queues of the connected clients, until they are closed.
enum ClientQueues {
    Open(Vec<ConnectedClient>),
    Closed,
}

struct ConnectedClient {
    /// Queue of [`CLIENT_QUEUE_FRAMES`] frames. When it is full, new frames are lost to this client
    /// alone, and the log has their number.
    queue: mpsc::Sender<Bytes>,
    lost_frames: u64,
}

impl ConnectorClients {
    /// Creates the clients of a product, which are none at first.
    pub(crate) fn new(product: &str) -> ConnectorClients {
        ConnectorClients {
            product: product.to_owned(),
            queues: Mutex::new(ClientQueues::Open(Vec::new())),
        }
    }

    /// Returns a queue of every frame from now on, or [`None`] once closed. The queue ends when
    /// [`ConnectorClients::close`] is called.
    pub(crate) fn try_connect(&self) -> Option<mpsc::Receiver<Bytes>> {
        let ClientQueues::Open(clients) = &mut *self.lock_queues() else {
            return None;
        };
        let (queue, frames) = mpsc::channel(CLIENT_QUEUE_FRAMES);
        clients.push(ConnectedClient { queue, lost_frames: 0 });
        Some(frames)
    }

    /// Pushes a frame to every queue that is not full. Never waits.
    pub(crate) fn broadcast(&self, frame: &Bytes) {
        if let ClientQueues::Open(clients) = &mut *self.lock_queues() {
            clients.retain_mut(|client| client.send(frame, &self.product));
        }
    }

    /// Ends every queue after the frames in it, and refuses new clients.
    pub(crate) fn close(&self) {
        let closed = mem::replace(&mut *self.lock_queues(), ClientQueues::Closed);
        if let ClientQueues::Open(clients) = closed {
            clients.iter().for_each(|client| client.log_departure(&self.product));
        }
    }

    fn lock_queues(&self) -> MutexGuard<'_, ClientQueues> {
        // A list of clients has no half-done state that a panic could leave behind.
        self.queues.lock()
    }
}

impl ConnectedClient {
    /// Pushes a frame, and returns whether the client is still connected.
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
            0 => debug!(product, "client disconnected"),
            lost => warn!(product, lost, "a client that had lost events disconnected"),
        }
    }
}

/// Maximum frames that wait for one client, as in the connector.
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
    fn a_later_client_gets_no_earlier_frames() {
        let connected = ConnectorClients::new("prod_abc");
        connected.broadcast(&frame(1));
        let mut client = connected.try_connect().unwrap();
        connected.broadcast(&frame(2));
        assert_eq!(client.try_recv().unwrap(), frame(2));
    }

    #[test]
    fn a_disconnected_client_is_removed_at_the_next_event() {
        let connected = ConnectorClients::new("prod_abc");
        drop(connected.try_connect());
        let _stays = connected.try_connect();
        connected.broadcast(&frame(1));
        let ClientQueues::Open(clients) = &*connected.lock_queues() else {
            panic!("the clients are not closed")
        };
        assert_eq!(clients.len(), 1);
    }

    #[tokio::test]
    async fn closing_ends_every_queue_and_refuses_new_clients() {
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
