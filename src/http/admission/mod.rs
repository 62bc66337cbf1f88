//! Admission of subscribers: the limits, and the list of the subscribers that are connected.
//!
//! In: requests that have passed every other check. Out: a permit each, returned when its holder is
//! dropped. To disconnect a subscriber takes one mark and one wake-up.
//!
//! May use: `auth`, `config`, `event`, `fanout`, `metrics`, `net`.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use dashmap::DashMap;
use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep, sleep_until},
};

use crate::{
    auth::{Access, CredentialHolder, CredentialProof},
    config::{Permission, ServerConfig},
    event::ProductId,
    fanout::SubscriberSignal,
    metrics::{Metrics, ShedReason, Transport},
    net::ForcedClose,
};

/// Everybody who is connected.
#[derive(Debug)]
pub(crate) struct Subscribers {
    rules: RwLock<AdmissionRules>,
    admitted: AtomicUsize,
    by_id: DashMap<u64, Arc<AdmittedSubscriber>>,
    next_id: AtomicU64,
    by_address: DashMap<IpAddr, usize>,
    by_holder: DashMap<CredentialHolder, usize>,
    connect_window: Mutex<ConnectWindow>,
    became_empty: Notify,
    metrics: Arc<Metrics>,
}

/// What may be changed while subscribers are connected.
#[derive(Clone, Debug)]
struct AdmissionRules {
    limits: AdmissionLimits,
    access: Arc<Access>,
}

/// Beyond these nobody is let in; nobody who is there has to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdmissionLimits {
    total: usize,
    per_address: Option<usize>,
    per_key: Option<usize>,
    per_second: Option<u32>,
}

/// How many came within the current second.
#[derive(Debug)]
struct ConnectWindow {
    started_at: Instant,
    connects: u32,
}

impl Subscribers {
    /// Nobody yet, within these limits. `access` judges whether they may stay.
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

    /// Gives a newcomer a seat.
    ///
    /// # Errors
    ///
    /// Which limit it would go past; nothing is taken then.
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
        // Everybody is counted, also where there is no limit: there may be one soon.
        let admitted = self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |current| {
            (current < total).then(|| current + 1)
        });
        let Ok(_) = admitted else { return Err(ShedReason::MaxSubscribers) };
        if !try_increment(&self.by_address, request.address, per_address) {
            self.admitted.fetch_sub(1, Ordering::SeqCst);
            return Err(ShedReason::PerIp);
        }
        if !try_increment(&self.by_holder, request.holder.clone(), per_key) {
            self.admitted.fetch_sub(1, Ordering::SeqCst);
            decrement(&self.by_address, &request.address);
            return Err(ShedReason::PerKey);
        }
        // Last: whoever is turned away for a reason of their own must not use up everybody's rate.
        if per_second.is_some_and(|most| !self.try_count_connect(most)) {
            self.release(&request);
            return Err(ShedReason::ConnectRate);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let subscriber = Arc::new(AdmittedSubscriber {
            request,
            connected_at: SystemTime::now(),
            position: AtomicU64::new(CAUGHT_UP),
            disconnect_reason: AtomicU8::new(DisconnectReason::NONE_YET),
        });
        self.by_id.insert(id, Arc::clone(&subscriber));
        // Behind the insertion: whoever was let in by rules that have just gone is judged here, or
        // by who has changed them.
        subscriber.disconnect_if_revoked(&self.access());
        Ok(AdmissionPermit { id, subscriber, subscribers: Arc::clone(self) })
    }

    fn release(&self, request: &AdmissionRequest) {
        self.admitted.fetch_sub(1, Ordering::SeqCst);
        decrement(&self.by_address, &request.address);
        decrement(&self.by_holder, &request.holder);
    }

    /// From now on these limits hold.
    pub(crate) fn set_limits(&self, limits: AdmissionLimits) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).limits = limits;
    }

    /// From now on `access` judges who may stay; whoever may not is told to leave.
    pub(crate) fn set_access(&self, access: &Arc<Access>) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).access = Arc::clone(access);
        self.by_id.iter().for_each(|subscriber| subscriber.disconnect_if_revoked(access));
    }

    /// Tells those of one product to leave.
    pub(crate) fn disconnect_product(&self, product: &ProductId, reason: DisconnectReason) {
        let subscribers =
            self.by_id.iter().filter(|subscriber| subscriber.request.product == *product);
        subscribers.for_each(|subscriber| subscriber.disconnect(reason));
    }

    /// Who may stay.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.rules().access)
    }

    fn rules(&self) -> RwLockReadGuard<'_, AdmissionRules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more newcomer, if this second still has room for it.
    fn try_count_connect(&self, max: u32) -> bool {
        let mut window = self.connect_window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.started_at.elapsed().as_secs() >= 1 {
            *window = ConnectWindow { started_at: Instant::now(), connects: 0 };
        }
        window.connects += 1;
        window.connects <= max
    }

    /// Tells everybody to leave, one by one, evenly over `window` and in random order, so that they
    /// do not arrive elsewhere in one storm. Returns as soon as nobody is left, or when the last
    /// has had a moment to go.
    pub(crate) async fn drain(&self, window: Duration) {
        let spread_out = async {
            let mut remaining: Vec<_> = self.by_id.iter().map(|seat| Arc::clone(&seat)).collect();
            fastrand::shuffle(&mut remaining);
            let slot = window.div_f64(remaining.len().max(1) as f64);
            let mut begins = Instant::now();
            for subscriber in remaining {
                sleep_until(begins + slot.mul_f64(fastrand::f64())).await;
                subscriber.disconnect(DisconnectReason::Drain);
                begins += slot;
            }
            // Who was let in at the very moment of closing is not in the list.
            self.disconnect_all(DisconnectReason::Drain);
            sleep(DRAIN_FLUSH_GRACE).await;
        };
        tokio::select! {
            () = spread_out => {}
            () = self.wait_until_empty() => {}
        }
    }

    /// Tells everybody to leave, at once.
    pub(crate) fn disconnect_all(&self, reason: DisconnectReason) {
        self.by_id.iter().for_each(|subscriber| subscriber.disconnect(reason));
    }

    /// Tells one to leave; false when there is nobody of this number.
    pub(crate) fn disconnect(&self, id: u64, reason: DisconnectReason) -> bool {
        let subscriber = self.by_id.get(&id).map(|seat| Arc::clone(&seat));
        subscriber.inspect(|subscriber| subscriber.disconnect(reason)).is_some()
    }

    /// Those with the lowest numbers behind `after`, `most` of them, in order.
    pub(crate) fn list(&self, after: u64, max: usize) -> Vec<(u64, Arc<AdmittedSubscriber>)> {
        let mut ids: Vec<u64> =
            self.by_id.iter().map(|seat| *seat.key()).filter(|it| *it > after).collect();
        if ids.len() > max {
            ids.select_nth_unstable(max);
            ids.truncate(max);
        }
        ids.sort_unstable();
        // Who has left meanwhile is passed over.
        ids.into_iter().filter_map(|id| Some((id, Arc::clone(&*self.by_id.get(&id)?)))).collect()
    }

    /// Waits until nobody is connected.
    async fn wait_until_empty(&self) {
        loop {
            let became_empty = self.became_empty.notified();
            if self.by_id.is_empty() {
                return;
            }
            became_empty.await;
        }
    }

    /// How many are connected, by product and transport.
    pub(crate) fn count(&self) -> BTreeMap<ProductId, BTreeMap<&'static str, usize>> {
        let mut count: BTreeMap<ProductId, BTreeMap<_, _>> = BTreeMap::new();
        for subscriber in &self.by_id {
            let AdmissionRequest { product, transport, .. } = &subscriber.request;
            *count.entry(product.clone()).or_default().entry(transport.as_str()).or_default() += 1;
        }
        count
    }
}

impl AdmissionLimits {
    /// Those of the configuration.
    pub(crate) fn new(server: &ServerConfig) -> Self {
        Self {
            total: server.max_subscribers,
            per_address: server.max_subscribers_per_ip,
            per_key: server.max_subscribers_per_key,
            per_second: server.max_connects_per_second,
        }
    }

    /// Room for `most`, and no other limit.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { total: max, per_address: None, per_key: None, per_second: None }
    }
}

/// Counts one more under `key`, unless there are `most` already.
fn try_increment<K: Eq + std::hash::Hash>(
    counts: &DashMap<K, usize>,
    key: K,
    max: Option<usize>,
) -> bool {
    let mut count = counts.entry(key).or_default();
    let is_admitted = max.is_none_or(|most| *count < most);
    if is_admitted {
        *count += 1;
    }
    is_admitted
}

/// Counts one less under `key`, and forgets it at nought.
fn decrement<K: Eq + std::hash::Hash>(counts: &DashMap<K, usize>, key: &K) {
    if let Some(mut count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
    }
    counts.remove_if(key, |_, count| *count == 0);
}

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
    request: AdmissionRequest,
    connected_at: SystemTime,
    /// Place of the last entry that it has been given; [`CAUGHT_UP`] while it sleeps at the
    /// end.
    position: AtomicU64,
    disconnect_reason: AtomicU8,
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
    fn disconnect_if_revoked(&self, access: &Access) {
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

/// A subscriber's place among all; given back when dropped.
#[derive(Debug)]
pub(crate) struct AdmissionPermit {
    id: u64,
    subscriber: Arc<AdmittedSubscriber>,
    subscribers: Arc<Subscribers>,
}

impl AdmissionPermit {
    /// Tells its holder to leave.
    pub(crate) fn disconnect(&self, reason: DisconnectReason) {
        self.subscriber.disconnect(reason);
    }

    /// Notes the place of the last entry that its holder has been given. For operators to see, and
    /// cheap enough for every event.
    pub(crate) fn record_position(&self, position: u64) {
        self.subscriber.position.store(position, Ordering::Relaxed);
    }

    /// Notes that there is nothing for its holder at this moment.
    pub(crate) fn record_caught_up(&self) {
        self.subscriber.position.store(CAUGHT_UP, Ordering::Relaxed);
    }

    /// Why its holder has been told to leave, if it has.
    pub(crate) fn disconnect_reason(&self) -> Option<DisconnectReason> {
        DisconnectReason::ALL.into_iter().find(|reason| {
            *reason as u8 == self.subscriber.disconnect_reason.load(Ordering::SeqCst)
        })
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        self.subscribers.release(&self.subscriber.request);
        self.subscribers.by_id.remove(&self.id);
        if self.subscribers.by_id.is_empty() {
            self.subscribers.became_empty.notify_waiters();
        }
    }
}

/// Why a subscriber is told to leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum DisconnectReason {
    /// The relay is leaving.
    Drain = 1,
    /// It has been connected for `server.max_connection_age`.
    Rotated = 2,
    /// Its token expires.
    Expired = 3,
    /// An operator has ended it.
    Kicked = 4,
    /// Its key counts no more.
    Revoked = 5,
    /// Its product is served no more.
    Removed = 6,
}

impl DisconnectReason {
    const NONE_YET: u8 = 0;
    const ALL: [Self; 6] =
        [Self::Drain, Self::Rotated, Self::Expired, Self::Kicked, Self::Revoked, Self::Removed];

    /// Whether it must not get another event. Who is only to go elsewhere gets what there is first.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Self::Expired | Self::Kicked) || self.is_immediate()
    }

    /// Whether it has to be gone within a second: not even what is in the log already is for it.
    pub(crate) fn is_immediate(self) -> bool {
        matches!(self, Self::Revoked | Self::Removed)
    }

    /// As it stands in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Rotated => "rotated",
            Self::Expired => "expired",
            Self::Kicked => "kicked",
            Self::Revoked => "revoked",
            Self::Removed => "removed",
        }
    }
}

/// Stands for the place of whoever has everything.
const CAUGHT_UP: u64 = u64::MAX;

/// What a subscriber may take to send what it still has. Those who cannot are cut off with their
/// connection.
const DRAIN_FLUSH_GRACE: Duration = Duration::from_secs(2);
