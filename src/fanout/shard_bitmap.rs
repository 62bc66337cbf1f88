//! Shards that have subscribers of a session, of a user, of a kind or of everything: one bit each.
//!
//! Coarser than the shard's own index: a shard that has one subscriber of a session gets all events
//! of that session, whichever users and kinds it asked for.
//!
//! May use: `event`, `scope_index`.

use std::collections::HashMap;

use crate::{
    event::{Event, Kind, NarrowestLimit, Scope, SessionId, UserId},
    scope_index::ScopeIndex,
};

/// Bits of the shards, by session, by user, by kind, and for everything. Read and written under
/// the registry's lock.
#[derive(Debug, Default)]
pub(super) struct ShardBitmap {
    sessions: HashMap<SessionId, u64>,
    users: HashMap<UserId, u64>,
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
            NarrowestLimit::Users(users) => {
                users.iter().for_each(|user| *self.users.entry(user.clone()).or_default() |= bit);
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
            NarrowestLimit::Users(users) => {
                users
                    .iter()
                    .filter(|it| !remaining.has_user(it))
                    .for_each(|it| clear_bit(&mut self.users, it, bit));
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
        self.sessions.is_empty()
            && self.users.is_empty()
            && self.kinds.is_empty()
            && self.everything == 0
    }

    /// Returns the shards that have a subscriber which may see `event`.
    pub(super) fn shards_for(&self, event: &Event) -> u64 {
        let of_session = event.session().and_then(|session| self.sessions.get(session));
        let of_user = event.user().and_then(|user| self.users.get(user));
        let of_kind = self.kinds.get(event.kind());
        self.everything
            | of_user.copied().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, Only};

    #[test]
    fn a_bit_stays_until_the_last_subscriber_of_its_bucket_has_gone() {
        let sessions = |names: &[&str]| {
            let sessions = names.iter().map(|name| SessionId::new(name).unwrap());
            Only::These(sessions.collect::<std::collections::BTreeSet<_>>().into())
        };
        let kinds = || Only::These([Kind::new("k")].into());
        let users = || Only::These([UserId::new("a").unwrap()].into());
        let scopes = [
            Scope { sessions: sessions(&["a", "b"]), ..Scope::EVERYTHING },
            Scope { sessions: sessions(&["a"]), kinds: kinds(), ..Scope::EVERYTHING },
            Scope { kinds: kinds(), ..Scope::EVERYTHING },
            Scope { users: users(), ..Scope::EVERYTHING },
            Scope { users: users(), kinds: kinds(), ..Scope::EVERYTHING },
            Scope::EVERYTHING,
        ];
        for first_removed in 0..scopes.len() {
            let (mut bitmap, mut index) = (ShardBitmap::default(), ScopeIndex::default());
            for (key, scope) in scopes.iter().enumerate() {
                index.insert(scope, key, &());
                bitmap.add(scope, 5);
            }
            for step in 0..scopes.len() {
                assert!(!bitmap.is_empty());
                let key = (first_removed + step) % scopes.len();
                index.remove(&scopes[key], key);
                bitmap.remove(&scopes[key], 5, &index);
                let has_a = bitmap.sessions.contains_key(&SessionId::new("a").unwrap());
                let is_a_wanted = index.has_session(&SessionId::new("a").unwrap());
                assert_eq!(has_a, is_a_wanted, "{first_removed} {step}");
                let has_user = bitmap.users.contains_key(&UserId::new("a").unwrap());
                let is_user_wanted = index.has_user(&UserId::new("a").unwrap());
                assert_eq!(has_user, is_user_wanted, "{first_removed} {step}");
            }
            assert!(bitmap.is_empty());
        }
    }
}
