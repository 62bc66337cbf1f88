mod opening;
mod releases;
mod session_index;
mod wal_pages;

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    files::{FILE_SUFFIXES, with_suffix},
    *,
};
use crate::{
    event::{
        Draft, Entry, Event, EventId, Gap, GapReason, Kind, Only, ProductId, Scope, SessionId,
        UserId, VisitorId,
    },
    log::{
        EmptyEpoch, Hole, IdSpan, MAX_EMPTY_EPOCHS, PersistedLog, ReadLimits, backing::ReadRequest,
    },
    store::reader::{Indices, StoreReader},
};

/// Returns a directory for a store's file, and the file's path.
pub(in crate::store) fn temporary_path() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("relay.db");
    (directory, path)
}

/// Returns a fresh file with one product, whose number is 1.
pub(in crate::store) fn file_with_product() -> (TempDir, StoreFile) {
    let (directory, path) = temporary_path();
    let mut file = StoreFile::open(&path).unwrap();
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().product_number, 1);
    (directory, file)
}

pub(in crate::store) fn product(id: &str) -> ProductId {
    ProductId::new(id).unwrap()
}

pub(in crate::store) fn of_session(id: &str) -> VisitorId {
    VisitorId::Session(session(id))
}

pub(in crate::store) fn session(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

/// Returns an event at `position` under the id 7-`position`; an empty text is no session.
pub(in crate::store) fn event(
    position: u64,
    session_id: &str,
    kind: &str,
    payload: &[u8],
) -> Entry {
    event_as(EventId::new(7, position), position, session_id, kind, payload)
}

/// Returns an event. What stands behind a slash in its session is its user.
fn event_as(id: EventId, position: u64, session_id: &str, kind: &str, payload: &[u8]) -> Entry {
    let (session_id, user_id) = session_id.split_once('/').unwrap_or((session_id, ""));
    let session = (!session_id.is_empty()).then(|| session(session_id));
    let user = (!user_id.is_empty()).then(|| UserId::new(user_id).unwrap());
    let payload = payload.to_vec().into();
    let draft = Draft {
        kind: Kind::new(kind),
        session,
        user,
        forwarded_at: None,
        payload,
        received: Instant::now(),
    };
    Entry::Event(Arc::new(Event::new(id, position, draft)))
}

pub(in crate::store) fn gap(position: u64, reason: GapReason, after: Option<&str>) -> Entry {
    let (product, id, after) = (product("p"), EventId::new(7, position), after.map(Box::from));
    Entry::Gap(Arc::new(Gap { product, reason, position, id, after, before: None }))
}

pub(in crate::store) fn append_batch(
    number: u32,
    first: u64,
    entries: &[Entry],
) -> AppendBatch<'_> {
    AppendBatch { product_number: number, first, entries, spans: &[], holes: &[] }
}

impl StoreFile {
    pub(in crate::store) fn append_one(
        &mut self,
        number: u32,
        first: u64,
        entries: &[Entry],
        now: u64,
    ) {
        self.append(&[append_batch(number, first, entries)], SyncMode::Normal, now).unwrap();
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::store) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Checks that the counters of a product equal the sums over its rows.
    pub(in crate::store) fn assert_counters_fit(&mut self, id: &str) {
        let persisted = self.find_or_add_product(&product(id)).unwrap();
        let query = "SELECT count(*), ifnull(sum(ifnull(length(payload), 0) + ifnull(octet_length(session), 0) \
                     + ifnull(octet_length(kind), 0) \
                     + iif(gap IS NULL, ifnull(octet_length(after_or_user), 0), 0)), 0) FROM entries WHERE entry >> 40 = ?1";
        let (events, bytes): (i64, i64) = self
            .connection
            .query_row(query, [persisted.product_number], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!((persisted.events as i64, persisted.bytes as i64), (events, bytes));
    }
}

/// Returns everything about an entry that a subscriber can see, as text.
pub(in crate::store) fn visible_facts(entry: &Entry) -> String {
    match entry {
        Entry::Event(it) => {
            format!(
                "{} {} {:?} {:?} {:?} {:?}",
                it.id(),
                it.position(),
                it.kind(),
                it.session(),
                it.payload(),
                it.sse_frame()
            )
        }
        other => format!("{other:?}"),
    }
}

/// Reads all entries of a product in one chunk.
fn read_back(path: &Path, number: u32) -> Vec<Entry> {
    let scope = Scope::EVERYTHING;
    let limits = ReadLimits { entries: 1000, bytes: usize::MAX };
    let newest = "SELECT newest FROM products WHERE number = ?1";
    let through: i64 =
        Connection::open(path).unwrap().query_row(newest, [number], |row| row.get(0)).unwrap();
    let through = through.cast_unsigned();
    let request = ReadRequest {
        product: product("p"),
        product_number: number,
        after: 0,
        through,
        scope,
        limits,
    };
    StoreReader::open(path).unwrap().fetch(&request, Indices::Trusted).unwrap().entries
}

/// Returns the bytes of the database and of the files beside it, in the order of
/// [`FILE_SUFFIXES`].
pub(in crate::store) fn bytes_of(path: &Path) -> Vec<Option<Vec<u8>>> {
    FILE_SUFFIXES.iter().map(|suffix| fs::read(with_suffix(path, suffix)).ok()).collect()
}

#[test]
fn every_kind_of_entry_reads_back_as_it_was_written() {
    let (_directory, mut file) = file_with_product();
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
    file.append_one(1, 1, &entries, 5);
    let written: Vec<String> =
        entries.iter().filter(|it| !matches!(it, Entry::Erased)).map(visible_facts).collect();
    assert_eq!(read_back(file.path(), 1).iter().map(visible_facts).collect::<Vec<_>>(), written);
    file.assert_counters_fit("p");
    StoreReader::open(file.path()).unwrap().check().unwrap();
}

#[test]
fn the_facts_about_a_product_survive_reopening() {
    let (_directory, mut file) = file_with_product();
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().product_number, 2);
    let spans = [
        IdSpan { first_position: 1, first_id: EventId::new(u64::MAX, 5) },
        IdSpan { first_position: 3, first_id: EventId::new(3, 1) },
    ];
    let missing = [Hole { first: 4, last: 6 }, Hole { first: 9, last: 9 }];
    let entries = [event(1, "s", "k", b"abc"), Entry::Erased, gap(3, GapReason::NotKept, None)];
    file.append(
        &[AppendBatch {
            product_number: 2,
            first: 1,
            entries: &entries,
            spans: &spans,
            holes: &missing,
        }],
        SyncMode::Full,
        1,
    )
    .unwrap();
    let path = file.path().to_owned();
    file.close().unwrap();
    let mut file = StoreFile::open(&path).unwrap();
    let kept = PersistedLog {
        product_number: 2,
        newest: 9,
        evicted_through: 0,
        events: 2,
        bytes: 5,
        highest_epoch: u64::MAX,
        spans: spans.into(),
        empty_epochs: Vec::new(),
        holes: missing.into(),
    };
    assert_eq!(file.find_or_add_product(&product("q")).unwrap(), kept);
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().newest, 0);
}

#[test]
fn an_erased_entry_at_the_end_counts_as_the_newest() {
    let (_directory, mut file) = file_with_product();
    file.append_one(1, 1, &[event(1, "s", "k", b"abc"), Entry::Erased], 1);
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.events), (2, 1));
}

#[test]
fn an_epoch_is_reserved_without_entries_and_again_at_the_same_position() {
    let (_directory, mut file) = file_with_product();
    file.append_one(1, 1, &[event(1, "s", "k", b"x")], 1);
    for (epoch, empty) in [(9, vec![]), (8, vec![9]), (12, vec![8, 9])] {
        let spans = [IdSpan { first_position: 2, first_id: EventId::new(epoch, 2) }];
        let reserved =
            AppendBatch { product_number: 1, first: 2, entries: &[], spans: &spans, holes: &[] };
        file.append(&[reserved], SyncMode::Full, 1).unwrap();
        let kept = file.find_or_add_product(&product("p")).unwrap();
        assert_eq!((kept.newest, kept.highest_epoch), (1, epoch.max(9)));
        assert_eq!(kept.spans, spans);
        // Ids of them may have been shown.
        let empty = empty.into_iter().map(|epoch| EmptyEpoch { epoch, after: 1 });
        assert!(kept.empty_epochs.into_iter().eq(empty));
    }
    file.append_one(1, 2, &[event(2, "s", "k", b"x")], 1);
    file.retire(2, 0, 9).unwrap();
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!(
        (kept.evicted_through, kept.empty_epochs),
        (2, vec![]),
        "nothing before them is left"
    );
}

#[test]
fn epochs_without_entries_are_bounded() {
    let (_directory, mut file) = file_with_product();
    for epoch in 1..=(MAX_EMPTY_EPOCHS as u64 + 20) {
        let spans = [IdSpan { first_position: 2, first_id: EventId::new(epoch, 2) }];
        let reserved =
            AppendBatch { product_number: 1, first: 2, entries: &[], spans: &spans, holes: &[] };
        file.append(&[reserved], SyncMode::Normal, 1).unwrap();
    }
    let kept = file.find_or_add_product(&product("p")).unwrap().empty_epochs;
    assert_eq!(kept.len(), MAX_EMPTY_EPOCHS);
    assert_eq!(kept.first().map(|kept| kept.epoch), Some(20), "the newest stay");
}

#[test]
fn a_hole_may_grow() {
    let (_directory, mut file) = file_with_product();
    for last in [3, 5] {
        let missing = [Hole { first: 2, last }];
        let lost =
            AppendBatch { product_number: 1, first: 2, entries: &[], spans: &[], holes: &missing };
        file.append(&[lost], SyncMode::Normal, 1).unwrap();
        let kept = file.find_or_add_product(&product("p")).unwrap();
        assert_eq!((kept.newest, kept.holes), (last, missing.to_vec()));
    }
}

#[test]
fn a_write_of_which_a_part_fails_leaves_nothing_behind() {
    let (_directory, mut file) = file_with_product();
    let entries = [event(1, "s", "k", b"abc")];
    let both = [append_batch(1, 1, &entries), append_batch(2, 1, &entries)];
    assert!(matches!(file.append(&both, SyncMode::Normal, 1), Err(FileError::Unavailable { .. })));
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().newest, 0);
    assert!(read_back(file.path(), 1).is_empty());
    file.append_one(1, 1, &entries, 1);
}

#[test]
fn numbers_beyond_the_key_are_refused() {
    let (_directory, mut file) = file_with_product();
    let entries = [event(1, "s", "k", b"abc"), event(2, "s", "k", b"abc")];
    let far = [IdSpan { first_position: 1 << 40, first_id: EventId::new(1, 1) }];
    let lost = [Hole { first: 1, last: u64::MAX }];
    let backwards = [Hole { first: 2, last: 1 }];
    let nothing = AppendBatch { product_number: 1, first: 1, entries: &[], spans: &[], holes: &[] };
    for beyond in [
        append_batch(1, (1 << 40) - 1, &entries),
        append_batch(1, u64::MAX, &entries),
        append_batch(1, 0, &entries),
        append_batch(1 << 22, 1, &entries),
        AppendBatch { spans: &far, ..nothing },
        AppendBatch { holes: &lost, ..nothing },
        AppendBatch { holes: &backwards, ..nothing },
    ] {
        let refused = file.append(&[beyond], SyncMode::Normal, 1);
        assert!(
            matches!(refused, Err(FileError::Unavailable { source: FileFault::Refused(_), .. })),
            "{refused:?}"
        );
    }
    file.append_one(1, (1 << 40) - 2, &entries, 1);
    let last_number = "INSERT INTO products VALUES (4194303, 'last', 0, 0, 0, 0, 0, 0)";
    file.connection.execute(last_number, []).unwrap();
    assert!(matches!(
        file.find_or_add_product(&product("more")),
        Err(FileError::Unavailable { source: FileFault::Refused(_), .. })
    ));
}

#[test]
fn a_file_that_was_not_closed_reports_so_once() {
    let (_directory, path) = temporary_path();
    let file = StoreFile::open(&path).unwrap();
    assert!(!file.was_left_open());
    drop(file);
    let file = StoreFile::open(&path).unwrap();
    assert!(file.was_left_open());
    file.close().unwrap();
    assert!(!StoreFile::open(&path).unwrap().was_left_open());
}

#[test]
fn a_sync_is_recorded() {
    let (_directory, mut file) = file_with_product();
    let synced_at = |file: &StoreFile| {
        file.connection.query_row("SELECT synced_at FROM state", [], |row| row.get(0))
    };
    file.sync(1234).unwrap();
    assert_eq!(synced_at(&file), Ok(1234));
    file.append(&[], SyncMode::Normal, 1235).unwrap();
    assert_eq!(synced_at(&file), Ok(1234));
    file.append(&[], SyncMode::Full, 1236).unwrap();
    assert_eq!(synced_at(&file), Ok(1236));
}

#[test]
fn a_sync_at_the_time_of_the_one_before_reaches_the_disk_too() {
    let (_directory, mut file) = file_with_product();
    let wal = |file: &StoreFile| bytes_of(&file.path).swap_remove(1);
    for _ in 0..3 {
        let before = wal(&file);
        // SQLite does not sync a commit that changes nothing.
        file.sync(5).unwrap();
        assert_ne!(wal(&file), before);
    }
    let path = file.path.clone();
    drop(file);
    let reopened = StoreFile::open(&path).unwrap();
    assert!(
        wal(&reopened).is_some_and(|bytes| !bytes.is_empty()),
        "marking an open file as open is a commit, too"
    );
}

#[test]
fn a_commit_waits_for_the_disk_only_when_requested() {
    let (_directory, mut file) = file_with_product();
    let synchronous_level = |connection: &Connection| {
        connection
            .pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
            .map_err(FileFault::from)
    };
    for (sync, expected) in [(SyncMode::Normal, 1), (SyncMode::Full, 2), (SyncMode::Normal, 1)] {
        assert_eq!(file.in_transaction(sync, synchronous_level).unwrap(), expected);
    }
}

#[test]
fn only_the_owner_may_read_the_files() {
    let (_directory, mut file) = file_with_product();
    file.append_one(1, 1, &[event(1, "s", "k", b"abc")], 1);
    for suffix in FILE_SUFFIXES {
        let mode = fs::metadata(with_suffix(file.path(), suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn setting_aside_keeps_every_byte_and_overwrites_nothing() {
    let (_directory, path) = temporary_path();
    for (round, suffixes) in
        [&FILE_SUFFIXES[..], &FILE_SUFFIXES[..1], &FILE_SUFFIXES[1..2], &FILE_SUFFIXES[..]]
            .into_iter()
            .enumerate()
    {
        for suffix in suffixes {
            fs::write(with_suffix(&path, suffix), format!("{round}{suffix}")).unwrap();
        }
        let aside = set_aside(&path, 99).unwrap();
        assert_eq!(aside, path.with_file_name(format!("relay.db.damaged-{}", 99 + round)));
        assert_eq!(bytes_of(&path), [None, None, None]);
    }
    for (round, suffixes) in
        [&FILE_SUFFIXES[..], &FILE_SUFFIXES[..1], &FILE_SUFFIXES[1..2], &FILE_SUFFIXES[..]]
            .into_iter()
            .enumerate()
    {
        for suffix in FILE_SUFFIXES {
            let mut text = String::new();
            let name = with_suffix(
                &path.with_file_name(format!("relay.db.damaged-{}", 99 + round)),
                suffix,
            );
            let is_there = fs::File::open(name).map(|mut it| it.read_to_string(&mut text)).is_ok();
            assert_eq!(
                is_there.then_some(text),
                suffixes.contains(&suffix).then(|| format!("{round}{suffix}"))
            );
        }
    }
}

#[test]
fn the_view_shows_entries_as_people_read_them() {
    let (_directory, mut file) = file_with_product();
    let id = EventId { epoch: u64::MAX, sequence: 2, suffix: 3 };
    let entries = [
        event(1, "s", "actions", b"{}"),
        event_as(id, 2, "", "k", b"x"),
        gap(3, GapReason::NotKept, None),
    ];
    file.append_one(1, 1, &entries, 1_700_000_000_123);
    let mut statement = file.connection.prepare("SELECT * FROM log").unwrap();
    let columns = ["product", "id", "time", "type", "session", "gap", "payload"];
    assert_eq!(statement.column_names().collect::<Vec<_>>(), columns);
    let rows = statement
        .query_map([], |row| (0..7).map(|column| row.get::<_, Option<String>>(column)).collect());
    let rows: Vec<Vec<Option<String>>> = rows.unwrap().map(Result::unwrap).collect();
    let text = |row: [&str; 7]| row.map(|it| (!it.is_empty()).then(|| it.to_owned())).to_vec();
    let time = "2023-11-14T22:13:20.123Z";
    assert_eq!(rows[0], text(["p", "7-1", time, "actions", "s", "", "{}"]));
    assert_eq!(rows[1], text(["p", "18446744073709551615-2.3", time, "k", "", "", "x"]));
    assert_eq!(rows[2], text(["p", "7-3", time, "", "", "not_kept", ""]));
}

#[test]
fn a_reader_neither_stops_the_writer_nor_sees_half_a_commit() {
    let (_directory, mut file) = file_with_product();
    file.append_one(1, 1, &[event(1, "s", "k", b"a")], 1);
    let reader =
        Connection::open_with_flags(file.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let rows = || reader.query_row("SELECT count(*) FROM entries", [], |row| row.get::<_, i64>(0));
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(rows(), Ok(1));
    file.append_one(1, 2, &[event(2, "s", "k", b"a"), event(3, "s", "k", b"a")], 1);
    assert_eq!(rows(), Ok(1));
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(rows(), Ok(3));
}
