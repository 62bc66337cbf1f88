//! The settings of one upstream as the configuration changes them.
//!
//! In: a watch channel. Out: whether it has newer settings than the accepted, and a wake-up by
//! them. An upstream asks before and after every event, so the question is one atomic load, and the
//! place among the channel's waiters is kept from one event to the next.
//!
//! May use: `config`, `outbound`.

use std::{
    fmt,
    future::{pending, poll_fn},
    pin::Pin,
};

use tokio::sync::watch;

use crate::{config, outbound::client::EventStreamClient};

/// Settings of an upstream's connection.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamSettings {
    /// The upstream as configured.
    pub(crate) upstream: config::UpstreamConfig,
    /// Client for the next attempt.
    pub(crate) client: EventStreamClient,
}

/// Newest settings, and whether they have been accepted.
pub(super) struct SettingsUpdates {
    receiver: watch::Receiver<UpstreamSettings>,
    /// Completes with the first change since [`SettingsUpdates::accept`]; never once the sender is
    /// gone.
    change: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl SettingsUpdates {
    /// Accepts nothing yet.
    pub(super) fn new(receiver: watch::Receiver<UpstreamSettings>) -> Self {
        Self { change: first_change(receiver.clone()), receiver }
    }

    /// Returns whether there are newer settings than those accepted.
    pub(super) fn are_new(&self) -> bool {
        self.receiver.has_changed().unwrap_or(false)
    }

    /// Returns the newest settings, which count as accepted from now on.
    pub(super) fn accept(&mut self) -> config::UpstreamConfig {
        let newest = self.receiver.borrow_and_update().upstream.clone();
        self.change = first_change(self.receiver.clone());
        newest
    }

    /// Returns the newest client, whether or not its settings are accepted.
    pub(super) fn client(&self) -> EventStreamClient {
        self.receiver.borrow().client.clone()
    }

    /// Waits for newer settings than those accepted; for ever once their sender is gone. The caller
    /// accepts them before it waits again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub(super) async fn changed(&mut self) {
        poll_fn(|context| self.change.as_mut().poll(context)).await;
    }
}

impl fmt::Debug for SettingsUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsUpdates").field("are_new", &self.are_new()).finish_non_exhaustive()
    }
}

fn first_change(
    mut receiver: watch::Receiver<UpstreamSettings>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        if receiver.changed().await.is_err() {
            pending::<()>().await;
        }
    })
}
