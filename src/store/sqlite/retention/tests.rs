use std::fs;

use super::*;
use crate::{
    event::{Entry, EventId, GapReason},
    log::{Hole, IdSpan},
    store::{
        DeliveryChange,
        sqlite::{
            AppendBatch, Indices,
            erase::ErasedRows,
            tests::{bytes_of, event, file_with_product, gap, of_session, product},
            webhooks::tests::journal,
        },
        webhook_rows::tests::{changes, owed, webhook},
    },
};

const NO_BOUND: u64 = u64::MAX;

/// Calls [`StoreFile::retire`] until there is nothing to do.
fn retire_all(file: &mut StoreFile, oldest_kept_at: u64, max_bytes: u64) -> Vec<RetentionStep> {
    std::iter::from_fn(|| file.retire(oldest_kept_at, max_bytes, 0).unwrap()).collect()
}

fn write_events(
    file: &mut StoreFile,
    number: u32,
    positions: std::ops::RangeInclusive<u64>,
    bytes: usize,
    now: u64,
) {
    let entries: Vec<Entry> =
        positions.clone().map(|position| event(position, "s", "k", &vec![b'x'; bytes])).collect();
    file.append_one(number, *positions.start(), &entries, now);
}

fn used_bytes(file: &StoreFile) -> u64 {
    file.used_bytes().unwrap()
}

#[test]
fn no_entry_is_deleted_while_all_is_within_bounds() {
    let (_directory, mut file) = file_with_product();
    assert_eq!(file.retire(NO_BOUND, 0, 0).unwrap(), None);
    write_events(&mut file, 1, 1..=10, 100, 50);
    let used = used_bytes(&file);
    assert_eq!(file.retire(50, used, 0).unwrap(), None);
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().events, 10);
}

#[test]
fn entries_that_are_too_old_are_deleted_in_small_steps_and_no_others() {
    let (_directory, mut file) = file_with_product();
    write_events(&mut file, 1, 1..=700, 10, 50);
    write_events(&mut file, 1, 701..=702, 10, 51);
    let steps = retire_all(&mut file, 51, NO_BOUND);
    let step = |evicted_through, events| RetentionStep {
        product_number: 1,
        evicted_through,
        events,
        bytes: events * 12,
        expired: Vec::new(),
    };
    assert_eq!(steps, [step(512, 512), step(700, 188)]);
    file.assert_counters_fit("p");
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().evicted_through, 700);
    assert_eq!(retire_all(&mut file, 52, NO_BOUND), [step(702, 2)]);
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.evicted_through, kept.events, kept.bytes), (702, 702, 0, 0));
}

#[test]
fn the_product_with_the_oldest_entry_is_first() {
    let (_directory, mut file) = file_with_product();
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().product_number, 2);
    assert_eq!(file.find_or_add_product(&product("r")).unwrap().product_number, 3);
    write_events(&mut file, 1, 1..=2, 10, 20);
    write_events(&mut file, 2, 1..=3, 10, 10);
    write_events(&mut file, 2, 4..=4, 10, 30); // too old, too, but not the oldest of its product
    write_events(&mut file, 3, 1..=1, 10, 40);
    let order: Vec<_> = retire_all(&mut file, 31, NO_BOUND)
        .iter()
        .map(|it| (it.product_number, it.evicted_through))
        .collect();
    assert_eq!(order, [(2, 4), (1, 2)]);
    assert_eq!(file.find_or_add_product(&product("r")).unwrap().events, 1);
}

#[test]
fn entries_over_the_bound_in_bytes_are_deleted_and_not_many_more() {
    for bytes in [30, 1000, 3000, 5000, 30_000] {
        let (_directory, mut file) = file_with_product();
        for first in (1..2000).step_by(100) {
            write_events(&mut file, 1, first..=first + 99, bytes, first);
        }
        let used = used_bytes(&file);
        let bound = used * 3 / 4;
        let steps = retire_all(&mut file, 0, bound);
        let (gone, now_used) = (steps.iter().map(|it| it.events).sum::<u64>(), used_bytes(&file));
        assert!(now_used <= bound && steps.iter().all(|it| it.events <= 512), "{bytes}");
        // Not much more: at most a few pages' worth, or that of 64 rows.
        assert!(bound - now_used <= 4 * 8192 + 64 * bytes as u64, "{bytes}: {now_used} of {bound}");
        file.assert_counters_fit("p");
        assert_eq!(file.find_or_add_product(&product("p")).unwrap().evicted_through, gone);
    }
}

#[test]
fn with_a_bound_of_zero_retention_deletes_every_entry_and_ends() {
    let (_directory, mut file) = file_with_product();
    write_events(&mut file, 1, 1..=1000, 100, 5);
    retire_all(&mut file, 0, 0);
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.evicted_through, kept.events, kept.bytes), (1000, 1000, 0, 0));
}

#[test]
fn room_that_is_free_is_used_again() {
    let (_directory, mut file) = file_with_product();
    let mut longest = 0;
    for round in 0..40 {
        write_events(&mut file, 1, round * 100 + 1..=round * 100 + 100, 1000, round);
        retire_all(&mut file, round.saturating_sub(2), NO_BOUND);
        if round == 5 {
            longest = file
                .connection()
                .pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))
                .unwrap();
        }
    }
    let pages: i64 =
        file.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    assert!(pages <= longest + 4, "{pages} after {longest}");
}

#[test]
fn holes_up_to_the_evicted_position_are_deleted() {
    let (_directory, mut file) = file_with_product();
    let entries = [event(1, "s", "k", b"a"), Entry::Erased, gap(3, GapReason::NotKept, None)];
    let missing = [Hole { first: 4, last: 6 }, Hole { first: 8, last: 9 }];
    file.append(
        &[AppendBatch {
            product_number: 1,
            first: 1,
            entries: &entries,
            spans: &[],
            holes: &missing,
        }],
        SyncMode::Normal,
        10,
    )
    .unwrap();
    write_events(&mut file, 1, 7..=7, 10, 20);
    let retired = file.retire(20, NO_BOUND, 0).unwrap().unwrap();
    assert_eq!(
        retired,
        RetentionStep {
            product_number: 1,
            evicted_through: 6,
            events: 2,
            bytes: 3,
            expired: Vec::new()
        }
    );
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.evicted_through, kept.holes), (6, missing[1..].to_vec()));
}

#[test]
fn spans_of_evicted_positions_stay_up_to_a_number() {
    let (_directory, mut file) = file_with_product();
    let positions = 4200;
    let spans: Vec<IdSpan> = (1..=positions)
        .map(|position| IdSpan { first_position: position, first_id: EventId::new(position, 1) })
        .collect();
    file.append(
        &[AppendBatch { product_number: 1, first: 1, entries: &[], spans: &spans, holes: &[] }],
        SyncMode::Normal,
        1,
    )
    .unwrap();
    write_events(&mut file, 1, 1..=positions - 4, 1, 1);
    write_events(&mut file, 1, positions - 3..=positions, 1, 2);
    retire_all(&mut file, 2, NO_BOUND);
    let kept = file.find_or_add_product(&product("p")).unwrap().spans;
    // 4196 spans are evicted, of which 4096 stay.
    assert_eq!((kept.len(), kept[0].first_position), (4100, 101));
}

/// Writes events of victims and others side by side into these products, retires the oldest and
/// erases the victims.
fn erase_victims(file: &mut StoreFile, numbers: &[u32], victims: &[&str], oldest_kept_at: u64) {
    let payload = |position: u64, of: &str| {
        let marker = format!("<{of}-payload-{position}>");
        marker.repeat(usize::try_from(1 + position * 37 % 150).unwrap()).into_bytes()
    };
    for (round, victim) in (0..300).zip(victims.iter().cycle()) {
        let mut entries = Vec::new();
        for (of, position) in [victim, "other", victim].iter().zip(round * 3 + 1..) {
            entries.push(event(position, of, "k", &payload(position, of)));
        }
        for number in numbers {
            file.append_one(*number, round * 3 + 1, &entries, round);
        }
    }
    retire_all(file, oldest_kept_at, NO_BOUND);
    for number in numbers {
        for victim in victims {
            assert!(
                file.erase(*number, &of_session(victim), 0, Indices::Trusted).unwrap().events
                    >= 100
            );
        }
        assert_eq!(
            file.erase(*number, &of_session(victims[0]), 0, Indices::Trusted).unwrap(),
            ErasedRows { events: 0, bytes: 0, dead_letters: 0 }
        );
    }
}

/// Returns how often the bytes occur in the file and in the files beside it.
fn occurrences(file: &StoreFile, bytes: &[u8]) -> usize {
    let everything = bytes_of(file.path()).into_iter().flatten();
    everything.map(|content| content.windows(bytes.len()).filter(|it| *it == bytes).count()).sum()
}

#[test]
fn an_erased_session_leaves_no_byte_once_the_file_is_scrubbed_and_the_others_stay() {
    let (_directory, mut file) = file_with_product();
    erase_victims(&mut file, &[1], &["victim"], 0);
    file.scrub().unwrap();
    file.assert_counters_fit("p");
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().events, 300);
    assert_eq!(occurrences(&file, b"victim"), 0);
    assert!(occurrences(&file, b"other-payload") > 200);
    assert!(fs::metadata(file.path().with_extension("db-wal")).unwrap().len() < 16 << 10);
}

#[test]
fn scrubbing_removes_the_copies_that_moving_rows_has_left() {
    let (_directory, mut file) = file_with_product();
    file.find_or_add_product(&product("q")).unwrap();
    erase_victims(&mut file, &[1, 2], &["victim-a", "victim-b", "victim-c"], 100);
    assert!(
        occurrences(&file, b"victim") > 0,
        "SQLite leaves no copies any more: scrubbing has become needless"
    );
    file.scrub().unwrap();
    assert_eq!(occurrences(&file, b"victim"), 0);
    for id in ["p", "q"] {
        file.assert_counters_fit(id);
        assert_eq!(file.find_or_add_product(&product(id)).unwrap().events, 200);
    }
}

#[test]
fn scrubbing_reports_a_reader_in_the_way_and_can_be_repeated() {
    let (_directory, mut file) = file_with_product();
    write_events(&mut file, 1, 1..=5, 100, 1);
    let reader = Connection::open(file.path()).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM products").unwrap();
    reader.query_row("SELECT count(*) FROM entries", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(
        file.erase(1, &of_session("s"), 0, Indices::Trusted).unwrap().events,
        5,
        "an erasure does not wait for a reader"
    );
    assert!(matches!(file.scrub(), Err(FileError::Unavailable { .. })));
    reader.execute_batch("COMMIT").unwrap();
    let path = file.path().to_owned();
    drop(file);
    let mut file = StoreFile::open(&path).unwrap();
    assert!(file.needs_scrub(), "the mark outlives the process");
    file.scrub().unwrap();
    drop(file);
    let mut file = StoreFile::open(&path).unwrap();
    assert!(!file.needs_scrub());
    file.assert_counters_fit("p");
}

#[test]
fn a_session_is_erased_in_one_product_only() {
    let (_directory, mut file) = file_with_product();
    file.find_or_add_product(&product("q")).unwrap();
    write_events(&mut file, 1, 1..=1300, 1, 1);
    write_events(&mut file, 2, 1..=5, 1, 1);
    assert_eq!(file.erase(1, &of_session("s"), 0, Indices::Trusted).unwrap().events, 1300);
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.evicted_through, kept.events, kept.bytes), (1300, 0, 0, 0));
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().events, 5);
}

#[test]
fn an_erasure_by_rows_reaches_one_that_an_index_leaves_out_or_finds_the_damage() {
    let left = |indices| {
        let (_directory, mut file) = file_with_product();
        write_events(&mut file, 1, 1..=5, 1, 1);
        assert_eq!(file.index_names().ok(), Some(false));
        let path = file.path().to_owned();
        file.close().unwrap();
        uncount_last_row(&path, "session_index");
        let mut file = StoreFile::open(&path).unwrap();
        let is_refused = file.erase(1, &of_session("s"), 0, indices).is_err();
        let rows = "SELECT count(*) FROM entries NOT INDEXED";
        (is_refused, file.connection.query_row(rows, [], |row| row.get::<_, u32>(0)).unwrap())
    };
    assert_eq!(left(Indices::Trusted), (false, 1), "the damage that this is about");
    assert!(matches!(left(Indices::Unchecked), (false, 0) | (true, 5)));
}

/// Lowers the count of rows in an index of one page, so that its last row is gone.
fn uncount_last_row(path: &std::path::Path, index: &str) {
    let root: u32 = Connection::open(path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [index], |row| row.get(0))
        .unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[(root as usize - 1) * 8192 + 4] -= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_step_is_smaller_only_for_webhooks_that_may_lose_something_by_it() {
    for (behind, owed_some, expected_rows) in [
        (0, 0, RETENTION_STEP_ROWS),
        (3, 0, RETENTION_STEP_ROWS / 4),
        (0, 3, RETENTION_STEP_ROWS / 4),
        (600, 0, 1),
    ] {
        let (_directory, mut file) = file_with_product();
        write_events(&mut file, 1, 1..=1000, 10, 50);
        for number in 0..100 + behind + owed_some {
            let id = format!("w{number}");
            file.register(&webhook(&id, if number < behind { 0 } else { 1000 }), 1).unwrap();
            if (behind..behind + owed_some).contains(&number) {
                journal(&mut file, &id, &changes(1000, [DeliveryChange::Owed(owed(500))]));
            }
        }
        let retired = file.retire(60, NO_BOUND, 100).unwrap().unwrap();
        assert_eq!((retired.events, retired.evicted_through), (expected_rows, expected_rows));
        let affected = behind + if expected_rows >= 500 { owed_some } else { 0 };
        assert_eq!(retired.expired.len() as u64, affected, "only the affected webhooks");
    }
}

#[test]
fn entries_of_a_clock_that_was_ahead_are_dated_anew_once_they_are_the_oldest() {
    let (_directory, mut file) = file_with_product();
    write_events(&mut file, 1, 1..=2, 10, 50);
    write_events(&mut file, 1, 3..=702, 10, 9000);
    write_events(&mut file, 1, 703..=704, 10, 60);
    let change = "UPDATE entries SET kind = 'K' WHERE entry & 0xFFFF = 300";
    assert_eq!(file.connection().execute(change, []), Ok(1));
    assert_eq!(file.restamp_future(None, 100, 90).unwrap(), None, "the oldest is no such entry");
    assert_eq!(retire_all(&mut file, 51, NO_BOUND).len(), 1);
    let (mut next, mut steps) = (file.restamp_future(None, 100, 90).unwrap(), 1);
    while next.is_some() {
        (next, steps) = (file.restamp_future(next, 100, 90).unwrap(), steps + 1);
    }
    assert_eq!(steps, 700_u64.div_ceil(RETENTION_STEP_ROWS), "in small steps");
    let damaged = concat!("SELECT count(*) FROM entries WHERE head_sum IS NOT ", entry_sum!());
    assert_eq!(file.connection().query_row(damaged, [], |row| row.get(0)), Ok(1), "as before");
    assert_eq!(retire_all(&mut file, 90, NO_BOUND), [], "not before their new time");
    assert_eq!(
        retire_all(&mut file, 91, NO_BOUND).iter().map(|step| step.events).sum::<u64>(),
        702
    );
}
