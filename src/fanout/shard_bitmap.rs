//! Shards that have subscribers of a session, of a kind or of everything: one bit each.
//!
//! Coarser than the shard's own index: a shard that has one subscriber of a session gets all events
//! of that session, whichever kinds it asked for.
//!
//! May use: `event`.

use std::collections::HashMap;

use super::index::ScopeIndex;
use crate::event::{Event, Kind, NarrowestLimit, Scope, SessionId};

/// Bits of the shards, by session, by kind, and for everything. Read and written under the
/// registry's lock.
#[derive(Debug, Default)]
pub(super) struct ShardBitmap {
    sessions: HashMap<SessionId, u64>,
    kinds: HashMap<Kind, u64>,
    everything: u64,
}

impl ShardBitmap {
    /// Sets the shard's bit in the buckets of `scope`.
    pub(super) fn add(&mut self, scope: &Scope, shard: usize) {
        let bit = shard_bit(shard);
        match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                sessions
                    .iter()
                    .for_each(|session| *self.sessions.entry(session.clone()).or_default() |= bit);
            }
            NarrowestLimit::Kinds(kinds) => {
                kinds.iter().for_each(|kind| *self.kinds.entry(kind.clone()).or_default() |= bit);
            }
            NarrowestLimit::Unlimited => self.everything |= bit,
        }
    }

    /// Clears the shard's bit where `remaining`, the shard's index without the removed subscriber,
    /// has no subscriber left.
    pub(super) fn remove(&mut self, scope: &Scope, shard: usize, remaining: &ScopeIndex<()>) {
        let bit = shard_bit(shard);
        match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                sessions
                    .iter()
                    .filter(|it| !remaining.has_session(it))
                    .for_each(|it| clear_bit(&mut self.sessions, it, bit));
            }
            NarrowestLimit::Kinds(kinds) => {
                kinds
                    .iter()
                    .filter(|it| !remaining.has_kind(it))
                    .for_each(|it| clear_bit(&mut self.kinds, it, bit));
            }
            NarrowestLimit::Unlimited if !remaining.has_everything() => self.everything &= !bit,
            NarrowestLimit::Unlimited => {}
        }
    }

    /// Returns whether no bit is set, and no empty entry is left.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.kinds.is_empty() && self.everything == 0
    }

    /// Returns the shards that have a subscriber which may see `event`.
    pub(super) fn shards_for(&self, event: &Event) -> u64 {
        let of_session = event.session().and_then(|session| self.sessions.get(session));
        let of_kind = self.kinds.get(event.kind());
        self.everything
            | of_session.copied().unwrap_or_default()
            | of_kind.copied().unwrap_or_default()
    }
}

/// Clears a bit, and removes the entry with its last bit.
fn clear_bit<K: Eq + std::hash::Hash>(buckets: &mut HashMap<K, u64>, at: &K, bit: u64) {
    if let Some(shards) = buckets.get_mut(at) {
        *shards &= !bit;
        if *shards == 0 {
            buckets.remove(at);
        }
    }
}

// `ShardThreads` starts 64 shards at most, one for each bit.
fn shard_bit(shard: usize) -> u64 {
    u32::try_from(shard).ok().and_then(|shard| 1_u64.checked_shl(shard)).unwrap_or_default()
}

/// Iterates over the numbers of the shards in a set of bits, lowest first.
pub(super) fn shards_in(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let shard = (bits != 0).then_some(bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        shard
    })
}
