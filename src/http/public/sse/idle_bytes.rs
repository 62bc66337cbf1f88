//! What an idle subscriber is made of.
//!
//! May use: `admission`, `shard`, `wake_state`.

use super::SseConnection;
use crate::{
    admission::AdmittedSubscriber,
    shard::{SLOT_BYTES, SUBSCRIBER_WAKER_BYTES},
    wake_state::WakeState,
};

#[test]
fn an_idle_subscriber_is_made_of_few_bytes() {
    use crate::{subscriber::*, subscription::*, event::*, net::*, admission::*};
    for (n, s) in [("sse", size_of::<SseConnection>()), ("conn", size_of::<ConnectedSubscriber>()),
      ("subscription", size_of::<Subscription>()), ("scope", size_of::<Scope>()),
      ("deadlines", size_of::<SubscriberDeadlines>()), ("socket", size_of::<SubscriberSocket>()),
      ("detached", size_of::<DetachedConnection>()), ("permit", size_of::<AdmissionPermit>()),
      ("admitted", size_of::<AdmittedSubscriber>()), ("req", size_of::<AdmissionRequest>()),
      ("slot", SLOT_BYTES), ("waker", SUBSCRIBER_WAKER_BYTES), ("wake", size_of::<WakeState>()), ("tcp", size_of::<tokio::net::TcpStream>())] { println!("SZ {n} {s}"); }
}
