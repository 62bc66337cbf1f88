//! What a reader gets from the ring, and what it is told it missed.

use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::event::{GapReason, Kind, ProductId};

const ALL: Limits = Limits { entries: usize::MAX, bytes: usize::MAX };

fn ring(events: usize) -> Ring {
    Ring::new(Bounds { events, bytes: u64::MAX })
}

fn id(sequence: u64) -> EventId {
    EventId { epoch: 1, sequence }
}

/// Pushes an event of each session; "-" stands for none, "!" for a gap.
fn push(ring: &mut Ring, sessions: &str) {
    for session in sessions.split_whitespace() {
        let id = id(ring.newest() + 1);
        if session == "!" {
            let product = ProductId::new("p").unwrap();
            let reason = GapReason::UpstreamReconnect;
            ring.push_gap(Gap { product, reason, id, after: None, before: None });
            continue;
        }
        ring.push_event(
            id,
            Draft {
                kind: Kind::new(if id.sequence.is_multiple_of(2) { "even" } else { "odd" }),
                session: (session != "-").then(|| SessionId::new(session).unwrap()),
                forwarded_at: None,
                payload: Bytes::from_static(b"0123456789"),
                received: Instant::now(),
            },
        );
    }
    ring.shown(ring.newest());
}

fn only(sessions: &str) -> Scope {
    let sessions = sessions.split_whitespace().map(|session| SessionId::new(session).unwrap()).collect();
    Scope { sessions: Only::These(sessions), kinds: Only::Everything }
}

const EVERYTHING: Scope = Scope { sessions: Only::Everything, kinds: Only::Everything };

fn read(ring: &Ring, after: u64, scope: &Scope, limits: Limits) -> (Vec<u64>, Reading) {
    let mut handover = VecDeque::new();
    let reading = ring.read_after(after, scope, limits, &mut handover);
    let sequences = handover.iter().map(|entry| match entry {
        Entry::Event(event) => event.id().sequence,
        Entry::Gap(gap) => gap.id.sequence,
    });
    (sequences.collect(), reading)
}

#[test]
fn a_reader_gets_what_is_behind_its_place_and_ends_at_the_newest() {
    let mut ring = ring(100);
    push(&mut ring, "a b - a ! b");
    let (found, reading) = read(&ring, 2, &EVERYTHING, ALL);
    assert_eq!(found, [3, 4, 5, 6]);
    assert_eq!((reading.through, reading.reached_end, reading.missed_through), (6, true, None));
    assert_eq!(read(&ring, 6, &EVERYTHING, ALL).0, [0_u64; 0]);
}

#[test]
fn a_reader_of_sessions_gets_theirs_and_every_gap_by_either_way_through_the_ring() {
    let mut ring = ring(10_000);
    push(&mut ring, "a b - a ! b c a");
    // Few entries are walked, many are reached by the chains.
    for _ in 0..2 {
        assert_eq!(read(&ring, 0, &only("a"), ALL).0, [1, 4, 5, 8]);
        assert_eq!(read(&ring, 1, &only("b c"), ALL).0, [2, 5, 6, 7]);
        assert_eq!(read(&ring, 5, &only("nobody"), ALL).0, [0_u64; 0]);
        push(&mut ring, &"z ".repeat(3000));
    }
    let (found, reading) = read(&ring, 5, &only("a"), ALL);
    assert_eq!((found, reading.through, reading.reached_end), (vec![8], 6008, true));
}

#[test]
fn a_limit_ends_a_reading_where_the_next_one_goes_on() {
    let mut ring = ring(5000);
    push(&mut ring, &"a b ! ".repeat(1000));
    for scope in [EVERYTHING, only("a"), only("a b")] {
        let whole = read(&ring, 0, &scope, ALL);
        let everything: Vec<u64> = match whole.1.reached_end {
            true => whole.0,
            false => (1..=3000).collect(), // more than one reading walks over
        };
        for limits in [Limits { entries: 7, ..ALL }, Limits { bytes: 100, ..ALL }, Limits { bytes: 0, ..ALL }] {
            let (mut at, mut found) = (0, Vec::new());
            loop {
                let (more, reading) = read(&ring, at, &scope, limits);
                assert!(more.len() <= limits.entries);
                found.extend(more);
                assert!(reading.through > at || reading.reached_end, "it moves");
                at = reading.through;
                if reading.reached_end {
                    break;
                }
            }
            assert_eq!(found, everything);
        }
    }
}

#[test]
fn eviction_is_missed_by_whom_it_concerns_and_by_nobody_else() {
    let mut ring = ring(4);
    push(&mut ring, "a b a c   b b a -");
    assert_eq!((ring.evicted_through(), ring.newest()), (4, 8));
    let missed = |after, scope: &Scope| read(&ring, after, scope, ALL).1.missed_through;
    assert_eq!(missed(3, &EVERYTHING), Some(4));
    assert_eq!(missed(4, &EVERYTHING), None);
    assert_eq!(missed(2, &only("a")), Some(4), "its entry at 3 is gone");
    assert_eq!(missed(3, &only("a")), None, "its chain says that 3 was the last to go");
    assert_eq!(missed(2, &only("b")), None, "only others' entries went since");
    assert_eq!(missed(1, &only("b")), Some(4));
    assert_eq!(missed(3, &only("c")), Some(4), "no chain is left to tell");
    assert_eq!(missed(3, &only("a c")), Some(4));
}

#[test]
fn an_evicted_gap_concerns_every_reader_before_it() {
    let mut ring = ring(3);
    push(&mut ring, "a ! b a b");
    assert_eq!(read(&ring, 1, &only("b"), ALL).1.missed_through, Some(2));
    assert_eq!(read(&ring, 2, &only("b"), ALL).1.missed_through, None);
}

#[test]
fn a_session_that_comes_back_after_its_chain_was_forgotten_may_have_lost_entries() {
    let mut ring = ring(2);
    push(&mut ring, "a b b b a");
    assert_eq!(read(&ring, 0, &only("a"), ALL).1.missed_through, Some(3));
    assert_eq!(read(&ring, 3, &only("a"), ALL).1.missed_through, None);
}

#[test]
fn what_the_fanout_has_not_seen_is_kept_a_little_longer() {
    let mut ring = ring(16);
    push(&mut ring, &"a ".repeat(100));
    assert_eq!((ring.len(), ring.evicted_through()), (16, 84));
    let draft = || Draft {
        kind: Kind::Actions,
        session: None,
        forwarded_at: None,
        payload: Bytes::from_static(b"{}"),
        received: Instant::now(),
    };
    for sequence in 101..=2000 {
        ring.push_event(id(sequence), draft());
    }
    assert_eq!((ring.len(), ring.newest()), (16 + UNSHOWN_ENTRIES, 2000), "but not without a bound");
    ring.shown(1990);
    assert_eq!(ring.len(), 16);
}

#[test]
fn bytes_bound_the_ring_and_one_entry_is_always_kept() {
    let mut ring = Ring::new(Bounds { events: 100, bytes: 1 });
    push(&mut ring, "a b c");
    assert_eq!((ring.len(), ring.evicted_through()), (1, 2));
    assert!(ring.bytes() > 1);
    assert_eq!(ring.sessions.len(), 1, "nothing is kept of sessions without entries");
}

#[test]
fn kinds_are_filtered_beside_sessions() {
    let mut ring = ring(100);
    push(&mut ring, "a a b a a");
    let odd = Only::These(BTreeSet::from([Kind::new("odd")]));
    assert_eq!(read(&ring, 0, &Scope { kinds: odd.clone(), ..EVERYTHING }, ALL).0, [1, 3, 5]);
    assert_eq!(read(&ring, 0, &Scope { kinds: odd, ..only("a") }, ALL).0, [1, 5]);
}
