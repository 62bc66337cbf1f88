//! One attempt: signs the body, posts it, and judges the answer.
//!
//! May use: `delivery`, `egress`, `signature`.

use bytes::Bytes;

use super::Verdict;
use crate::{
    config::{Secret, Webhook},
    delivery::Attempt,
};

/// Sends to one endpoint, over connections of its own.
#[derive(Debug)]
pub(super) struct Sender {}

impl Sender {
    /// Makes one attempt to deliver `payload` under the event id `id`, within the webhook's `timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the attempt; whether the receiver has got it is not known then.
    pub(super) async fn send(&self, id: &str, payload: Bytes) -> (Attempt, Verdict) {
        todo!()
    }
}
