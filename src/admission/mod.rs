//! Admission of subscribers: the limits, and the list of the subscribers that are connected.
//!
//! In: requests that have passed every other check. Out: a permit each, returned when its holder is
//! dropped. To disconnect a subscriber takes one mark and one wake-up.
//!
//! ```text
//! request ─► total ─► per address ─► per key ─► per second ─► listed ─► judged by current keys
//!              └─ past a limit: shed, and each counter taken so far is returned
//! ```
//!
//! Locks: no two locks of this module are held together, except inside `DashMap`. A disconnect
//! wakes its subscriber under a read guard of the list; the waker takes the mailbox lock of a shard
//! at most, and no code drops a permit under that lock.
//!
//! May use: `auth`, `client_address`, `event`, `metrics`.

mod disconnect_reason;
mod limits;
mod subscriber;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep, sleep_until},
};

pub(crate) use self::{
    disconnect_reason::DisconnectReason,
    limits::AdmissionLimits,
    subscriber::{AdmissionRequest, AdmittedSubscriber},
};
use self::{
    limits::{ConnectWindow, decrement, try_increment},
    subscriber::CAUGHT_UP,
};
use crate::{
    auth::{Access, CredentialHolder},
    client_address::AddressBlock,
    event::ProductId,
    metrics::{Metrics, ShedReason},
};

/// Subscribers that are connected, with the limits on further ones.
#[derive(Debug)]
pub(crate) struct Subscribers {
    rules: RwLock<AdmissionRules>,
    admitted: AtomicUsize,
    by_id: DashMap<u64, Arc<AdmittedSubscriber>>,
    next_id: AtomicU64,
    by_address: DashMap<AddressBlock, usize>,
    by_holder: DashMap<CredentialHolder, usize>,
    connect_window: Mutex<ConnectWindow>,
    became_empty: Notify,
    metrics: Arc<Metrics>,
}

/// Limits and keys in force. A reload replaces them while subscribers are connected.
#[derive(Clone, Debug)]
struct AdmissionRules {
    limits: AdmissionLimits,
    access: Arc<Access>,
}

impl Subscribers {
    /// Creates an empty list with these limits. `access` decides whether an admitted subscriber may
    /// stay.
    pub(crate) fn new(
        limits: AdmissionLimits,
        access: Arc<Access>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules: RwLock::new(AdmissionRules { limits, access }),
            admitted: AtomicUsize::new(0),
            by_id: DashMap::new(),
            next_id: AtomicU64::new(1),
            by_address: DashMap::new(),
            by_holder: DashMap::new(),
            connect_window: Mutex::new(ConnectWindow { started_at: Instant::now(), connects: 0 }),
            became_empty: Notify::new(),
            metrics,
        })
    }

    /// Admits a subscriber, or counts it as shed.
    ///
    /// # Errors
    ///
    /// The limit that the subscriber would exceed; no counter is taken then.
    pub(crate) fn admit(
        self: &Arc<Self>,
        request: AdmissionRequest,
    ) -> Result<AdmissionPermit, ShedReason> {
        let permit = self.try_admit(request);
        if let Err(reason) = &permit {
            self.metrics.shed(*reason).inc();
        }
        permit
    }

    fn try_admit(
        self: &Arc<Self>,
        request: AdmissionRequest,
    ) -> Result<AdmissionPermit, ShedReason> {
        let AdmissionLimits { total, per_address, per_key, per_second } = self.rules().limits;
        // Every subscriber is counted under every limit, also under one that is not set: a reload
        // may set it, and subscribers from before count then.
        //
        // SeqCst, for the counters of this file as a whole: a stream is opened far less often than
        // an event is sent, so a weaker order would save nothing that can be measured. The check
        // and the increment must be one atomic step, or several requests would pass the limit
        // together.
        let admitted = self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |current| {
            (current < total).then(|| current + 1)
        });
        let Ok(_) = admitted else { return Err(ShedReason::MaxSubscribers) };
        if !try_increment(&self.by_address, request.address.block(), per_address) {
            self.admitted.fetch_sub(1, Ordering::SeqCst);
            return Err(ShedReason::PerIp);
        }
        if !try_increment(&self.by_holder, request.holder.clone(), per_key) {
            self.admitted.fetch_sub(1, Ordering::SeqCst);
            decrement(&self.by_address, &request.address.block());
            return Err(ShedReason::PerKey);
        }
        // Last: a request that another limit refuses must not use up the connects per second that
        // all clients share.
        if per_second.is_some_and(|max| !self.try_count_connect(max)) {
            self.release(&request);
            return Err(ShedReason::ConnectRate);
        }
        // Relaxed: only uniqueness is needed, and a read-modify-write on one atomic gives it.
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let subscriber = Arc::new(AdmittedSubscriber {
            request,
            connected_at: SystemTime::now(),
            position: AtomicU64::new(CAUGHT_UP),
            disconnect_reason: AtomicU8::new(DisconnectReason::NONE_YET),
        });
        self.by_id.insert(id, Arc::clone(&subscriber));
        // After the insertion. `set_access` first replaces the rules and then visits the list:
        // either it finds this subscriber there, or the rules read here are already the new ones.
        // So a subscriber that was authorized by rules that have just gone is judged at least once
        // by their successors.
        subscriber.disconnect_if_revoked(&self.access());
        Ok(AdmissionPermit { id, subscriber, subscribers: Arc::clone(self) })
    }

    fn release(&self, request: &AdmissionRequest) {
        self.admitted.fetch_sub(1, Ordering::SeqCst);
        decrement(&self.by_address, &request.address.block());
        decrement(&self.by_holder, &request.holder);
    }

    /// Replaces the limits. They refuse further subscribers only: a lower limit disconnects no
    /// subscriber.
    pub(crate) fn set_limits(&self, limits: AdmissionLimits) {
        self.rules.write().limits = limits;
    }

    /// Replaces the keys, and disconnects each subscriber whose proof the new ones no longer
    /// accept.
    ///
    /// The rules are replaced before the list is visited; see [`Subscribers::try_admit`].
    pub(crate) fn set_access(&self, access: &Arc<Access>) {
        self.rules.write().access = Arc::clone(access);
        self.by_id.iter().for_each(|subscriber| subscriber.disconnect_if_revoked(access));
    }

    /// Disconnects the subscribers of one product.
    pub(crate) fn disconnect_product(&self, product: &ProductId, reason: DisconnectReason) {
        let subscribers =
            self.by_id.iter().filter(|subscriber| subscriber.request.product == *product);
        subscribers.for_each(|subscriber| subscriber.disconnect(reason));
    }

    /// Returns the keys in force.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.rules().access)
    }

    fn rules(&self) -> RwLockReadGuard<'_, AdmissionRules> {
        self.rules.read()
    }

    /// Counts one more connect, and returns false if the current second has had `max` already.
    ///
    /// The window is fixed, not sliding, so at most twice `max` subscribers are admitted around its
    /// end. Refused connects count as well.
    fn try_count_connect(&self, max: u32) -> bool {
        let mut window = self.connect_window.lock();
        if window.started_at.elapsed().as_secs() >= 1 {
            *window = ConnectWindow { started_at: Instant::now(), connects: 0 };
        }
        window.connects += 1;
        window.connects <= max
    }

    /// Disconnects all subscribers one by one, evenly over `window` and in random order, so that
    /// they do not reconnect to other replicas in one burst. Returns once no subscriber is left, or
    /// [`DRAIN_FLUSH_GRACE`] after the last was marked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the subscribers marked so far disconnected, and the others
    /// connected.
    pub(crate) async fn drain(&self, window: Duration) {
        let spread_out = async {
            // Cloned, so that no guard of the list is held across the waits below.
            let mut remaining: Vec<_> = self.by_id.iter().map(|entry| Arc::clone(&entry)).collect();
            fastrand::shuffle(&mut remaining);
            // `max(1)`: an empty list must not divide by zero. A subscriber's moment is random
            // within its slot, so that replicas that drain together do not keep the same rhythm.
            let slot = window.div_f64(remaining.len().max(1) as f64);
            let mut begins = Instant::now();
            for subscriber in remaining {
                sleep_until(begins + slot.mul_f64(fastrand::f64())).await;
                subscriber.disconnect(DisconnectReason::Drain);
                begins += slot;
            }
            // A request that passed the check for draining just before it was set may have been
            // admitted after the list was taken.
            self.disconnect_all(DisconnectReason::Drain);
            sleep(DRAIN_FLUSH_GRACE).await;
        };
        tokio::select! {
            () = spread_out => {}
            () = self.wait_until_empty() => {}
        }
    }

    /// Disconnects all subscribers at once.
    pub(crate) fn disconnect_all(&self, reason: DisconnectReason) {
        self.by_id.iter().for_each(|subscriber| subscriber.disconnect(reason));
    }

    /// Disconnects one subscriber. Returns false if no subscriber has this id.
    pub(crate) fn disconnect(&self, id: u64, reason: DisconnectReason) -> bool {
        let subscriber = self.by_id.get(&id).map(|entry| Arc::clone(&entry));
        subscriber.inspect(|subscriber| subscriber.disconnect(reason)).is_some()
    }

    /// Returns the `max` subscribers with the lowest ids after `after`, in order.
    ///
    /// Ids only grow, so a caller that continues after the last id of a page sees each subscriber
    /// once.
    pub(crate) fn list(&self, after: u64, max: usize) -> Vec<(u64, Arc<AdmittedSubscriber>)> {
        let mut ids: Vec<u64> =
            self.by_id.iter().map(|entry| *entry.key()).filter(|id| *id > after).collect();
        // Selection before sorting: the list may have tens of thousands of ids, of which a page
        // needs a thousand at most.
        if ids.len() > max {
            ids.select_nth_unstable(max);
            ids.truncate(max);
        }
        ids.sort_unstable();
        // Subscribers that have left since the ids were collected are skipped.
        ids.into_iter().filter_map(|id| Some((id, Arc::clone(&*self.by_id.get(&id)?)))).collect()
    }

    async fn wait_until_empty(&self) {
        loop {
            // Created before the check: `notify_waiters` reaches every `Notified` that exists at
            // its call, polled or not, so a permit dropped between the check and the await is not
            // missed.
            let became_empty = self.became_empty.notified();
            if self.by_id.is_empty() {
                return;
            }
            became_empty.await;
        }
    }

    /// Returns the number of subscribers by product and transport.
    pub(crate) fn count(&self) -> BTreeMap<ProductId, BTreeMap<&'static str, usize>> {
        let mut count: BTreeMap<ProductId, BTreeMap<_, _>> = BTreeMap::new();
        for subscriber in &self.by_id {
            let AdmissionRequest { product, transport, .. } = &subscriber.request;
            *count.entry(product.clone()).or_default().entry(transport.as_str()).or_default() += 1;
        }
        count
    }
}

/// Permit of one admitted subscriber. Dropping it returns the subscriber's share of all limits and
/// removes the subscriber from the list.
#[derive(Debug)]
pub(crate) struct AdmissionPermit {
    id: u64,
    subscriber: Arc<AdmittedSubscriber>,
    subscribers: Arc<Subscribers>,
}

impl AdmissionPermit {
    /// Marks the holder to disconnect, and wakes it.
    pub(crate) fn disconnect(&self, reason: DisconnectReason) {
        self.subscriber.disconnect(reason);
    }

    /// Records the position of the last entry that the holder has been given.
    ///
    /// Only the admin API reads it. Relaxed: it orders nothing, and a plain store is cheap enough
    /// for every event.
    pub(crate) fn record_position(&self, position: u64) {
        self.subscriber.position.store(position, Ordering::Relaxed);
    }

    /// Records that the holder has every entry that its scope admits.
    pub(crate) fn record_caught_up(&self) {
        self.subscriber.position.store(CAUGHT_UP, Ordering::Relaxed);
    }

    /// Returns the reason for which the holder is to disconnect, if it is.
    pub(crate) fn disconnect_reason(&self) -> Option<DisconnectReason> {
        DisconnectReason::ALL.into_iter().find(|reason| {
            *reason as u8 == self.subscriber.disconnect_reason.load(Ordering::SeqCst)
        })
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        self.subscribers.release(&self.subscriber.request);
        // Before the check below: of several permits dropped at the same time, the last to look
        // finds the list empty and notifies.
        self.subscribers.by_id.remove(&self.id);
        if self.subscribers.by_id.is_empty() {
            self.subscribers.became_empty.notify_waiters();
        }
    }
}

/// Time for the last subscribers of a drain to take what they are still owed: an idle socket needs
/// milliseconds. A subscriber that needs longer is cut off when its connection is closed.
const DRAIN_FLUSH_GRACE: Duration = Duration::from_secs(2);
