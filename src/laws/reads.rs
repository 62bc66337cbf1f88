//! Laws of reads from the log in memory: what a reader gets, and how many entries are looked at.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    event::{Draft, Entry, GapReason, Kind, Only, ProductId, Scope, SessionId, UserId},
    log::{Log, MemoryBounds, Numbering, ReadLimits, ReadOutcome},
    metrics::Metrics,
};

/// Checks that a reader of the log that the input describes gets exactly the entries that its
/// filter admits, in order; that no read looks at more than a bounded number of entries; and that
/// all reads together look at little more than what the reader gets, or what stands in the log.
///
/// Bytes: sessions or users that the reader names, sessions in the log, kinds and which of the two,
/// start, then the entries. Each session has a user of its own.
pub fn reads(input: &[u8]) {
    let Some((&[named, sessions, kinds, start], entries)) = input.split_first_chunk::<4>() else {
        return;
    };
    let (named, sessions) = (usize::from(named) * 4, usize::from(sessions) * 4 + 1);
    let appended = entries_of(entries, sessions);
    let log = log_of(&appended);
    let is_by_user = kinds >= 128;
    let scope = Scope {
        sessions: match named {
            _ if is_by_user => Only::Everything,
            0 => Only::Everything,
            _ => Only::These((0..named).map(session).collect()),
        },
        users: match named {
            1.. if is_by_user => Only::These((0..named).map(user).collect()),
            _ => Only::Everything,
        },
        kinds: match kinds % 3 {
            0 => Only::Everything,
            1 => Only::These([Kind::new("z")].into()),
            _ => Only::These([Kind::new("odd")].into()),
        },
    };
    let start = appended.len() * usize::from(start) / 256;
    let is_named = |entry: &LawEntry| entry.is_none_or(|it| named == 0 || it < named);
    let expected = (1..).zip(&appended).skip(start).filter(|(position, entry)| {
        is_named(entry) && (entry.is_none() || scope.kinds.admits(&kind(*position)))
    });
    let expected: Vec<u64> = expected.map(|(position, _)| position).collect();
    let tally = ReadTally::of(&log, start as u64, &scope);
    assert_eq!(tally.positions, expected);
    // A full read looks at the entry that it has no room for, and the next one does so again.
    let in_chains = appended.iter().skip(start).filter(|it| is_named(it)).count();
    let candidates = if named <= 64 { in_chains + 64 } else { appended.len() - start };
    assert!(
        tally.examined <= candidates + tally.reads * 65,
        "{} entries looked at in {} reads for {} of {candidates}",
        tally.examined,
        tally.reads,
        expected.len()
    );
    assert!(tally.reads <= expected.len() / 16 + candidates / 256 + 2, "{} reads", tally.reads);
}

/// Session of an entry by its number; `None` is a gap.
type LawEntry = Option<usize>;

fn entries_of(bytes: &[u8], sessions: usize) -> Vec<LawEntry> {
    let entries = (0..MAX_ENTRIES).zip(bytes.iter().cycle());
    entries
        .map(|(n, byte)| (*byte < 255).then(|| (n * 7 + usize::from(*byte)) % sessions))
        .collect()
}

fn log_of(entries: &[LawEntry]) -> Log {
    let product = ProductId::new("p").unwrap();
    let bounds = MemoryBounds { events: MAX_ENTRIES * 2, bytes: u64::MAX };
    let log = Log::new(product.clone(), bounds, Metrics::new().unwrap().log(&product));
    log.set_numbering(Numbering::Own);
    for (position, entry) in (1..).zip(entries) {
        match entry {
            None => log.append_gap(GapReason::UpstreamReconnect),
            Some(number) => drop(log.append(Draft {
                kind: kind(position),
                session: Some(session(*number)),
                user: Some(user(*number)),
                forwarded_at: None,
                payload: Bytes::from_static(b"{}"),
                received: Instant::now(),
            })),
        }
    }
    log
}

fn session(number: usize) -> SessionId {
    SessionId::new(&format!("session-{number}")).unwrap()
}

fn user(number: usize) -> UserId {
    UserId::new(&format!("user-{number}")).unwrap()
}

fn kind(position: u64) -> Kind {
    Kind::new(if position.is_multiple_of(2) { "even" } else { "odd" })
}

/// What one reader has got, and what that cost.
struct ReadTally {
    positions: Vec<u64>,
    reads: usize,
    examined: usize,
}

impl ReadTally {
    fn of(log: &Log, mut position: u64, scope: &Scope) -> Self {
        let mut tally = Self { positions: Vec::new(), reads: 0, examined: 0 };
        loop {
            let mut buffer = VecDeque::new();
            let limits = ReadLimits { entries: 16, bytes: 32 * 1024 };
            let outcome = log.read_after(position, scope, limits, &mut buffer);
            let ReadOutcome::Entries { read_through, reached_end, examined } = outcome else {
                panic!("nothing is evicted: {outcome:?}");
            };
            assert!(examined <= 256 + 64, "{examined} entries looked at under one lock");
            tally.reads += 1;
            tally.examined += examined;
            tally.positions.extend(buffer.iter().filter_map(|entry| match entry {
                Entry::Event(event) => Some(event.position()),
                Entry::Gap(gap) => Some(gap.position),
                Entry::Erased => None,
            }));
            if reached_end {
                return tally;
            }
            assert!(read_through > position, "a read makes progress");
            position = read_through;
        }
    }
}

/// Enough for several reads of every kind.
const MAX_ENTRIES: usize = 3000;
