//! Requests that are refused for their credential: counted, and told once a minute by address.
//!
//! A client with a wrong key may come again every second for ever, as `autoplay-sdk` does. In: each
//! refusal, from the middleware around the routes of a listener. Out: `refused_total`, and at most
//! one line a minute for an address.
//!
//! May use: `metrics`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::response::Response;
use tokio::time::Instant;
use tracing::warn;

use super::client_address::{AddressBlock, ClientAddress};
use crate::metrics::{Metrics, RefusalReason, RefusingListener};

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
        // A poisoned lock is safe to use: at worst a count is wrong.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let due = table.count(client.block(), Instant::now());
        drop(table);
        let (listener, reason) = (listener.as_str(), reason.as_str());
        match due {
            DueWarning::None => {}
            DueWarning::OfAddress(refused) => warn!(
                address = %client, listener, reason, refused,
                "requests of this address are refused; told once a minute, refused_total counts all"
            ),
            DueWarning::OfOthers(refused) => warn!(
                address = %client, listener, reason, refused,
                "requests of very many addresses are refused, of this one last; told once a \
                 minute, refused_total counts all"
            ),
        }
    }
}

/// What to log after a refusal: nothing, or a number of refusals since the line before.
#[derive(Debug, Eq, PartialEq)]
enum DueWarning {
    None,
    OfAddress(u64),
    OfOthers(u64),
}

/// Refusals that no line has told yet, by address block.
#[derive(Debug, Default)]
struct RefusalTable {
    by_block: HashMap<AddressBlock, UntoldRefusals>,
    /// For addresses that have no room in the table.
    others: Option<UntoldRefusals>,
    purged_at: Option<Instant>,
}

/// Refusals since a line was logged.
#[derive(Debug)]
struct UntoldRefusals {
    told_at: Instant,
    count: u64,
}

impl UntoldRefusals {
    /// Counts one more, and returns the number to log if a line is due.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let is_due = now.saturating_duration_since(self.told_at) >= WARNING_INTERVAL;
        is_due.then(|| {
            self.told_at = now;
            std::mem::take(&mut self.count)
        })
    }
}

impl RefusalTable {
    /// Counts one refusal of a block.
    fn count(&mut self, block: AddressBlock, now: Instant) -> DueWarning {
        if let Some(untold) = self.by_block.get_mut(&block) {
            return untold.count(now).map_or(DueWarning::None, DueWarning::OfAddress);
        }
        if self.by_block.len() >= MAX_TOLD_BLOCKS {
            self.purge(now);
        }
        if self.by_block.len() < MAX_TOLD_BLOCKS {
            self.by_block.insert(block, UntoldRefusals { told_at: now, count: 0 });
            return DueWarning::OfAddress(1);
        }
        match &mut self.others {
            Some(untold) => untold.count(now).map_or(DueWarning::None, DueWarning::OfOthers),
            None => {
                self.others = Some(UntoldRefusals { told_at: now, count: 0 });
                DueWarning::OfOthers(1)
            }
        }
    }

    /// Forgets blocks that have been told and silent for a minute.
    fn purge(&mut self, now: Instant) {
        // Once a second at most: each look walks the table, and every refusal of a new address
        // comes here while the table is full.
        let is_due = self
            .purged_at
            .is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if is_due {
            self.purged_at = Some(now);
            self.by_block.retain(|_, untold| {
                now.saturating_duration_since(untold.told_at) < WARNING_INTERVAL
            });
        }
    }
}

/// Time between two lines about one address.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Blocks that have a line of their own: about 100 KiB, and as many lines a minute at most.
const MAX_TOLD_BLOCKS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn block(number: u32) -> AddressBlock {
        ClientAddress::new(Ipv4Addr::from_bits(number).into()).block()
    }

    #[test]
    fn an_address_has_a_line_at_once_and_then_one_a_minute_with_what_came_between() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(table.count(block(1), at(0)), DueWarning::OfAddress(1));
        for second in 1..60 {
            assert_eq!(table.count(block(1), at(second)), DueWarning::None, "{second}");
        }
        assert_eq!(table.count(block(2), at(59)), DueWarning::OfAddress(1), "others are told");
        assert_eq!(table.count(block(1), at(60)), DueWarning::OfAddress(60));
        assert_eq!(table.count(block(1), at(119)), DueWarning::None);
        assert_eq!(table.count(block(1), at(500)), DueWarning::OfAddress(2));
    }

    #[test]
    fn very_many_addresses_share_a_line_and_leave_the_table_when_they_are_silent() {
        let (mut table, began) = (RefusalTable::default(), Instant::now());
        let most = u32::try_from(MAX_TOLD_BLOCKS).unwrap();
        for number in 0..most {
            assert_eq!(table.count(block(number), began), DueWarning::OfAddress(1));
        }
        assert_eq!(table.count(block(most), began), DueWarning::OfOthers(1));
        for number in 0..5 * most {
            let due = table.count(block(most + number), began + Duration::from_secs(59));
            assert_eq!(due, DueWarning::None);
        }
        assert_eq!(table.by_block.len(), MAX_TOLD_BLOCKS, "bounded whatever comes");
        let minute_later = began + Duration::from_secs(61);
        assert_eq!(table.count(block(9 * most), minute_later), DueWarning::OfAddress(1));
        assert_eq!(table.by_block.len(), 1);
    }
}
