//! One admitted subscriber: what it asked for, how far it has read, why it is to disconnect.
//!
//! May use: `auth`, `config`, `event`, `fanout`, `metrics`, `net`.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::disconnect_reason::DisconnectReason;
use crate::{
    auth::{Access, CredentialHolder, CredentialProof},
    config::Permission,
    event::ProductId,
    fanout::SubscriberSignal,
    metrics::Transport,
    net::ForcedClose,
};

/// Who wants a seat.
#[derive(Debug)]
pub(crate) struct AdmissionRequest {
    /// What it listens to.
    pub(crate) product: ProductId,
    /// How.
    pub(crate) transport: Transport,
    /// The name of its key.
    pub(crate) key: Arc<str>,
    /// Whom it is counted for.
    pub(crate) holder: CredentialHolder,
    /// What it was let in for.
    pub(crate) proof: Arc<CredentialProof>,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// How it is woken.
    pub(crate) listener: Arc<SubscriberSignal>,
    /// What ends it when it takes nothing. None over WebSocket, which hears that it is to leave at
    /// any time.
    pub(crate) forced_close: Option<Arc<ForcedClose>>,
}

/// Somebody with a seat.
#[derive(Debug)]
pub(crate) struct AdmittedSubscriber {
    pub(super) request: AdmissionRequest,
    pub(super) connected_at: SystemTime,
    /// Place of the last entry that it has been given; [`CAUGHT_UP`] while it sleeps at the
    /// end.
    pub(super) position: AtomicU64,
    pub(super) disconnect_reason: AtomicU8,
}

impl AdmittedSubscriber {
    /// Who has the seat.
    pub(crate) fn request(&self) -> &AdmissionRequest {
        &self.request
    }

    /// When it came.
    pub(crate) fn connected_at(&self) -> SystemTime {
        self.connected_at
    }

    /// Entries between where it stands and the log's newest. Those that its filter hides count only
    /// while it has something to get.
    pub(crate) fn entries_behind(&self, newest: u64) -> u64 {
        let position = match self.position.load(Ordering::Relaxed) {
            // It was at the end when it fell asleep. A mark since then that it does not look at is
            // one it cannot take.
            CAUGHT_UP => self
                .request
                .listener
                .pending_position()
                .map_or(newest, |place| place.saturating_sub(1)),
            position => position,
        };
        newest.saturating_sub(position)
    }

    /// Tells it to leave if it would not be let in any more.
    pub(super) fn disconnect_if_revoked(&self, access: &Access) {
        let AdmissionRequest { proof, product, .. } = &self.request;
        if !access.still_grants(proof, product, Permission::Subscribe) {
            self.disconnect(DisconnectReason::Revoked);
        }
    }

    /// Tells it to leave. The first word counts, unless it may go on for a while after that and
    /// must not after this one.
    pub(crate) fn disconnect(&self, reason: DisconnectReason) {
        let _ =
            self.disconnect_reason.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |current| {
                let is_urgent = DisconnectReason::ALL
                    .into_iter()
                    .any(|known| known as u8 == current && known.is_urgent());
                (current == DisconnectReason::NONE_YET || (reason.is_urgent() && !is_urgent))
                    .then_some(reason as u8)
            });
        self.request.listener.wake();
        if let Some(forced_close) =
            self.request.forced_close.as_ref().filter(|_| reason.is_urgent())
        {
            forced_close.schedule_soon();
        }
    }
}

/// Stands for the place of whoever has everything.
pub(super) const CAUGHT_UP: u64 = u64::MAX;
