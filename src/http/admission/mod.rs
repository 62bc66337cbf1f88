//! Who is connected, and letting nobody in beyond the limits.
//!
//! In: requests that have passed every check. Out: a seat for each, given back when its holder leaves. Telling a subscriber
//! to leave is one mark and one wake-up.
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
    auth::{Access, Holder, Proof},
    config::{Permission, Server},
    event::ProductId,
    fanout::Listener,
    metrics::{Metrics, ShedReason, Transport},
    net::Cut,
};

/// Everybody who is connected.
#[derive(Debug)]
pub(crate) struct Subscribers {
    rules: RwLock<Rules>,
    taken: AtomicUsize,
    seats: DashMap<u64, Arc<Subscriber>>,
    next_seat: AtomicU64,
    by_address: DashMap<IpAddr, usize>,
    by_holder: DashMap<Holder, usize>,
    second: Mutex<Second>,
    emptied: Notify,
    metrics: Arc<Metrics>,
}

/// What may be changed while subscribers are connected.
#[derive(Clone, Debug)]
struct Rules {
    limits: Limits,
    access: Arc<Access>,
}

/// Beyond these nobody is let in; nobody who is there has to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    in_all: usize,
    per_address: Option<usize>,
    per_key: Option<usize>,
    per_second: Option<u32>,
}

/// How many came within the current second.
#[derive(Debug)]
struct Second {
    since: Instant,
    came: u32,
}

impl Subscribers {
    /// Nobody yet, within these limits. `access` judges whether they may stay.
    pub(crate) fn new(limits: Limits, access: Arc<Access>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            rules: RwLock::new(Rules { limits, access }),
            taken: AtomicUsize::new(0),
            seats: DashMap::new(),
            next_seat: AtomicU64::new(1),
            by_address: DashMap::new(),
            by_holder: DashMap::new(),
            second: Mutex::new(Second { since: Instant::now(), came: 0 }),
            emptied: Notify::new(),
            metrics,
        })
    }

    /// Gives a newcomer a seat.
    ///
    /// # Errors
    ///
    /// Which limit it would go past; nothing is taken then.
    pub(crate) fn admit(self: &Arc<Self>, newcomer: Newcomer) -> Result<Seat, ShedReason> {
        let seat = self.try_admit(newcomer);
        if let Err(reason) = &seat {
            self.metrics.shed(*reason).inc();
        }
        seat
    }

    fn try_admit(self: &Arc<Self>, newcomer: Newcomer) -> Result<Seat, ShedReason> {
        let Limits { in_all, per_address, per_key, per_second } = self.rules().limits;
        // Everybody is counted, also where there is no limit: there may be one soon.
        let taken =
            self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| (taken < in_all).then(|| taken + 1));
        let Ok(_) = taken else { return Err(ShedReason::MaxSubscribers) };
        if !take(&self.by_address, newcomer.address, per_address) {
            self.taken.fetch_sub(1, Ordering::SeqCst);
            return Err(ShedReason::PerIp);
        }
        if !take(&self.by_holder, newcomer.holder.clone(), per_key) {
            self.taken.fetch_sub(1, Ordering::SeqCst);
            give_back(&self.by_address, &newcomer.address);
            return Err(ShedReason::PerKey);
        }
        // Last: whoever is turned away for a reason of their own must not use up everybody's rate.
        if per_second.is_some_and(|most| !self.comes_within(most)) {
            self.give_back(&newcomer);
            return Err(ShedReason::ConnectRate);
        }
        let number = self.next_seat.fetch_add(1, Ordering::Relaxed);
        let subscriber = Arc::new(Subscriber {
            newcomer,
            since: SystemTime::now(),
            position: AtomicU64::new(NOTHING_TO_GET),
            leave: AtomicU8::new(Leave::NOT_YET),
        });
        self.seats.insert(number, Arc::clone(&subscriber));
        // Behind the insertion: whoever was let in by rules that have just gone is judged here, or by who has changed them.
        subscriber.judge(&self.access());
        Ok(Seat { number, subscriber, subscribers: Arc::clone(self) })
    }

    fn give_back(&self, newcomer: &Newcomer) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        give_back(&self.by_address, &newcomer.address);
        give_back(&self.by_holder, &newcomer.holder);
    }

    /// From now on these limits hold.
    pub(crate) fn limit(&self, limits: Limits) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).limits = limits;
    }

    /// From now on `access` judges who may stay; whoever may not is told to leave.
    pub(crate) fn judge_by(&self, access: &Arc<Access>) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).access = Arc::clone(access);
        self.seats.iter().for_each(|seat| seat.judge(access));
    }

    /// Tells those of one product to leave.
    pub(crate) fn dismiss_product(&self, product: &ProductId, leave: Leave) {
        let concerned = self.seats.iter().filter(|seat| seat.newcomer.product == *product);
        concerned.for_each(|seat| seat.dismiss(leave));
    }

    /// Who may stay.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.rules().access)
    }

    fn rules(&self) -> RwLockReadGuard<'_, Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more newcomer, if this second still has room for it.
    fn comes_within(&self, most: u32) -> bool {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.since.elapsed().as_secs() >= 1 {
            *second = Second { since: Instant::now(), came: 0 };
        }
        second.came += 1;
        second.came <= most
    }

    /// Tells everybody to leave, one by one, evenly over `window` and in random order, so that they do not arrive
    /// elsewhere in one storm. Returns as soon as nobody is left, or when the last has had a moment to go.
    pub(crate) async fn drain(&self, window: Duration) {
        let spread_out = async {
            let mut leaving: Vec<_> = self.seats.iter().map(|seat| Arc::clone(&seat)).collect();
            fastrand::shuffle(&mut leaving);
            let slot = window.div_f64(leaving.len().max(1) as f64);
            let mut begins = Instant::now();
            for subscriber in leaving {
                sleep_until(begins + slot.mul_f64(fastrand::f64())).await;
                subscriber.dismiss(Leave::Drain);
                begins += slot;
            }
            // Who was let in at the very moment of closing is not in the list.
            self.dismiss_all(Leave::Drain);
            sleep(LAST_MOMENT).await;
        };
        tokio::select! {
            () = spread_out => {}
            () = self.emptied() => {}
        }
    }

    /// Tells everybody to leave, at once.
    pub(crate) fn dismiss_all(&self, leave: Leave) {
        self.seats.iter().for_each(|seat| seat.dismiss(leave));
    }

    /// Tells one to leave; false when there is nobody of this number.
    pub(crate) fn dismiss(&self, number: u64, leave: Leave) -> bool {
        let subscriber = self.seats.get(&number).map(|seat| Arc::clone(&seat));
        subscriber.inspect(|subscriber| subscriber.dismiss(leave)).is_some()
    }

    /// Those with the lowest numbers behind `after`, `most` of them, in order.
    pub(crate) fn list(&self, after: u64, most: usize) -> Vec<(u64, Arc<Subscriber>)> {
        let mut numbers: Vec<u64> = self.seats.iter().map(|seat| *seat.key()).filter(|it| *it > after).collect();
        if numbers.len() > most {
            numbers.select_nth_unstable(most);
            numbers.truncate(most);
        }
        numbers.sort_unstable();
        // Who has left meanwhile is passed over.
        numbers.into_iter().filter_map(|number| Some((number, Arc::clone(&*self.seats.get(&number)?)))).collect()
    }

    /// Waits until nobody is connected.
    async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.seats.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// How many are connected, by product and transport.
    pub(crate) fn count(&self) -> BTreeMap<ProductId, BTreeMap<&'static str, usize>> {
        let mut count: BTreeMap<ProductId, BTreeMap<_, _>> = BTreeMap::new();
        for subscriber in &self.seats {
            let Newcomer { product, transport, .. } = &subscriber.newcomer;
            *count.entry(product.clone()).or_default().entry(transport.as_str()).or_default() += 1;
        }
        count
    }
}

impl Limits {
    /// Those of the configuration.
    pub(crate) fn new(server: &Server) -> Self {
        Self {
            in_all: server.max_subscribers,
            per_address: server.max_subscribers_per_ip,
            per_key: server.max_subscribers_per_key,
            per_second: server.max_connects_per_second,
        }
    }

    /// Room for `most`, and no other limit.
    pub(crate) fn at_most(most: usize) -> Self {
        Self { in_all: most, per_address: None, per_key: None, per_second: None }
    }
}

/// Counts one more under `key`, unless there are `most` already.
fn take<K: Eq + std::hash::Hash>(counts: &DashMap<K, usize>, key: K, most: Option<usize>) -> bool {
    let mut count = counts.entry(key).or_default();
    let has_room = most.is_none_or(|most| *count < most);
    if has_room {
        *count += 1;
    }
    has_room
}

/// Counts one less under `key`, and forgets it at nought.
fn give_back<K: Eq + std::hash::Hash>(counts: &DashMap<K, usize>, key: &K) {
    if let Some(mut count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
    }
    counts.remove_if(key, |_, count| *count == 0);
}

/// Who wants a seat.
#[derive(Debug)]
pub(crate) struct Newcomer {
    /// What it listens to.
    pub(crate) product: ProductId,
    /// How.
    pub(crate) transport: Transport,
    /// The name of its key.
    pub(crate) key: Arc<str>,
    /// Whom it is counted for.
    pub(crate) holder: Holder,
    /// What it was let in for.
    pub(crate) proof: Arc<Proof>,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// How it is woken.
    pub(crate) listener: Arc<Listener>,
    /// What ends it when it takes nothing. None over WebSocket, which hears that it is to leave at any time.
    pub(crate) cut: Option<Arc<Cut>>,
}

/// Somebody with a seat.
#[derive(Debug)]
pub(crate) struct Subscriber {
    newcomer: Newcomer,
    since: SystemTime,
    /// Place of the last entry that it has been given; [`NOTHING_TO_GET`] while it sleeps at the end.
    position: AtomicU64,
    leave: AtomicU8,
}

impl Subscriber {
    /// Who has the seat.
    pub(crate) fn newcomer(&self) -> &Newcomer {
        &self.newcomer
    }

    /// When it came.
    pub(crate) fn since(&self) -> SystemTime {
        self.since
    }

    /// Entries between where it stands and the log's newest. Those that its filter hides count only while it has something
    /// to get.
    pub(crate) fn behind(&self, newest: u64) -> u64 {
        let position = match self.position.load(Ordering::Relaxed) {
            // It was at the end when it fell asleep. A mark since then that it does not look at is one it cannot take.
            NOTHING_TO_GET => self.newcomer.listener.shown().map_or(newest, |place| place.saturating_sub(1)),
            position => position,
        };
        newest.saturating_sub(position)
    }

    /// Tells it to leave if it would not be let in any more.
    fn judge(&self, access: &Access) {
        let Newcomer { proof, product, .. } = &self.newcomer;
        if !access.still_grants(proof, product, Permission::Subscribe) {
            self.dismiss(Leave::Revoked);
        }
    }

    /// Tells it to leave. The first word counts, unless it may go on for a while after that and must not after this one.
    pub(crate) fn dismiss(&self, leave: Leave) {
        let _ = self.leave.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |told| {
            let is_urgent = Leave::ALL.into_iter().any(|known| known as u8 == told && known.is_urgent());
            (told == Leave::NOT_YET || (leave.is_urgent() && !is_urgent)).then_some(leave as u8)
        });
        self.newcomer.listener.wake();
        if let Some(cut) = self.newcomer.cut.as_ref().filter(|_| leave.is_urgent()) {
            cut.soon();
        }
    }
}

/// A subscriber's place among all; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    number: u64,
    subscriber: Arc<Subscriber>,
    subscribers: Arc<Subscribers>,
}

impl Seat {
    /// Tells its holder to leave.
    pub(crate) fn dismiss(&self, leave: Leave) {
        self.subscriber.dismiss(leave);
    }

    /// Notes the place of the last entry that its holder has been given. For operators to see, and cheap enough for every event.
    pub(crate) fn stands_at(&self, place: u64) {
        self.subscriber.position.store(place, Ordering::Relaxed);
    }

    /// Notes that there is nothing for its holder at this moment.
    pub(crate) fn has_nothing_to_get(&self) {
        self.subscriber.position.store(NOTHING_TO_GET, Ordering::Relaxed);
    }

    /// Why its holder has been told to leave, if it has.
    pub(crate) fn dismissed(&self) -> Option<Leave> {
        Leave::ALL.into_iter().find(|leave| *leave as u8 == self.subscriber.leave.load(Ordering::SeqCst))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.subscribers.give_back(&self.subscriber.newcomer);
        self.subscribers.seats.remove(&self.number);
        if self.subscribers.seats.is_empty() {
            self.subscribers.emptied.notify_waiters();
        }
    }
}

/// Why a subscriber is told to leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Leave {
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

impl Leave {
    const NOT_YET: u8 = 0;
    const ALL: [Self; 6] = [Self::Drain, Self::Rotated, Self::Expired, Self::Kicked, Self::Revoked, Self::Removed];

    /// Whether it must not get another event. Who is only to go elsewhere gets what there is first.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, Self::Expired | Self::Kicked) || self.is_at_once()
    }

    /// Whether it has to be gone within a second: not even what is in the log already is for it.
    pub(crate) fn is_at_once(self) -> bool {
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
const NOTHING_TO_GET: u64 = u64::MAX;

/// What a subscriber may take to send what it still has. Those who cannot are cut off with their connection.
const LAST_MOMENT: Duration = Duration::from_secs(2);
