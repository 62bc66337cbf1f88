//! Ids of events: read, written, and found in a log.

use crate::{
    event::{EventId, Start},
    log::{Found, Ids},
};

/// An id is read in the one form it is written; and in a log made of the ids among these words, each is found where it was put.
pub fn ids(input: &[u8]) {
    match Start::parse(input) {
        Start::Now => assert!(input.is_empty()),
        Start::Oldest => assert_eq!(input, b"0"),
        Start::After(id) => assert_eq!(id.to_string().as_bytes(), input),
        Start::Malformed => {}
    }
    if let Some((numbers, _)) = input.split_first_chunk::<20>() {
        let number =
            |range: std::ops::Range<usize>| numbers[range].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let suffix = u32::try_from(number(16..20)).unwrap();
        let id = EventId { epoch: number(0..8), sequence: number(8..16), suffix };
        assert_eq!(Start::parse(id.to_string().as_bytes()), Start::After(id));
    }
    holds_for_log(&String::from_utf8_lossy(input));
}

fn holds_for_log(text: &str) {
    let asked: Vec<_> = text.split_whitespace().take(MOST).filter_map(EventId::parse).collect();
    let (mut log, mut given) = (Ids::default(), Vec::new());
    for id in &asked {
        let newest = given.len() as u64;
        if !log.has_passed(*id, newest) {
            log.append(newest + 1, *id);
            given.push(*id);
        }
        assert!(log.has_passed(*id, given.len() as u64));
    }
    let newest = given.len() as u64;
    for (place, id) in (1..).zip(&given) {
        assert_eq!((log.at(place), log.find(*id, newest)), (Some(*id), Found::At(place)));
    }
    for id in asked {
        for near in [id, EventId { sequence: id.sequence.wrapping_add(1), ..id }, EventId { suffix: 1, ..id }] {
            if let Found::At(place) | Found::Behind(place) = log.find(near, newest) {
                assert!(place <= newest, "{near}");
                let before = given.get((place as usize).wrapping_sub(1)).filter(|before| before.epoch == near.epoch);
                let next = given.get(place as usize).filter(|next| next.epoch == near.epoch);
                assert!(before.is_none_or(|before| *before <= near) && next.is_none_or(|next| near < *next), "{near}");
            }
        }
    }
}

/// Fewer than a log remembers spans.
const MOST: usize = 1000;
