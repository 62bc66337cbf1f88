//! Reads from the ring, and the losses that it reports.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::event::{Draft, Event, EventId, GapReason, Kind, Only, ProductId};

const ALL: ReadLimits = ReadLimits { entries: usize::MAX, bytes: usize::MAX };

fn ring(events: usize) -> Ring {
    Ring::new(MemoryBounds { events, bytes: u64::MAX }, 0)
}

/// Appends an event of each session; "-" is no session, "!" a gap. What stands behind a slash is
/// the event's user.
fn push(ring: &mut Ring, sessions: &str) {
    for session in sessions.split_whitespace() {
        let (session, user) = match session.split_once('/') {
            Some((session, user)) => (session, Some(user)),
            None => (session, None),
        };
        let position = ring.newest_position() + 1;
        let id = EventId::new(1, position);
        if session == "!" {
            let product = ProductId::new("p").unwrap();
            let reason = GapReason::UpstreamReconnect;
            ring.push(Entry::Gap(Arc::new(Gap {
                product,
                reason,
                position,
                id,
                after: None,
                before: None,
            })));
            continue;
        }
        let draft = Draft {
            kind: Kind::new(if position.is_multiple_of(2) { "even" } else { "odd" }),
            session: (session != "-").then(|| SessionId::new(session).unwrap()),
            user: user.map(|user| UserId::new(user).unwrap()),
            forwarded_at: None,
            payload: Bytes::from_static(b"0123456789"),
            received: Instant::now(),
        };
        ring.push(Entry::Event(Arc::new(Event::new(id, position, draft))));
        ring.evict(u64::MAX);
    }
    ring.mark_dispatched(ring.newest_position());
    ring.evict(u64::MAX);
}

fn only(sessions: &str) -> Scope {
    let sessions =
        sessions.split_whitespace().map(|session| SessionId::new(session).unwrap()).collect();
    Scope { sessions: Only::These(sessions), ..Scope::EVERYTHING }
}

fn of_users(users: &str) -> Scope {
    let users = users.split_whitespace().map(|user| UserId::new(user).unwrap()).collect();
    Scope { users: Only::These(users), ..Scope::EVERYTHING }
}

/// Erases sessions and users, and returns the positions of their events.
fn erase(ring: &mut Ring, sessions: &str, users: &str) -> Vec<u64> {
    let mut sessions =
        sessions.split_whitespace().map(|session| SessionId::new(session).unwrap()).collect();
    let users = users.split_whitespace().map(|user| UserId::new(user).unwrap()).collect();
    ring.erase(&mut sessions, &users).into_iter().collect()
}

const EVERYTHING: Scope = Scope::EVERYTHING;

/// Returns the positions of one read, its last position, and whether it reached the end.
fn read(ring: &Ring, after: u64, scope: &Scope, limits: ReadLimits) -> (Vec<u64>, u64, bool) {
    let mut read_buffer = VecDeque::new();
    let RingRead::Entries { read_through, reached_end, .. } =
        ring.read_after(after, scope, limits, &mut read_buffer)
    else {
        panic!("the ring reports a loss");
    };
    let positions = read_buffer.iter().map(|entry| match entry {
        Entry::Event(event) => event.position(),
        Entry::Gap(gap) => gap.position,
        Entry::Erased => panic!("an erased entry is never returned"),
    });
    (positions.collect(), read_through, reached_end)
}

/// Returns whether the ring reports a loss.
fn misses(ring: &Ring, after: u64, scope: &Scope) -> bool {
    let mut read_buffer = VecDeque::new();
    let is_gone = matches!(ring.read_after(after, scope, ALL, &mut read_buffer), RingRead::Evicted);
    assert!(!is_gone || read_buffer.is_empty(), "first the gap, then what comes after it");
    is_gone
}

#[test]
fn a_reader_gets_what_is_after_its_position_and_ends_at_the_newest() {
    let mut ring = ring(100);
    push(&mut ring, "a b - a ! b");
    assert_eq!(read(&ring, 2, &EVERYTHING, ALL), (vec![3, 4, 5, 6], 6, true));
    assert_eq!(read(&ring, 6, &EVERYTHING, ALL).0, [0_u64; 0]);
}

#[test]
fn a_reader_of_sessions_gets_its_events_and_every_gap_by_scan_and_by_chains() {
    let mut ring = ring(10_000);
    push(&mut ring, "a b - a ! b c a");
    // A few pending entries are scanned, many are reached by the chains.
    for _ in 0..2 {
        assert_eq!(read(&ring, 0, &only("a"), ALL).0, [1, 4, 5, 8]);
        assert_eq!(read(&ring, 1, &only("b c"), ALL).0, [2, 5, 6, 7]);
        assert_eq!(read(&ring, 5, &only("nobody"), ALL).0, [0_u64; 0]);
        push(&mut ring, &"z ".repeat(3000));
    }
    assert_eq!(read(&ring, 5, &only("a"), ALL), (vec![8], 6008, true));
}

#[test]
fn a_read_continues_where_the_limit_ended_the_last_one() {
    let mut ring = ring(5000);
    push(&mut ring, &"a b ! ".repeat(1000));
    for scope in [EVERYTHING, only("a"), only("a b")] {
        let hides_b = scope == only("a");
        let everything: Vec<u64> = (1..=3000).filter(|at| !hides_b || at % 3 != 2).collect();
        for limits in [
            ALL,
            ReadLimits { entries: 7, ..ALL },
            ReadLimits { bytes: 100, ..ALL },
            ReadLimits { bytes: 0, ..ALL },
        ] {
            let (mut at, mut found) = (0, Vec::new());
            loop {
                let (more, read_through, reached_end) = read(&ring, at, &scope, limits);
                assert!(more.len() <= limits.entries);
                found.extend(more);
                assert!(read_through > at || reached_end, "it moves");
                at = read_through;
                if reached_end {
                    break;
                }
            }
            assert_eq!(found, everything);
        }
    }
}

#[test]
fn an_eviction_is_a_loss_only_for_readers_of_the_evicted_session() {
    let mut ring = ring(4);
    push(&mut ring, "a b a c   b b a -");
    assert_eq!((ring.evicted_through(), ring.newest_position()), (4, 8));
    let misses = |after, scope: &Scope| misses(&ring, after, scope);
    assert!(misses(3, &EVERYTHING));
    assert!(!misses(4, &EVERYTHING));
    assert!(misses(2, &only("a")), "its entry at 3 is gone");
    assert!(!misses(3, &only("a")), "its chain says that 3 was the last to go");
    assert!(!misses(2, &only("b")), "only others' entries went since");
    assert!(misses(1, &only("b")));
    assert!(misses(3, &only("c")), "no chain is left to tell");
    assert!(misses(3, &only("a c")));
}

#[test]
fn an_evicted_gap_concerns_every_reader_before_it() {
    let mut ring = ring(3);
    push(&mut ring, "a ! b a b");
    assert!(misses(&ring, 1, &only("b")));
    assert!(!misses(&ring, 2, &only("b")));
}

#[test]
fn a_session_that_comes_back_after_its_chain_was_forgotten_may_have_lost_entries() {
    let mut ring = ring(2);
    push(&mut ring, "a b b b a");
    assert!(misses(&ring, 0, &only("a")));
    assert!(!misses(&ring, 3, &only("a")));
}

#[test]
fn undispatched_and_uncommitted_entries_may_exceed_the_bounds() {
    let mut ring = ring(16);
    push(&mut ring, &"a ".repeat(100));
    assert_eq!((ring.len(), ring.evicted_through()), (16, 84));
    let append = |ring: &mut Ring, persisted_through| {
        ring.push(Entry::Erased);
        ring.evict(persisted_through)
    };
    for _ in 101..=2000 {
        append(&mut ring, u64::MAX);
    }
    assert_eq!(
        (ring.len(), ring.newest_position()),
        (16 + UNDISPATCHED_EXCESS_ENTRIES, 2000),
        "but not without a bound"
    );
    ring.mark_dispatched(1990);
    assert_eq!((ring.evict(u64::MAX), ring.len()), (1984, 16));
    let gone = (2001..=100_000).map(|position| {
        ring.mark_dispatched(position - 1);
        append(&mut ring, 1990)
    });
    assert_eq!(
        (gone.last(), ring.len()),
        (Some(100_000 - 16 - UNPERSISTED_EXCESS_ENTRIES as u64), 16 + UNPERSISTED_EXCESS_ENTRIES)
    );
    assert_eq!(ring.evict(100_000), 99_984, "what is kept goes at once");
}

#[test]
fn an_erased_event_is_neither_returned_nor_reported_as_lost() {
    let mut ring = ring(100);
    push(&mut ring, "a b a ! a");
    let bytes = ring.bytes();
    assert_eq!(erase(&mut ring, "a", ""), [1, 3, 5]);
    assert!(ring.bytes() < bytes);
    assert_eq!(read(&ring, 0, &EVERYTHING, ALL), (vec![2, 4], 5, true));
    assert_eq!(read(&ring, 0, &only("a"), ALL), (vec![4], 5, true));
    assert!(erase(&mut ring, "a", "").is_empty());
    push(&mut ring, "a");
    assert_eq!(read(&ring, 0, &only("a"), ALL).0, [4, 6]);
}

#[test]
fn an_erasure_makes_no_gap_of_what_was_seen_before_it() {
    let mut ring = ring(4);
    push(&mut ring, "a b b b b a");
    assert_eq!(read(&ring, 1, &only("a"), ALL).0, [6], "what went since was of others");
    erase(&mut ring, "a", "");
    assert_eq!(read(&ring, 1, &only("a"), ALL), (vec![], 6, true));
    assert!(matches!(ring.read_after(0, &only("a"), ALL, &mut VecDeque::new()), RingRead::Evicted));
    push(&mut ring, "b b b b");
    assert_eq!(ring.sessions.counts(), (1, 0), "nothing is kept of sessions without entries");
}

#[test]
fn bytes_bound_the_ring_and_one_entry_is_always_kept() {
    let mut ring = Ring::new(MemoryBounds { events: 100, bytes: 1 }, 0);
    push(&mut ring, "a b c");
    assert_eq!((ring.len(), ring.evicted_through()), (1, 2));
    assert!(ring.bytes() > 1);
    assert_eq!(ring.sessions.counts(), (1, 0), "nothing is kept of sessions without entries");
}

#[test]
fn kinds_are_filtered_beside_sessions() {
    let mut ring = ring(100);
    push(&mut ring, "a a b a a");
    let odd = Only::These([Kind::new("odd")].into());
    assert_eq!(read(&ring, 0, &Scope { kinds: odd.clone(), ..EVERYTHING }, ALL).0, [1, 3, 5]);
    assert_eq!(read(&ring, 0, &Scope { kinds: odd, ..only("a") }, ALL).0, [1, 5]);
}

#[test]
fn a_reader_of_users_gets_their_events_and_every_gap_by_scan_and_by_chains() {
    let mut ring = ring(10_000);
    push(&mut ring, "a/u b/v -/u a ! b/u c/w -");
    // A few pending entries are scanned, many are reached by the chains.
    for _ in 0..2 {
        assert_eq!(read(&ring, 0, &of_users("u"), ALL).0, [1, 3, 5, 6]);
        assert_eq!(read(&ring, 1, &of_users("v w"), ALL).0, [2, 5, 7]);
        assert_eq!(read(&ring, 0, &of_users("a"), ALL).0, [5], "a session is no user");
        let both = Scope { users: of_users("u").users, ..only("a b") };
        assert_eq!(read(&ring, 0, &both, ALL).0, [1, 5, 6]);
        push(&mut ring, &"z/z ".repeat(3000));
    }
    assert_eq!(read(&ring, 5, &of_users("u"), ALL), (vec![6], 6008, true));
}

#[test]
fn an_eviction_is_a_loss_only_for_readers_of_the_evicted_user() {
    let mut ring = ring(4);
    push(&mut ring, "a/u b/v a/u c/w   b/v b/v a/u -");
    let misses = |after, scope: &Scope| misses(&ring, after, scope);
    assert!(misses(2, &of_users("u")), "its entry at 3 is gone");
    assert!(!misses(3, &of_users("u")));
    assert!(!misses(2, &of_users("v")), "only others' entries went since");
    assert!(misses(3, &of_users("w")), "no chain is left to tell");
    assert!(misses(3, &of_users("u w")));
}

#[test]
fn an_erasure_by_user_takes_the_sessions_in_which_the_user_acted() {
    let mut ring = ring(100);
    // Session "a" began without a user, "b" is the user's as well, "c" is another one's.
    push(&mut ring, "a a/u b/u - -/u c/v b c ! -/v");
    assert_eq!(erase(&mut ring, "", "u"), [1, 2, 3, 5, 7]);
    assert_eq!(read(&ring, 0, &EVERYTHING, ALL).0, [4, 6, 8, 9, 10]);
    assert_eq!(read(&ring, 0, &of_users("u"), ALL).0, [9]);
    assert_eq!(erase(&mut ring, "c", "u v"), [6, 8, 10], "both: the union, each once");
    assert_eq!(read(&ring, 0, &EVERYTHING, ALL).0, [4, 9]);
}

#[test]
fn an_erasure_of_sessions_makes_no_gap_for_readers_of_a_user() {
    let mut ring = ring(6);
    push(&mut ring, "a/u b b b b/u a/u   c/u c");
    // "u" has lost 1 and 2 has gone since; 5 and 6 are erased before 7, in this order and after it.
    erase(&mut ring, "a", "");
    assert_eq!(read(&ring, 2, &of_users("u"), ALL).0, [5, 7]);
    erase(&mut ring, "c", "");
    assert_eq!(read(&ring, 2, &of_users("u"), ALL).0, [5], "the newest is erased, one is left");
    push(&mut ring, "x x x");
    assert_eq!(ring.evicted_through(), 5);
    assert_eq!(read(&ring, 5, &of_users("u"), ALL).0, [0_u64; 0], "its last entry was taken");
    push(&mut ring, "x");
    assert!(!misses(&ring, 5, &of_users("u")), "what went since was erased");
    push(&mut ring, "x");
    assert_eq!(ring.users.counts(), (0, 0), "nothing is kept of users without entries");
    push(&mut ring, "x x x x x x");
    assert_eq!((ring.sessions.counts(), ring.users.counts()), ((1, 0), (0, 0)));
}
