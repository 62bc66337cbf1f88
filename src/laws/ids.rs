//! Laws of event ids: parsing, formatting, and lookup in a log.

use crate::{
    event::{EventId, StartPosition},
    log::{IdLookup, IdSpans},
};

/// Checks that an id is parsed only in the form in which it is formatted; and that in a log made of
/// the ids among the words of the input, each id is found at its position.
pub fn ids(input: &[u8]) {
    match StartPosition::parse(input) {
        StartPosition::Now => assert!(input.is_empty()),
        StartPosition::Oldest => assert_eq!(input, b"0"),
        StartPosition::After(id) => assert_eq!(id.to_string().as_bytes(), input),
        StartPosition::Malformed => {}
    }
    if let Some((numbers, _)) = input.split_first_chunk::<20>() {
        let number = |range: std::ops::Range<usize>| {
            numbers[range].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let suffix = u32::try_from(number(16..20)).unwrap();
        let id = EventId { epoch: number(0..8), sequence: number(8..16), suffix };
        assert_eq!(StartPosition::parse(id.to_string().as_bytes()), StartPosition::After(id));
    }
    check_log(&String::from_utf8_lossy(input));
}

fn check_log(text: &str) {
    let requested: Vec<_> =
        text.split_whitespace().take(MAX_IDS).filter_map(EventId::parse).collect();
    let (mut ids, mut appended) = (IdSpans::default(), Vec::new());
    for id in &requested {
        let newest = appended.len() as u64;
        if !ids.has_passed(*id, newest) {
            ids.append(newest + 1, *id);
            appended.push(*id);
        }
        assert!(ids.has_passed(*id, appended.len() as u64));
    }
    let newest = appended.len() as u64;
    for (position, id) in (1..).zip(&appended) {
        assert_eq!(
            (ids.id_at(position), ids.find(*id, newest)),
            (Some(*id), IdLookup::At(position))
        );
    }
    for id in requested {
        for near in [
            id,
            EventId { sequence: id.sequence.wrapping_add(1), ..id },
            EventId { suffix: 1, ..id },
        ] {
            if let IdLookup::At(position) | IdLookup::After(position) = ids.find(near, newest) {
                assert!(position <= newest, "{near}");
                let before = appended
                    .get((position as usize).wrapping_sub(1))
                    .filter(|before| before.epoch == near.epoch);
                let next = appended.get(position as usize).filter(|next| next.epoch == near.epoch);
                assert!(
                    before.is_none_or(|before| *before <= near)
                        && next.is_none_or(|next| near < *next),
                    "{near}"
                );
            }
        }
    }
}

/// Fewer than the number of spans that a log keeps.
const MAX_IDS: usize = 1000;
