//! Requests that are refused for their credential: counted, and logged once a minute by address.
//!
//! A client with a wrong key may come again every second for ever, as `autoplay-sdk` does. In: each
//! refusal, from the middleware around the routes of a listener. Out: `refused_total`, and at most
//! one line a minute for an address. A task of its own logs what came after the last line, for a
//! client that does not come again.
//!
//! May use: `client_address`, `metrics`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::response::Response;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::client_address::{AddressBlock, ClientAddress};
use crate::metrics::{
    Metrics,
    RefusalReason::{self, BadCredential, NoCredential, NotAllowed},
    RefusingListener::{self, Admin, Public},
};

/// Refusals of one process, on all listeners and under every configuration.
#[derive(Debug)]
pub(crate) struct Refusals {
    metrics: Arc<Metrics>,
    table: Mutex<RefusalTable>,
}

impl Refusals {
    /// Creates an empty table; refusals are counted in `metrics`.
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { metrics: Arc::clone(metrics), table: Mutex::default() })
    }

    /// Records an answer if it is a refusal (see `Problem`).
    pub(in crate::http) fn record(
        &self,
        listener: RefusingListener,
        client: Option<ClientAddress>,
        response: &Response,
    ) {
        let (Some(client), Some(&reason)) = (client, response.extensions().get::<RefusalReason>())
        else {
            return;
        };
        self.metrics.refused(listener, reason).inc();
        let due = self.table().count(client, (listener, reason), Instant::now());
        due.iter().for_each(DueWarning::log);
    }

    /// Logs the refusals whose minute has passed without another one, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL)).await.is_some() {
            let due = self.table().sweep(Instant::now());
            due.iter().for_each(DueWarning::log);
        }
    }

    fn table(&self) -> MutexGuard<'_, RefusalTable> {
        self.table.lock()
    }
}

/// A line that is to be logged: the refusals of an address since the line before.
#[derive(Debug, Eq, PartialEq)]
struct DueWarning {
    /// The address that was refused last.
    client: ClientAddress,
    /// Whether the line is about all addresses that have no room in the table.
    is_of_others: bool,
    counts: RefusalCounts,
}

impl DueWarning {
    fn log(&self) {
        let Some(((listener, reason), refused)) = self.counts.most_frequent() else { return };
        let most_frequent = (listener, reason);
        // A field without a value is left out of the line.
        let other = |listener, reason| {
            let key = (listener, reason);
            Some(self.counts.get(key)).filter(|&count| count > 0 && key != most_frequent)
        };
        let about = match self.is_of_others {
            false => "requests of this address are refused",
            true => "requests of very many addresses are refused, of this one last",
        };
        warn!(
            address = %self.client,
            listener = listener.as_str(),
            reason = reason.as_str(),
            refused,
            public_no_credential = other(Public, NoCredential),
            public_bad_credential = other(Public, BadCredential),
            public_not_allowed = other(Public, NotAllowed),
            admin_no_credential = other(Admin, NoCredential),
            admin_bad_credential = other(Admin, BadCredential),
            admin_not_allowed = other(Admin, NotAllowed),
            "{about}; logged once a minute, refused_total counts all"
        );
    }
}

/// Numbers of refusals, by listener and reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct RefusalCounts([u64; REFUSAL_KEYS.len()]);

/// What refusals are counted by.
type RefusalKey = (RefusingListener, RefusalReason);

/// All keys, in the order of [`RefusalCounts`].
const REFUSAL_KEYS: [RefusalKey; 6] = [
    (Public, NoCredential),
    (Public, BadCredential),
    (Public, NotAllowed),
    (Admin, NoCredential),
    (Admin, BadCredential),
    (Admin, NotAllowed),
];

impl RefusalCounts {
    fn add(&mut self, key: RefusalKey) {
        for (count, counted) in self.0.iter_mut().zip(REFUSAL_KEYS) {
            *count += u64::from(counted == key);
        }
    }

    fn get(&self, key: RefusalKey) -> u64 {
        let mut counts = self.0.iter().zip(REFUSAL_KEYS);
        counts.find(|(_, counted)| *counted == key).map_or(0, |(count, _)| *count)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&count| count == 0)
    }

    /// Returns the largest count with its key, or `None` if there is no refusal.
    fn most_frequent(&self) -> Option<(RefusalKey, u64)> {
        let counts = REFUSAL_KEYS.into_iter().zip(self.0);
        counts.max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0)
    }
}

/// Refusals that are in no line yet, by address block.
#[derive(Debug, Default)]
struct RefusalTable {
    by_block: HashMap<AddressBlock, UnloggedRefusals>,
    /// For addresses that have no room in the table.
    others: Option<UnloggedRefusals>,
    purged_at: Option<Instant>,
}

/// Refusals since a line was logged.
#[derive(Debug)]
struct UnloggedRefusals {
    /// `None` until the first line, which is due at once.
    logged_at: Option<Instant>,
    /// The address that was refused last.
    last: ClientAddress,
    counts: RefusalCounts,
}

impl UnloggedRefusals {
    fn new(client: ClientAddress) -> Self {
        Self { logged_at: None, last: client, counts: RefusalCounts::default() }
    }

    /// Counts one more, and returns the counts to log if a line is due.
    fn count(
        &mut self,
        client: ClientAddress,
        key: RefusalKey,
        now: Instant,
    ) -> Option<RefusalCounts> {
        self.last = client;
        self.counts.add(key);
        self.take_due(now)
    }

    /// Returns the counts to log if there are any and a line is due.
    fn take_due(&mut self, now: Instant) -> Option<RefusalCounts> {
        if self.counts.is_empty() || self.is_within_interval(now) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.counts))
    }

    /// Returns whether the line before is less than a minute old.
    fn is_within_interval(&self, now: Instant) -> bool {
        self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < WARNING_INTERVAL)
    }
}

impl RefusalTable {
    /// Counts one refusal, and returns the line to log if one is due.
    fn count(
        &mut self,
        client: ClientAddress,
        key: RefusalKey,
        now: Instant,
    ) -> Option<DueWarning> {
        let block = client.block();
        let is_known = self.by_block.contains_key(&block);
        if !is_known && self.by_block.len() >= MAX_TRACKED_BLOCKS {
            self.purge(now);
        }
        let is_of_others = !is_known && self.by_block.len() >= MAX_TRACKED_BLOCKS;
        let unlogged = match is_of_others {
            false => self.by_block.entry(block).or_insert_with(|| UnloggedRefusals::new(client)),
            true => self.others.get_or_insert_with(|| UnloggedRefusals::new(client)),
        };
        let counts = unlogged.count(client, key, now)?;
        Some(DueWarning { client, is_of_others, counts })
    }

    /// Returns the lines that are due although no refusal came, and forgets blocks that have been
    /// silent.
    fn sweep(&mut self, now: Instant) -> Vec<DueWarning> {
        let blocks = self.by_block.values_mut().map(|unlogged| (unlogged, false));
        let others = self.others.iter_mut().map(|unlogged| (unlogged, true));
        let due = blocks.chain(others).filter_map(|(unlogged, is_of_others)| {
            let counts = unlogged.take_due(now)?;
            Some(DueWarning { client: unlogged.last, is_of_others, counts })
        });
        let due = due.collect();
        self.purge(now);
        due
    }

    /// Forgets blocks that have been logged and silent for a minute.
    fn purge(&mut self, now: Instant) {
        // Once a second at most: each look walks the table, and every refusal of a new address
        // comes here while the table is full.
        let is_due = self
            .purged_at
            .is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if is_due {
            self.purged_at = Some(now);
            // A block with counts waits for the sweep, which logs them.
            self.by_block.retain(|_, unlogged| {
                !unlogged.counts.is_empty() || unlogged.is_within_interval(now)
            });
        }
    }
}

/// Time between two lines about one address.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two looks for lines that are due: a line comes later than its minute by as much.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Blocks that have a line of their own: about 150 KiB, and as many lines a minute at most.
const MAX_TRACKED_BLOCKS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: u32) -> ClientAddress {
        ClientAddress::new(Ipv4Addr::from_bits(number).into())
    }

    const WRONG: RefusalKey = (Public, BadCredential);

    /// Counts a refusal for a wrong key. Returns the number in the line, and whether the line is
    /// about others.
    fn count(table: &mut RefusalTable, number: u32, now: Instant) -> Option<(u64, bool)> {
        let due = table.count(client(number), WRONG, now)?;
        assert_eq!(due.client, client(number));
        Some((due.counts.get(WRONG), due.is_of_others))
    }

    #[test]
    fn an_address_has_a_line_at_once_and_then_one_a_minute_with_what_came_between() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(count(&mut table, 1, at(0)), Some((1, false)));
        for second in 1..60 {
            assert_eq!(count(&mut table, 1, at(second)), None, "{second}");
        }
        assert_eq!(count(&mut table, 2, at(59)), Some((1, false)), "others are logged");
        assert_eq!(count(&mut table, 1, at(60)), Some((60, false)));
        assert_eq!(count(&mut table, 1, at(119)), None);
        assert_eq!(count(&mut table, 1, at(500)), Some((2, false)));
    }

    #[test]
    fn each_reason_has_its_own_count_and_the_most_frequent_names_the_line() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        table.count(client(1), (Public, NoCredential), began);
        for _ in 0..3 {
            table.count(client(1), WRONG, began);
        }
        table.count(client(1), (Admin, BadCredential), began);
        let later = began + WARNING_INTERVAL;
        let counts = table.count(client(1), (Public, NotAllowed), later).unwrap().counts;
        assert_eq!(counts.most_frequent(), Some((WRONG, 3)));
        let counts = REFUSAL_KEYS.map(|key| counts.get(key));
        assert_eq!(counts, [0, 3, 1, 0, 1, 0], "the first refusal has had its line");
    }

    #[test]
    fn a_burst_is_logged_a_minute_later_although_no_further_refusal_comes() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        for _ in 0..20 {
            count(&mut table, 1, began);
        }
        assert_eq!(table.sweep(began + WARNING_INTERVAL - Duration::from_secs(1)), []);
        let due = table.sweep(began + WARNING_INTERVAL);
        let [DueWarning { client: address, is_of_others: false, counts }] = due[..] else {
            panic!("{due:?}")
        };
        assert_eq!((address, counts.most_frequent()), (client(1), Some((WRONG, 19))));
        assert_eq!(table.sweep(began + 2 * WARNING_INTERVAL), [], "once");
        assert!(table.by_block.is_empty(), "and then the address is forgotten");
    }

    #[test]
    fn very_many_addresses_share_a_line_and_leave_the_table_when_they_are_silent() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        let most = u32::try_from(MAX_TRACKED_BLOCKS).unwrap();
        for number in 0..most {
            assert_eq!(count(&mut table, number, began), Some((1, false)));
        }
        assert_eq!(count(&mut table, most, began), Some((1, true)));
        for number in 0..5 * most {
            let due = count(&mut table, most + number, began + Duration::from_secs(59));
            assert_eq!(due, None);
        }
        assert_eq!(table.by_block.len(), MAX_TRACKED_BLOCKS, "bounded whatever comes");
        let minute_later = began + Duration::from_secs(61);
        assert_eq!(count(&mut table, 9 * most, minute_later), Some((1, false)));
        assert_eq!(table.by_block.len(), 1);
    }
}
