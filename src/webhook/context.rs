//! What all workers share: the store, the guard, the roots of trust.
//!
//! May use: `config`, `log`, the webhook's own rooms.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    definition::Definition,
    outbox::{Keeping, Policy},
    sender::Sender,
};
use crate::{config::Webhook, outbound::egress_guard::Guard, store::Desk};

/// Made once, used by every worker.
#[derive(Debug)]
pub(super) struct Tools {
    /// Where outboxes are kept.
    pub(super) desk: Arc<Desk>,
    /// Whether that outlives the process.
    pub(super) is_durable: bool,
    /// Bytes of owed events that one webhook may hold where there is no store for events.
    pub(super) memory_bytes: u64,
    /// Where to, and whom to trust: for every sender that is made from now on.
    pub(super) way_out: RwLock<WayOut>,
}

/// What the relay's own connections may reach.
#[derive(Clone, Debug)]
pub(super) struct WayOut {
    /// What may be reached.
    pub(super) guard: Arc<Guard>,
    /// Whom to trust.
    pub(super) tls: rustls::ClientConfig,
}

impl Tools {
    /// A sender for this definition.
    pub(super) fn sender(&self, definition: &Definition) -> Sender {
        let former = definition.former.as_ref().map(|former| &former.secret);
        let WayOut { guard, tls } = self.way_out.read().unwrap_or_else(PoisonError::into_inner).clone();
        Sender::new(&definition.webhook, former, guard, &tls)
    }

    /// Takes a webhook out of the store, as soon as that can be written, and tells whether it is out. After `stop` that is
    /// tried for a moment only.
    pub(super) async fn unregister(&self, id: &str, stop: &CancellationToken) -> bool {
        let is_out = async {
            while self.desk.unregister(id).await.is_err() {
                time::sleep(AGAIN).await;
            }
        };
        let is_too_late = async {
            stop.cancelled().await;
            time::sleep(LEAVING).await;
        };
        tokio::select! {
            biased;
            () = is_out => true,
            () = is_too_late => false,
        }
    }

    /// How hard this webhook is tried.
    pub(super) fn policy(&self, webhook: &Webhook) -> Policy {
        let keeping = match self.is_durable {
            true => Keeping::InStore,
            false => Keeping::InMemory { most_bytes: self.memory_bytes },
        };
        Policy {
            max_retries: webhook.max_retries,
            initial_backoff: webhook.initial_backoff,
            max_backoff: webhook.max_backoff,
            max_in_flight: webhook.max_in_flight,
            keeping,
        }
    }
}

/// How long it takes to be removed at the most once the relay leaves. Less than an operator waits for it.
const LEAVING: Duration = Duration::from_secs(2);

/// While the store cannot be written.
const AGAIN: Duration = Duration::from_secs(1);
