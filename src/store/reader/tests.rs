//! Reads by every path through the indices, their limits, and damage.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    event::{Entry, EventId, GapReason, Kind, Scope, SessionId},
    log::{DamagedEvent, DamagedRow, ReadLimits},
    store::sqlite::{
        StoreFile,
        tests::{event, file_with_product, gap, product, visible_facts},
    },
};

impl StoreReader {
    /// Reads with the indices.
    fn read(&self, request: &ReadRequest) -> Result<StoredChunk, FileError> {
        self.fetch(request, Indices::Trusted)
    }
}

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
        scope: Scope { sessions, users: Only::Everything, kinds },
        limits,
    }
}

fn stored(entries: &[Entry]) -> (TempDir, StoreFile, StoreReader) {
    stored_with_tail(entries, &[])
}

/// Returns a file whose session index has the first of these entries and not the others.
fn stored_with_tail(indexed: &[Entry], tail: &[Entry]) -> (TempDir, StoreFile, StoreReader) {
    let (directory, mut file) = file_with_product();
    file.append_one(1, 1, indexed, 1);
    if tail.is_empty() {
        mark_fully_persisted(&file);
        assert_eq!(file.index_names().ok(), Some(false));
    } else {
        assert_eq!(file.index_names().ok(), Some(false));
        file.append_one(1, indexed.len() as u64 + 1, tail, 1);
        mark_fully_persisted(&file);
    }
    let reader = StoreReader::open(file.path()).unwrap();
    (directory, file, reader)
}

/// Sets the file's newest position beyond every range that a test reads.
fn mark_fully_persisted(file: &StoreFile) {
    let connection = rusqlite::Connection::open(file.path()).unwrap();
    connection.execute("UPDATE products SET newest = 1000000", []).unwrap();
    schema::configure(&connection, 0).unwrap();
    let empty = "INSERT INTO erased \
         SELECT number, last + 1, 1000000, row_sum(number, last + 1, 1000000) FROM ( \
             SELECT number, max( \
                 ifnull((SELECT max(entry) & 0xFFFFFFFFFF FROM entries WHERE entry >> 40 = number), 0), \
                 ifnull((SELECT max(last) FROM erased WHERE product = number), 0) \
             ) AS last FROM products)";
    connection.execute(empty, []).unwrap();
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
    assert_eq!(plan(&reader, SELECT_HEADERS), "SEARCH entries USING INTEGER PRIMARY KEY (rowid>?)");
    assert_eq!(plan(&reader, SELECT_HEADER), "SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)");
    assert_eq!(plan(&reader, SELECT_PAYLOAD), "SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)");
    assert_eq!(
        plan(&reader, SELECT_GAP_KEYS),
        "SEARCH entries USING COVERING INDEX gaps (entry>? AND entry<?)"
    );
    let by_session = "SEARCH session_index USING PRIMARY KEY (session=? AND entry>? AND entry<?)";
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
        let chunk = reader.read(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1, 3], 3));
        request.limits.entries = 3;
        let chunk = reader.read(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1, 3, 4], 10_000));
        request.limits.entries = 1;
        let chunk = reader.read(&request).unwrap();
        assert_eq!((positions(&chunk), chunk.through), (vec![1], 2));
    }
}

#[test]
fn one_entry_is_returned_however_low_the_limits() {
    let (_directory, _file, reader) = stored(&[event(1, "s", "k", b"1"), event(2, "s", "k", b"2")]);
    for session_filter in [Only::Everything, sessions(&["s"])] {
        let chunk = reader
            .read(&request_for(
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
    let two = entries[0].encoded_len() * 2;
    for (bytes, count) in [(two, 2), (two - 1, 1)] {
        let chunk = reader
            .read(&request_for(
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
            let chunk = reader.read(&request).unwrap();
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
            let chunk = reader.read(&request).unwrap();
            assert_eq!((positions(&chunk), chunk.through), (vec![], through));
        }
    }
    let beyond = ReadRequest {
        product_number: 1 << 22,
        ..request_for(Only::Everything, Only::Everything, limits(5))
    };
    assert!(matches!(
        reader.read(&beyond),
        Err(FileError::Unavailable { source: FileFault::Refused(_), .. })
    ));
}

/// Reads a range chunk by chunk, and returns the entries and the damaged rows.
fn read_all(
    reader: &StoreReader,
    mut request: ReadRequest,
) -> Result<(Vec<Entry>, Vec<DamagedRow>), FileError> {
    let (mut entries, mut damaged) = (Vec::new(), Vec::new());
    while request.after < request.through {
        let chunk = reader.read(&request)?;
        assert!(chunk.damaged.is_none() || chunk.entries.is_empty());
        entries.extend(chunk.entries);
        let passed = chunk.damaged.as_ref().map_or(chunk.through, |row| row.position);
        assert!(passed > request.after, "no progress");
        request.after = passed;
        damaged.extend(chunk.damaged);
    }
    Ok((entries, damaged))
}

fn five_events() -> Vec<Entry> {
    (1..=5)
        .map(|it| event(it, &format!("s{it}"), "k", format!("payload {it}").as_bytes()))
        .collect()
}

fn everything() -> ReadRequest {
    request_for(Only::Everything, Only::Everything, limits(100))
}

#[test]
fn a_changed_column_is_a_damaged_row_and_the_others_are_read() {
    for change in [
        "epoch = 8",
        "sequence = 4",
        "suffix = 1",
        "kept_at = 2",
        "gap = 'evicted'",
        "after_or_user = 'u'",
        "after_or_user = NULL",
        "kind = 'K'",
        "session = 's4'",
        "session = NULL",
        "head_sum = head_sum + 1",
        "payload_sum = payload_sum + 1",
        "payload = x'7061796c6f61642034'",
        "payload = NULL",
        "payload = x'FF'",
        "entry = entry", // the control
    ] {
        let (_directory, file, reader) = stored(&five_events());
        let update = format!("UPDATE entries SET {change} WHERE entry & 0xFFFF = 3");
        assert_eq!(file.connection().execute(&update, []), Ok(1));
        let (entries, damaged) = read_all(&reader, everything()).unwrap();
        let rest: Vec<_> = entries.iter().map(position_of).collect();
        if change == "entry = entry" {
            assert_eq!((rest, damaged), (vec![1, 2, 3, 4, 5], vec![]));
            continue;
        }
        assert_eq!(rest, [1, 2, 4, 5], "{change}");
        let event = change.starts_with("payload").then(|| DamagedEvent {
            id: EventId::new(7, 3),
            kind: Kind::new("k"),
            session: SessionId::new("s3").ok(),
        });
        assert_eq!(damaged, [DamagedRow { first: 3, position: 3, event }], "{change}");
    }
}

#[test]
fn a_row_with_all_columns_of_another_row_is_damaged() {
    let (_directory, file, reader) = stored(&five_events());
    let copy = "UPDATE entries AS it SET \
                (epoch, sequence, kind, session, head_sum, payload_sum, payload) = \
                (SELECT epoch, sequence, kind, session, head_sum, payload_sum, payload \
                 FROM entries WHERE entry = it.entry + 1) WHERE entry & 0xFFFF = 2";
    assert_eq!(file.connection().execute(copy, []), Ok(1));
    let (entries, damaged) = read_all(&reader, everything()).unwrap();
    assert_eq!(entries.iter().map(position_of).collect::<Vec<_>>(), [1, 3, 4, 5]);
    assert_eq!(damaged, [DamagedRow { first: 2, position: 2, event: None }]);
}

#[test]
fn a_reader_that_is_not_meant_does_not_hear_of_a_damaged_payload() {
    let (_directory, file, reader) = stored(&five_events());
    file.connection()
        .execute("UPDATE entries SET payload = x'20' WHERE session = 's3'", [])
        .unwrap();
    for (filter, is_meant) in [
        (Scope { sessions: sessions(&["s3"]), ..Scope::EVERYTHING }, true),
        (Scope { sessions: sessions(&["s2"]), ..Scope::EVERYTHING }, false),
        (Scope { kinds: only([Kind::new("other")]), ..Scope::EVERYTHING }, false),
    ] {
        for through in [4, 10_000] {
            let request = ReadRequest { scope: filter.clone(), through, ..everything() };
            let (_, damaged) = read_all(&reader, request).unwrap();
            assert_eq!(!damaged.is_empty(), is_meant, "{filter:?}");
        }
    }
}

#[test]
fn a_damaged_payload_ends_the_chunk_before_a_later_row_condemns_the_file() {
    for payload in ["x'20'", "x'0D'"] {
        let (_directory, file, reader) = stored(&five_events());
        let change = |change: &str| file.connection().execute(change, []).unwrap();
        change(&format!("UPDATE entries SET payload = {payload} WHERE entry & 0xFFFF = 2"));
        change("UPDATE entries SET kind = NULL WHERE entry & 0xFFFF = 4");
        change(concat!("UPDATE entries SET head_sum = ", entry_sum!()));
        let read = |after| {
            reader.fetch(&ReadRequest { after, through: 5, ..everything() }, Indices::Trusted)
        };
        let first = read(0).unwrap();
        assert_eq!((positions(&first), first.through, first.damaged), (vec![1], 1, None));
        let second = read(1).unwrap();
        assert_eq!((positions(&second), second.through), (vec![], 1));
        assert_eq!(second.damaged.map(|row| row.position), Some(2));
        assert!(matches!(read(2), Err(FileError::Damaged { .. })));
    }
}

#[test]
fn a_row_under_a_key_behind_the_range_hides_no_row_in_silence() {
    let (_directory, file, reader) = stored(&five_events());
    let request = || ReadRequest { through: 4, ..everything() };
    assert_eq!(read_all(&reader, request()).unwrap().0.len(), 4, "row 5 lies behind the range");
    let change = |change: &str| file.connection().execute(change, []).unwrap();
    change("UPDATE entries SET kind = 'K' WHERE entry & 0xFFFF = 5");
    assert_eq!(read_all(&reader, request()).unwrap().0.len(), 4, "no matter of this range");
    change("UPDATE entries SET entry = entry + 100 WHERE entry & 0xFFFF = 3");
    change("DELETE FROM entries WHERE entry & 0xFFFF IN (4, 5)");
    let (entries, damaged) = read_all(&reader, request()).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(damaged, [DamagedRow { first: 3, position: 4, event: None }]);
}

#[test]
fn rows_that_are_gone_are_told_and_erased_positions_are_not() {
    let mut entries: Vec<Entry> = (1..=9).map(|it| event(it, "s", "k", b"x")).collect();
    entries[4] = Entry::Erased;
    let (_directory, file, reader) = stored(&entries);
    let of_session = || request_for(sessions(&["s"]), Only::Everything, limits(100));
    let read = |request: ReadRequest, indices| {
        let (mut after, mut missing) = (request.after, Vec::new());
        while after < 9 {
            let request = ReadRequest { after, through: 9, ..request.clone() };
            let chunk = reader.fetch(&request, indices).unwrap();
            after = chunk.damaged.as_ref().map_or(chunk.through, |row| row.position);
            missing.extend(chunk.damaged.map(|row| (row.first, row.position)));
        }
        missing
    };
    for (delete, missing) in [
        ("entry = 0", vec![]),
        ("entry & 0xFF = 1", vec![(1, 1)]),
        ("entry & 0xFF = 9", vec![(1, 1), (9, 9)]),
        ("entry & 0xFF IN (4, 6, 7)", vec![(1, 1), (4, 4), (6, 7), (9, 9)]),
    ] {
        file.connection().execute(&format!("DELETE FROM entries WHERE {delete}"), []).unwrap();
        assert_eq!(read(everything(), Indices::Trusted), missing);
        assert_eq!(read(of_session(), Indices::Unchecked), missing);
        assert_eq!(reader.compare_row_counts().unwrap(), missing.is_empty());
    }
    file.connection().execute("UPDATE erased SET sum = sum + 1 WHERE first = 5", []).unwrap();
    assert_eq!(read(everything(), Indices::Trusted), [(1, 1), (4, 7), (9, 9)], "damaged, too");
}

#[test]
fn an_index_that_leaves_out_a_row_is_found_and_not_used_before() {
    for (index, is_gap) in [("session_index", false), ("gaps", true)] {
        let entry =
            if is_gap { gap(2, GapReason::Evicted, None) } else { event(2, "s", "k", b"x") };
        let (_directory, file, reader) = stored(&[event(1, "s", "k", b"x"), entry]);
        assert_eq!(reader.check_indices(0).unwrap(), None);
        drop(reader);
        empty_index(file.path(), index);
        let reader = StoreReader::open(file.path()).unwrap();
        let error = reader.check_indices(0).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{index}: {error:?}");
        let request = request_for(sessions(&["s"]), Only::Everything, limits(100));
        let trusted = reader.fetch(&request, Indices::Trusted).map(|it| positions(&it));
        assert_ne!(trusted.unwrap_or_default(), [1, 2], "the index is damaged");
        assert_eq!(positions(&reader.fetch(&request, Indices::Unchecked).unwrap()), [1, 2]);
    }
}

/// Makes an index leave out all rows; one of SQLite's by rewriting its definition for a moment.
fn empty_index(path: &Path, index: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    if index == "session_index" {
        connection.execute("DELETE FROM session_index", []).unwrap();
        return;
    }
    let sql: String = connection
        .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [index], |row| row.get(0))
        .unwrap();
    let empty = sql.split(" WHERE ").next().unwrap().to_owned() + " WHERE entry < 0";
    connection
        .execute_batch(&format!("DROP INDEX {index}; {empty}; PRAGMA writable_schema = 1"))
        .unwrap();
    connection.execute("UPDATE sqlite_schema SET sql = ?2 WHERE name = ?1", [index, &sql]).unwrap();
}

#[test]
fn no_flipped_byte_of_a_page_of_rows_is_served() {
    let written: Vec<_> = five_events().iter().map(visible_facts).collect();
    let (_directory, file, reader) = stored(&five_events());
    drop(reader);
    let path = file.path().to_owned();
    file.close().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let is_rows = |page: &[u8]| page[0] == 13 && page.windows(9).any(|it| it == b"payload 3");
    let page = bytes.chunks(8192).position(is_rows).unwrap();
    // Cells grow from the end of the page towards its header.
    let cells =
        bytes[(page + 1) * 8192 - 8192..].windows(9).position(|it| it == b"payload 5").unwrap()
            - 120;
    let mut served_less = 0;
    for offset in page * 8192 + cells..(page + 1) * 8192 {
        for flip in [0x01, 0x80] {
            let mut damaged_bytes = bytes.clone();
            damaged_bytes[offset] ^= flip;
            std::fs::write(&path, &damaged_bytes).unwrap();
            let reader = StoreReader::open(&path).unwrap();
            let all = ["s1", "s2", "s3", "s4", "s5"];
            for (session_filter, entries) in
                [(Only::Everything, 100), (Only::Everything, 1), (sessions(&all), 100)]
            {
                let request = request_for(session_filter, Only::Everything, limits(entries));
                // Otherwise the whole file is set aside.
                let Ok((entries, damaged)) = read_all(&reader, request) else { continue };
                for entry in &entries {
                    let facts = visible_facts(entry);
                    assert_eq!(facts, written[position_of(entry) as usize - 1], "byte {offset}");
                }
                let seen: Vec<_> = entries.iter().map(position_of).collect();
                assert!(
                    entries.len() as u64
                        + damaged.iter().map(|it| it.position - it.first + 1).sum::<u64>()
                        >= 5,
                    "byte {offset}: a row is gone in silence, read {seen:?} and {damaged:?}"
                );
                served_less += usize::from(entries.len() < 5);
            }
        }
    }
    assert!(served_less > 100, "flips within rows are found one by one: {served_less}");
}

#[test]
fn values_that_the_writer_never_writes_are_damage_even_under_their_checksum() {
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
        "gap = 'evicted', after_or_user = CAST(x'FF' AS TEXT)",
        "after_or_user = CAST(x'FF' AS TEXT)",
        "after_or_user = 'a' || char(10)",
    ] {
        let (_directory, file, reader) = stored(&[event(1, "s", "k", b"x")]);
        file.connection().execute(&format!("UPDATE entries SET {change}"), []).unwrap();
        let sums = concat!(
            "UPDATE entries SET payload_sum = row_sum(entry, payload), head_sum = ",
            entry_sum!()
        );
        file.connection().execute(sums, []).unwrap();
        let error = reader.read(&everything()).unwrap_err();
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
        reader.read(&request_for(Only::Everything, Only::Everything, limits(1000))).unwrap_err();
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
            .read(&request_for(session_filter.clone(), only([Kind::new("small")]), limits(5)))
            .unwrap();
        assert_eq!(positions(&chunk), [2]);
        assert!(
            reader.read(&request_for(session_filter, only([Kind::new("big")]), limits(5))).is_err()
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
            &reader.read(&request_for(Only::Everything, Only::Everything, limits(5))).unwrap()
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
        indexed in 0..100_usize,
    ) {
        let entries: Vec<Entry> = (1..).zip(drawn).map(|(position, drawn)| drawn_entry(position, drawn)).collect();
        let (indexed, tail) = entries.split_at(indexed.min(entries.len()));
        let (_directory, _file, reader) = stored_with_tail(indexed, tail);
        let sessions = of.map_or(Only::Everything, |of| only(of.iter().map(|it| SessionId::new(NAMES[*it]).unwrap())));
        let kinds = kinds.map_or(Only::Everything, |kinds| only(kinds.iter().map(|it| Kind::new(NAMES[*it]))));
        let limits = ReadLimits { entries: entry_limit, bytes: byte_limit };
        let mut request = ReadRequest { after, through: after + 1 + beyond, ..request_for(sessions, kinds, limits) };
        let in_range = |position: u64| request.after < position && position <= request.through;
        let is_expected = |(position, it): &(u64, &Entry)| in_range(*position) && request.scope.admits(it);
        let expected: Vec<String> = (1..).zip(&entries).filter(is_expected).map(|(_, it)| visible_facts(it)).collect();
        let mut read = Vec::new();
        while request.after < request.through {
            let chunk = reader.read(&request).unwrap();
            let bytes: usize = chunk.entries.iter().map(Entry::encoded_len).sum();
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
