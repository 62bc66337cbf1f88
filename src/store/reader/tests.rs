//! Reads by every path through the indices, their limits, and damage.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    event::{Entry, GapReason, Kind, Scope},
    log::ReadLimits,
    store::sqlite::{
        StoreFile,
        tests::{event, file_with_product, gap, product, visible_facts},
    },
};

fn limits(entries: usize) -> ReadLimits {
    ReadLimits { entries, bytes: usize::MAX }
}

fn only<T: Ord>(values: impl IntoIterator<Item = T>) -> Only<T> {
    Only::These(values.into_iter().collect())
}

fn sessions(names: &[&str]) -> Only<SessionId> {
    only(names.iter().map(|name| SessionId::new(name).unwrap()))
}

fn request_for(sessions: Only<SessionId>, kinds: Only<Kind>, limits: ReadLimits) -> ReadRequest {
    ReadRequest {
        product: product("p"),
        product_number: 1,
        after: 0,
        through: 10_000,
        scope: Scope { sessions, kinds },
        limits,
    }
}

fn stored(entries: &[Entry]) -> (TempDir, StoreFile, StoreReader) {
    let (directory, mut file) = file_with_product();
    file.append_one(1, 1, entries, 1);
    mark_fully_persisted(&file);
    let reader = StoreReader::open(file.path()).unwrap();
    (directory, file, reader)
}

/// Sets the file's newest position beyond every range that a test reads.
fn mark_fully_persisted(file: &StoreFile) {
    let connection = rusqlite::Connection::open(file.path()).unwrap();
    connection.execute("UPDATE products SET newest = 1000000", []).unwrap();
}

fn positions(chunk: &StoredChunk) -> Vec<u64> {
    chunk.entries.iter().map(position_of).collect()
}

fn position_of(entry: &Entry) -> u64 {
    match entry {
        Entry::Event(event) => event.position(),
        Entry::Gap(gap) => gap.position,
        Entry::Erased => panic!("an erased entry has no position"),
    }
}

fn plan(reader: &StoreReader, query: &str) -> String {
    let mut statement = reader.connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
    let parameters = statement.parameter_count();
    let rows = statement
        .query_map(rusqlite::params_from_iter(vec![1; parameters]), |row| row.get::<_, String>(3));
    rows.unwrap().map(Result::unwrap).collect::<Vec<_>>().join("; ")
}

#[test]
fn every_query_follows_an_index() {
    let (_directory, _file, reader) = stored(&[]);
    assert_eq!(
        plan(&reader, SELECT_HEADERS),
        "SEARCH entries USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"
    );
    assert_eq!(plan(&reader, SELECT_HEADER), "SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)");
    assert_eq!(plan(&reader, SELECT_PAYLOAD), "SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)");
    assert_eq!(
        plan(&reader, SELECT_GAP_KEYS),
        "SEARCH entries USING COVERING INDEX gaps (entry>? AND entry<?)"
    );
    let by_session =
        "SEARCH entries USING COVERING INDEX by_session (session=? AND rowid>? AND rowid<?)";
    assert_eq!(plan(&reader, SELECT_SESSION_KEYS), by_session);
}

#[test]
fn a_full_chunk_ends_before_the_next_entry_and_the_last_at_the_end() {
    let (_directory, _file, reader) = stored(&[
        event(1, "s", "k", b"1"),
        Entry::Erased,
        event(3, "s", "k", b"2"),
        event(4, "s", "k", b"3"),
    ]);
    for session_filter in [Only::Everything, sessions(&["s"])] {
        let mut request = request_for(session_filter, Only::Everything, limits(2));
        let chunk = reader.fetch(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1, 3], 3));
        request.limits.entries = 3;
        let chunk = reader.fetch(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1, 3, 4], 10_000));
        request.limits.entries = 1;
        let chunk = reader.fetch(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1], 2));
    }
}

#[test]
fn one_entry_is_returned_however_low_the_limits() {
    let (_directory, _file, reader) = stored(&[event(1, "s", "k", b"1"), event(2, "s", "k", b"2")]);
    for session_filter in [Only::Everything, sessions(&["s"])] {
        let chunk = reader
            .fetch(&request_for(
                session_filter,
                Only::Everything,
                ReadLimits { entries: 0, bytes: 0 },
            ))
            .unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1], 1));
    }
}

#[test]
fn bytes_are_limited_as_they_are_on_the_wire() {
    let entries: Vec<Entry> =
        (1..=3).map(|position| event(position, "s", "k", b"a\nb\nc\nd")).collect();
    let (_directory, _file, reader) = stored(&entries);
    let two = entries[0].wire_bytes() * 2;
    for (bytes, count) in [(two, 2), (two - 1, 1)] {
        let chunk = reader
            .fetch(&request_for(
                Only::Everything,
                Only::Everything,
                ReadLimits { entries: 9, bytes },
            ))
            .unwrap();
        assert_eq!((positions(&chunk).len(), chunk.through), (count, count as u64));
    }
}

#[test]
fn a_long_scan_without_admitted_rows_ends_in_several_chunks() {
    let entries: Vec<Entry> = (1..=3000).map(|position| event(position, "s", "k", b"x")).collect();
    let (_directory, _file, reader) = stored(&entries);
    for session_filter in [Only::Everything, sessions(&["s"])] {
        let mut request = request_for(session_filter, only([Kind::Summary]), limits(5));
        for through in [1024, 2048, 10_000] {
            let chunk = reader.fetch(&request).unwrap();
            assert_eq!((positions(&chunk), chunk.through), (vec![], through));
            request.after = chunk.through;
        }
    }
}

#[test]
fn another_products_entries_are_not_seen() {
    let (_directory, mut file) = file_with_product();
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().product_number, 2);
    file.append_one(2, 1, &[event(1, "s", "k", b"x"), gap(2, GapReason::NotKept, None)], 1);
    mark_fully_persisted(&file);
    let reader = StoreReader::open(file.path()).unwrap();
    for session_filter in [Only::Everything, sessions(&["s"])] {
        for through in [1000, 1_000_000] {
            let request = ReadRequest {
                through,
                ..request_for(session_filter.clone(), Only::Everything, limits(5))
            };
            let chunk = reader.fetch(&request).unwrap();
            assert_eq!((positions(&chunk), chunk.through), (vec![], through));
        }
    }
    let beyond = ReadRequest {
        product_number: 1 << 22,
        ..request_for(Only::Everything, Only::Everything, limits(5))
    };
    assert!(matches!(
        reader.fetch(&beyond),
        Err(FileError::Unavailable { source: FileFault::Refused(_), .. })
    ));
}

#[test]
fn values_that_the_writer_never_writes_are_damage() {
    for change in [
        "session = 'a' || char(10)",
        "session = ''",
        "session = CAST(x'FF' AS TEXT)",
        "kind = NULL",
        "kind = CAST(x'FF' AS TEXT)",
        "payload = NULL",
        "payload = x'610D'",
        "suffix = -1",
        "suffix = 4294967296",
        "gap = 'whatever'",
        "gap = 'evicted', after = CAST(x'FF' AS TEXT)",
    ] {
        let (_directory, file, reader) = stored(&[event(1, "s", "k", b"x")]);
        file.connection().execute(&format!("UPDATE entries SET {change}"), []).unwrap();
        let error =
            reader.fetch(&request_for(Only::Everything, Only::Everything, limits(5))).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{change}: {error:?}");
    }
}

#[test]
fn a_page_that_is_overwritten_is_found() {
    let entries: Vec<Entry> =
        (1..=500).map(|position| event(position, "s", "k", &[b'x'; 500])).collect();
    let (_directory, file, reader) = stored(&entries);
    reader.check().unwrap();
    drop(reader);
    let path = file.path().to_owned();
    file.close().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 8192 * 8192;
    bytes[middle..middle + 8192].fill(b'#');
    std::fs::write(&path, bytes).unwrap();
    let reader = StoreReader::open(&path).unwrap();
    assert!(matches!(reader.check(), Err(FileError::Damaged { source: FileFault::Damage(_), .. })));
    let error =
        reader.fetch(&request_for(Only::Everything, Only::Everything, limits(1000))).unwrap_err();
    assert!(matches!(error, FileError::Damaged { source: FileFault::Sqlite(_), .. }), "{error:?}");
}

#[test]
fn payloads_that_are_not_admitted_are_not_read() {
    let entries = [event(1, "s", "big", &vec![b'x'; 100_000]), event(2, "s", "small", b"x")];
    let (_directory, file, reader) = stored(&entries);
    drop(reader);
    let path = file.path().to_owned();
    file.close().unwrap();
    // With a broken chain of overflow pages, reading the first payload fails.
    let bytes: Vec<u8> = std::fs::read(&path).unwrap();
    let overflows =
        bytes.chunks(8192).position(|page| page[4..].iter().all(|it| *it == b'x')).unwrap();
    let mut broken = bytes;
    broken[overflows * 8192..overflows * 8192 + 4].fill(0xFF);
    std::fs::write(&path, broken).unwrap();
    let reader = StoreReader::open(&path).unwrap();
    for session_filter in [Only::Everything, sessions(&["s"])] {
        let chunk = reader
            .fetch(&request_for(session_filter.clone(), only([Kind::new("small")]), limits(5)))
            .unwrap();
        assert_eq!(positions(&chunk), [2]);
        assert!(
            reader
                .fetch(&request_for(session_filter, only([Kind::new("big")]), limits(5)))
                .is_err()
        );
    }
}

#[test]
fn a_reader_can_be_interrupted_and_used_again() {
    let (_directory, _file, reader) = stored(&[event(1, "s", "k", b"x")]);
    let interrupt = reader.interrupt_handle();
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        // Repeated, because an interrupt before the query does nothing.
        scope.spawn(move || {
            while stopped
                .recv_timeout(std::time::Duration::from_millis(1))
                .is_err_and(|it| it.to_string().contains("timed"))
            {
                interrupt.interrupt();
            }
        });
        assert!(reader.connection.query_row(endless, [], |row| row.get::<_, i64>(0)).is_err());
        drop(stop);
    });
    assert_eq!(
        positions(
            &reader.fetch(&request_for(Only::Everything, Only::Everything, limits(5))).unwrap()
        ),
        [1]
    );
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn any_entry() -> impl Strategy<Value = Option<(Option<usize>, usize, usize)>> {
    // `None` is an erased position; a gap has no session and no kind.
    prop_oneof![
        1 => Just(None),
        1 => Just(Some((None, usize::MAX, 0))),
        8 => (proptest::option::weighted(0.8, 0..4_usize), 0..3_usize, 0..300_usize)
            .prop_map(|(session, kind, bytes)| Some((session, kind, bytes))),
    ]
}

fn any_of(values: usize) -> impl Strategy<Value = Option<BTreeSet<usize>>> {
    proptest::option::of(proptest::collection::btree_set(0..values, 0..values))
}

fn drawn_entry(position: u64, drawn: Option<(Option<usize>, usize, usize)>) -> Entry {
    match drawn {
        None => Entry::Erased,
        Some((_, usize::MAX, _)) => gap(position, GapReason::UpstreamReconnect, Some("1-1")),
        Some((session, kind, bytes)) => {
            let payload = vec![b"x\n"[kind % 2]; bytes];
            event(position, session.map_or("", |it| NAMES[it]), NAMES[kind], &payload)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn paging_gives_what_the_scope_admits_once_and_in_order(
        drawn in proptest::collection::vec(any_entry(), 0..80),
        of in any_of(4),
        kinds in any_of(3),
        entry_limit in 0..12_usize,
        byte_limit in prop_oneof![Just(usize::MAX), 0..2000_usize],
        after in 0..20_u64,
        beyond in 0..90_u64,
    ) {
        let entries: Vec<Entry> = (1..).zip(drawn).map(|(position, drawn)| drawn_entry(position, drawn)).collect();
        let (_directory, _file, reader) = stored(&entries);
        let sessions = of.map_or(Only::Everything, |of| only(of.iter().map(|it| SessionId::new(NAMES[*it]).unwrap())));
        let kinds = kinds.map_or(Only::Everything, |kinds| only(kinds.iter().map(|it| Kind::new(NAMES[*it]))));
        let limits = ReadLimits { entries: entry_limit, bytes: byte_limit };
        let mut request = ReadRequest { after, through: after + 1 + beyond, ..request_for(sessions, kinds, limits) };
        let in_range = |position: u64| request.after < position && position <= request.through;
        let is_expected = |(position, it): &(u64, &Entry)| in_range(*position) && request.scope.admits(it);
        let expected: Vec<String> = (1..).zip(&entries).filter(is_expected).map(|(_, it)| visible_facts(it)).collect();
        let mut read = Vec::new();
        while request.after < request.through {
            let chunk = reader.fetch(&request).unwrap();
            let bytes: usize = chunk.entries.iter().map(Entry::wire_bytes).sum();
            prop_assert!(chunk.entries.len() <= entry_limit.max(1));
            prop_assert!(bytes <= byte_limit || chunk.entries.len() == 1);
            prop_assert!(request.after < chunk.through && chunk.through <= request.through);
            read.extend(chunk.entries);
            prop_assert!(read.iter().all(|it| position_of(it) <= chunk.through));
            request.after = chunk.through;
        }
        prop_assert_eq!(read.iter().map(visible_facts).collect::<Vec<_>>(), expected);
    }
}
