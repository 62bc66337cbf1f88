//! One admitted subscriber: its request, its position, and the reason for its disconnect.
//!
//! May use: `auth`, `client_address`, `config`, `event`, `fanout`, `metrics`, `net`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::disconnect_reason::DisconnectReason;
use crate::{
    auth::{Access, CredentialHolder, CredentialProof},
    client_address::ClientAddress,
    config::Permission,
    event::ProductId,
    fanout::SubscriberSignal,
    metrics::Transport,
    net::ForcedClose,
};

/// Facts about a subscriber that asks for admission.
#[derive(Debug)]
pub(crate) struct AdmissionRequest {
    /// Product whose events it reads.
    pub(crate) product: ProductId,
    /// Transport over which it reads them.
    pub(crate) transport: Transport,
    /// Name of its key, as the admin API shows it.
    pub(crate) key: Arc<str>,
    /// Holder of the credential, under which the limit per key counts it.
    pub(crate) holder: CredentialHolder,
    /// Proof with which it was authorized; judged again when keys change.
    pub(crate) proof: Arc<CredentialProof>,
    /// Client address, under which the limit per address counts it.
    pub(crate) address: ClientAddress,
    /// Signal that wakes its task.
    pub(crate) listener: SubscriberSignal,
    /// Deadline that cuts it off while it takes nothing. `None` on a shard, which polls a
    /// full socket's subscriber at a disconnect.
    pub(crate) forced_close: Option<Arc<ForcedClose>>,
}

/// Subscriber that holds a permit, as the list and the admin API see it.
#[derive(Debug)]
pub(crate) struct AdmittedSubscriber {
    pub(super) request: AdmissionRequest,
    pub(super) connected_at: SystemTime,
    /// Position of the last entry that it has been given; [`CAUGHT_UP`] while it waits at the end
    /// of its log.
    pub(super) position: AtomicU64,
    /// A [`DisconnectReason`] as `u8`, or `NONE_YET`.
    pub(super) disconnect_reason: AtomicU8,
}

impl AdmittedSubscriber {
    /// Returns the request that was admitted.
    pub(crate) fn request(&self) -> &AdmissionRequest {
        &self.request
    }

    /// Returns the time of admission.
    pub(crate) fn connected_at(&self) -> SystemTime {
        self.connected_at
    }

    /// Returns the number of entries between its position and `newest`, the newest of its log.
    ///
    /// Entries outside its scope count only while it has something to read: a caught-up subscriber
    /// is 0 behind.
    pub(crate) fn entries_behind(&self, newest: u64) -> u64 {
        // Relaxed: a number for operators, which may be one event old.
        let position = match self.position.load(Ordering::Relaxed) {
            // It had everything when its task went to sleep. If the fan-out has set a pending
            // position since then and the task has not taken it, the task is blocked: it lags from
            // that entry on.
            CAUGHT_UP => self
                .request
                .listener
                .pending_position()
                .map_or(newest, |pending| pending.saturating_sub(1)),
            position => position,
        };
        newest.saturating_sub(position)
    }

    /// Disconnects it if `access` would no longer admit it.
    pub(super) fn disconnect_if_revoked(&self, access: &Access) {
        let AdmissionRequest { proof, product, .. } = &self.request;
        if !access.still_grants(proof, product, Permission::Subscribe) {
            self.disconnect(DisconnectReason::Revoked);
        }
    }

    /// Marks it to disconnect for `reason`, and wakes it.
    ///
    /// The first reason counts, with one exception: a reason that allows no further event replaces
    /// one that still does.
    pub(crate) fn disconnect(&self, reason: DisconnectReason) {
        // SeqCst: the mark must be stored before the wake-up, and the task that is woken must find
        // it. The result does not matter: an earlier reason stays, and the wake-up is repeated.
        let _ =
            self.disconnect_reason.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |current| {
                let is_urgent = DisconnectReason::ALL
                    .into_iter()
                    .any(|known| known as u8 == current && known.is_urgent());
                (current == DisconnectReason::NONE_YET || (reason.is_urgent() && !is_urgent))
                    .then_some(reason as u8)
            });
        self.request.listener.wake();
        // A blocked subscriber's body is not polled and cannot see the mark. Only an urgent reason
        // cuts it off early; for the others `write_timeout` is soon enough.
        if let Some(forced_close) =
            self.request.forced_close.as_ref().filter(|_| reason.is_urgent())
        {
            forced_close.schedule_soon();
        }
    }
}

/// Stands for the position of a subscriber that has everything. No log reaches it.
pub(super) const CAUGHT_UP: u64 = u64::MAX;
