mod opening;

use std::{io::Read, os::unix::fs::PermissionsExt, sync::Arc};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::{
    event::{Draft, Entry, Event, Gap, GapReason, Kind, Only, ProductId, Scope, SessionId},
    log::{Limits, Missing, Span},
    store::reader::{Reader, Wanted},
};

/// A directory for a store's file, and the file's path.
pub(in crate::store) fn place_for_file() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("relay.db");
    (directory, path)
}

/// A fresh file with one product, whose number is 1.
pub(in crate::store) fn file_of_one() -> (TempDir, File) {
    let (directory, path) = place_for_file();
    let mut file = File::open(&path).unwrap();
    assert_eq!(file.product(&product("p")).unwrap().number, 1);
    (directory, file)
}

pub(in crate::store) fn product(id: &str) -> ProductId {
    ProductId::new(id).unwrap()
}

pub(in crate::store) fn session(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

/// An event at `place` under the id 7-`place`; no session for an empty text.
pub(in crate::store) fn event(place: u64, of: &str, kind: &str, payload: &[u8]) -> Entry {
    event_as(EventId::new(7, place), place, of, kind, payload)
}

fn event_as(id: EventId, place: u64, of: &str, kind: &str, payload: &[u8]) -> Entry {
    let session = (!of.is_empty()).then(|| session(of));
    let payload = payload.to_vec().into();
    let draft = Draft { kind: Kind::new(kind), session, forwarded_at: None, payload, received: Instant::now() };
    Entry::Event(Arc::new(Event::new(id, place, draft)))
}

pub(in crate::store) fn gap(place: u64, reason: GapReason, after: Option<&str>) -> Entry {
    let (product, id, after) = (product("p"), EventId::new(7, place), after.map(Box::from));
    Entry::Gap(Arc::new(Gap { product, reason, place, id, after, before: None }))
}

pub(in crate::store) fn portion(number: u32, first: u64, entries: &[Entry]) -> Portion<'_> {
    Portion { number, first, entries, spans: &[], missing: &[] }
}

impl File {
    pub(in crate::store) fn write_one(&mut self, number: u32, first: u64, entries: &[Entry], now: u64) {
        self.write(&[portion(number, first, entries)], Sync::Normal, now).unwrap();
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::store) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What is kept of the product with number 1 must be what its rows make up.
    pub(in crate::store) fn assert_counters_fit(&mut self, id: &str) {
        let kept = self.product(&product(id)).unwrap();
        let query = "SELECT count(*), ifnull(sum(ifnull(length(payload), 0) + ifnull(octet_length(session), 0) \
                     + ifnull(octet_length(kind), 0)), 0) FROM entries WHERE entry >> 40 = ?1";
        let (events, bytes): (i64, i64) =
            self.connection.query_row(query, [kept.number], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!((kept.events as i64, kept.bytes as i64), (events, bytes));
    }
}

/// Everything about an entry that a subscriber could tell.
pub(in crate::store) fn facts(entry: &Entry) -> String {
    match entry {
        Entry::Event(it) => {
            format!("{} {} {:?} {:?} {:?} {:?}", it.id(), it.place(), it.kind(), it.session(), it.payload(), it.wire())
        }
        other => format!("{other:?}"),
    }
}

/// Everything there is, in one chunk.
fn read_back(path: &Path, number: u32) -> Vec<Entry> {
    let scope = Scope { sessions: Only::Everything, kinds: Only::Everything };
    let limits = Limits { entries: 1000, bytes: usize::MAX };
    let newest = "SELECT newest FROM products WHERE number = ?1";
    let through: i64 = Connection::open(path).unwrap().query_row(newest, [number], |row| row.get(0)).unwrap();
    let through = through.cast_unsigned();
    let wanted = Wanted { product: product("p"), number, after: 0, through, scope, limits };
    Reader::open(path).unwrap().fetch(&wanted).unwrap().entries
}

/// The bytes of the file and of those beside it, by the end of their names.
pub(in crate::store) fn bytes_of(path: &Path) -> Vec<Option<Vec<u8>>> {
    SUFFIXES.iter().map(|suffix| fs::read(with(path, suffix)).ok()).collect()
}

#[test]
fn every_kind_of_entry_reads_back_as_it_was_written() {
    let (_directory, mut file) = file_of_one();
    let highest = EventId { epoch: u64::MAX, sequence: u64::MAX, suffix: u32::MAX };
    let entries = [
        event(1, "s", "actions", b"{}"),
        event(2, "", "odd \0 kind \u{e4}", b"one\ntwo\n\nfour\n"),
        gap(3, GapReason::UpstreamReconnect, Some("7-2")),
        Entry::Erased,
        event_as(highest, 5, "\u{e4}", "", b""),
        event(6, "s", "summary", &vec![b'x'; 100_000]),
        gap(7, GapReason::NotKept, None),
        event(8, &"long ".repeat(5000), "usertour_trigger", b"\xFF\0not text"),
    ];
    file.write_one(1, 1, &entries, 5);
    let written: Vec<String> = entries.iter().filter(|it| !matches!(it, Entry::Erased)).map(facts).collect();
    assert_eq!(read_back(file.path(), 1).iter().map(facts).collect::<Vec<_>>(), written);
    file.assert_counters_fit("p");
    Reader::open(file.path()).unwrap().check().unwrap();
}

#[test]
fn the_facts_about_a_product_survive_reopening() {
    let (_directory, mut file) = file_of_one();
    assert_eq!(file.product(&product("q")).unwrap().number, 2);
    let spans = [Span { place: 1, id: EventId::new(u64::MAX, 5) }, Span { place: 3, id: EventId::new(3, 1) }];
    let missing = [Missing { first: 4, last: 6 }, Missing { first: 9, last: 9 }];
    let entries = [event(1, "s", "k", b"abc"), Entry::Erased, gap(3, GapReason::NotKept, None)];
    file.write(&[Portion { number: 2, first: 1, entries: &entries, spans: &spans, missing: &missing }], Sync::Full, 1)
        .unwrap();
    let path = file.path().to_owned();
    file.close().unwrap();
    let mut file = File::open(&path).unwrap();
    let kept = Kept {
        number: 2,
        newest: 9,
        evicted_through: 0,
        events: 2,
        bytes: 5,
        highest_epoch: u64::MAX,
        spans: spans.into(),
        missing: missing.into(),
    };
    assert_eq!(file.product(&product("q")).unwrap(), kept);
    assert_eq!(file.product(&product("p")).unwrap().newest, 0);
}

#[test]
fn an_erased_entry_at_the_end_counts_as_the_newest() {
    let (_directory, mut file) = file_of_one();
    file.write_one(1, 1, &[event(1, "s", "k", b"abc"), Entry::Erased], 1);
    let kept = file.product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.events), (2, 1));
}

#[test]
fn an_epoch_is_reserved_without_entries_and_again_at_the_same_place() {
    let (_directory, mut file) = file_of_one();
    for epoch in [9, 8] {
        let spans = [Span { place: 1, id: EventId::new(epoch, 1) }];
        let reserved = Portion { number: 1, first: 1, entries: &[], spans: &spans, missing: &[] };
        file.write(&[reserved], Sync::Full, 1).unwrap();
        let kept = file.product(&product("p")).unwrap();
        assert_eq!((kept.newest, kept.highest_epoch, kept.spans), (0, 9, spans.to_vec()));
    }
}

#[test]
fn a_missing_range_may_grow() {
    let (_directory, mut file) = file_of_one();
    for last in [3, 5] {
        let missing = [Missing { first: 2, last }];
        let lost = Portion { number: 1, first: 2, entries: &[], spans: &[], missing: &missing };
        file.write(&[lost], Sync::Normal, 1).unwrap();
        let kept = file.product(&product("p")).unwrap();
        assert_eq!((kept.newest, kept.missing), (last, missing.to_vec()));
    }
}

#[test]
fn a_write_of_which_a_part_fails_leaves_nothing_behind() {
    let (_directory, mut file) = file_of_one();
    let entries = [event(1, "s", "k", b"abc")];
    let both = [portion(1, 1, &entries), portion(2, 1, &entries)];
    assert!(matches!(file.write(&both, Sync::Normal, 1), Err(FileError::Trouble { .. })));
    assert_eq!(file.product(&product("p")).unwrap().newest, 0);
    assert!(read_back(file.path(), 1).is_empty());
    file.write_one(1, 1, &entries, 1);
}

#[test]
fn numbers_beyond_the_key_are_refused() {
    let (_directory, mut file) = file_of_one();
    let entries = [event(1, "s", "k", b"abc"), event(2, "s", "k", b"abc")];
    let far = [Span { place: 1 << 40, id: EventId::new(1, 1) }];
    let lost = [Missing { first: 1, last: u64::MAX }];
    let backwards = [Missing { first: 2, last: 1 }];
    let nothing = Portion { number: 1, first: 1, entries: &[], spans: &[], missing: &[] };
    for beyond in [
        portion(1, (1 << 40) - 1, &entries),
        portion(1, u64::MAX, &entries),
        portion(1, 0, &entries),
        portion(1 << 22, 1, &entries),
        Portion { spans: &far, ..nothing },
        Portion { missing: &lost, ..nothing },
        Portion { missing: &backwards, ..nothing },
    ] {
        let refused = file.write(&[beyond], Sync::Normal, 1);
        assert!(matches!(refused, Err(FileError::Trouble { source: Fault::Refused(_), .. })), "{refused:?}");
    }
    file.write_one(1, (1 << 40) - 2, &entries, 1);
    let last_number = "INSERT INTO products VALUES (4194303, 'last', 0, 0, 0, 0, 0)";
    file.connection.execute(last_number, []).unwrap();
    assert!(matches!(file.product(&product("more")), Err(FileError::Trouble { source: Fault::Refused(_), .. })));
}

#[test]
fn a_file_that_was_not_closed_says_so_once() {
    let (_directory, path) = place_for_file();
    let file = File::open(&path).unwrap();
    assert!(!file.was_left_open());
    drop(file);
    let file = File::open(&path).unwrap();
    assert!(file.was_left_open());
    file.close().unwrap();
    assert!(!File::open(&path).unwrap().was_left_open());
}

#[test]
fn a_sync_is_noted() {
    let (_directory, mut file) = file_of_one();
    let synced_at = |file: &File| file.connection.query_row("SELECT synced_at FROM state", [], |row| row.get(0));
    file.sync(1234).unwrap();
    assert_eq!(synced_at(&file), Ok(1234));
    file.write(&[], Sync::Normal, 1235).unwrap();
    assert_eq!(synced_at(&file), Ok(1234));
    file.write(&[], Sync::Full, 1236).unwrap();
    assert_eq!(synced_at(&file), Ok(1236));
}

#[test]
fn a_sync_at_the_time_of_the_one_before_reaches_the_disk_too() {
    let (_directory, mut file) = file_of_one();
    let wal = |file: &File| bytes_of(&file.path).swap_remove(1);
    for _ in 0..3 {
        let before = wal(&file);
        // SQLite does not sync a commit that changes nothing.
        file.sync(5).unwrap();
        assert_ne!(wal(&file), before);
    }
    let path = file.path.clone();
    drop(file);
    let reopened = File::open(&path).unwrap();
    assert!(wal(&reopened).is_some_and(|bytes| !bytes.is_empty()), "marking an open file as open is a commit, too");
}

#[test]
fn a_commit_waits_for_the_disk_only_when_it_is_told_to() {
    let (_directory, mut file) = file_of_one();
    let level = |connection: &Connection| {
        connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)).map_err(Fault::from)
    };
    for (sync, expected) in [(Sync::Normal, 1), (Sync::Full, 2), (Sync::Normal, 1)] {
        assert_eq!(file.commit(sync, level).unwrap(), expected);
    }
}

#[test]
fn only_the_owner_may_read_the_files() {
    let (_directory, mut file) = file_of_one();
    file.write_one(1, 1, &[event(1, "s", "k", b"abc")], 1);
    for suffix in SUFFIXES {
        let mode = fs::metadata(with(file.path(), suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn setting_aside_keeps_every_byte_and_overwrites_nothing() {
    let (_directory, path) = place_for_file();
    for (round, suffixes) in [&SUFFIXES[..], &SUFFIXES[..1], &SUFFIXES[1..2], &SUFFIXES[..]].into_iter().enumerate() {
        for suffix in suffixes {
            fs::write(with(&path, suffix), format!("{round}{suffix}")).unwrap();
        }
        let aside = File::set_aside(&path, 99).unwrap();
        assert_eq!(aside, path.with_file_name(format!("relay.db.damaged-{}", 99 + round)));
        assert_eq!(bytes_of(&path), [None, None, None]);
    }
    for (round, suffixes) in [&SUFFIXES[..], &SUFFIXES[..1], &SUFFIXES[1..2], &SUFFIXES[..]].into_iter().enumerate() {
        for suffix in SUFFIXES {
            let mut text = String::new();
            let name = with(&path.with_file_name(format!("relay.db.damaged-{}", 99 + round)), suffix);
            let is_there = fs::File::open(name).map(|mut it| it.read_to_string(&mut text)).is_ok();
            assert_eq!(is_there.then_some(text), suffixes.contains(&suffix).then(|| format!("{round}{suffix}")));
        }
    }
}

#[test]
fn the_view_shows_entries_as_people_read_them() {
    let (_directory, mut file) = file_of_one();
    let id = EventId { epoch: u64::MAX, sequence: 2, suffix: 3 };
    let entries = [event(1, "s", "actions", b"{}"), event_as(id, 2, "", "k", b"x"), gap(3, GapReason::NotKept, None)];
    file.write_one(1, 1, &entries, 1_700_000_000_123);
    let mut statement = file.connection.prepare("SELECT * FROM log").unwrap();
    let columns = ["product", "id", "time", "type", "session", "gap", "payload"];
    assert_eq!(statement.column_names().collect::<Vec<_>>(), columns);
    let rows = statement.query_map([], |row| (0..7).map(|column| row.get::<_, Option<String>>(column)).collect());
    let rows: Vec<Vec<Option<String>>> = rows.unwrap().map(Result::unwrap).collect();
    let text = |row: [&str; 7]| row.map(|it| (!it.is_empty()).then(|| it.to_owned())).to_vec();
    let time = "2023-11-14T22:13:20.123Z";
    assert_eq!(rows[0], text(["p", "7-1", time, "actions", "s", "", "{}"]));
    assert_eq!(rows[1], text(["p", "18446744073709551615-2.3", time, "k", "", "", "x"]));
    assert_eq!(rows[2], text(["p", "7-3", time, "", "", "not_kept", ""]));
}

#[test]
fn a_reader_neither_stops_the_writer_nor_sees_half_a_commit() {
    let (_directory, mut file) = file_of_one();
    file.write_one(1, 1, &[event(1, "s", "k", b"a")], 1);
    let reader = Connection::open_with_flags(file.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let rows = || reader.query_row("SELECT count(*) FROM entries", [], |row| row.get::<_, i64>(0));
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(rows(), Ok(1));
    file.write_one(1, 2, &[event(2, "s", "k", b"a"), event(3, "s", "k", b"a")], 1);
    assert_eq!(rows(), Ok(1));
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(rows(), Ok(3));
}
