//! Limits on subscribers, and the counters that they are compared with.
//!
//! May use: `config`.

use std::hash::Hash;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::config::ServerConfig;

/// Limits on further subscribers. `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdmissionLimits {
    pub(super) total: usize,
    pub(super) per_address: Option<usize>,
    pub(super) per_key: Option<usize>,
    pub(super) per_second: Option<u32>,
}

impl AdmissionLimits {
    /// Returns the limits of the configuration.
    pub(crate) fn new(server: &ServerConfig) -> Self {
        Self {
            total: server.max_subscribers,
            per_address: server.max_subscribers_per_ip,
            per_key: server.max_subscribers_per_key,
            per_second: server.max_connects_per_second,
        }
    }

    /// Returns a limit on the total, and no other.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { total: max, per_address: None, per_key: None, per_second: None }
    }
}

/// Connects within the current second.
#[derive(Debug)]
pub(super) struct ConnectWindow {
    pub(super) started_at: Instant,
    pub(super) connects: u32,
}

/// Counts one more under `key`, and returns false if there are `max` already.
///
/// The entry stays locked from the check to the increment, so requests that arrive together cannot
/// pass the limit together.
pub(super) fn try_increment<K: Eq + Hash>(
    counts: &DashMap<K, usize>,
    key: K,
    max: Option<usize>,
) -> bool {
    let mut count = counts.entry(key).or_default();
    let is_admitted = max.is_none_or(|max| *count < max);
    if is_admitted {
        *count += 1;
    }
    is_admitted
}

/// Counts one less under `key`, and removes the entry at 0, so that addresses do not pile up.
pub(super) fn decrement<K: Eq + Hash>(counts: &DashMap<K, usize>, key: &K) {
    if let Some(mut count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
    }
    // The guard above is released by now, and a new subscriber may have been counted meanwhile:
    // hence the second check, under the lock of the removal.
    counts.remove_if(key, |_, count| *count == 0);
}
