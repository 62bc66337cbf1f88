//! Files of every released version of the schema, each written by the relay of that time, and how
//! they become files of the newest.

use super::{
    session_index::{indexed_users, of_user, replay, replay_of},
    *,
};
use crate::store::{DeadLetterState, sqlite::tests::session_index::indexed};

/// Files of the released versions, in order. All have the same content; that of version 3 has a
/// further product, whose payloads name users.
const RELEASED: [&[u8]; 3] = [
    include_bytes!("../../../../tests/data/store/schema-1.db"),
    include_bytes!("../../../../tests/data/store/schema-2.db"),
    include_bytes!("../../../../tests/data/store/schema-3.db"),
];

/// Returns a copy of the file of a released version.
fn released(bytes: &[u8]) -> (TempDir, PathBuf) {
    let (directory, path) = temporary_path();
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn main_product() -> ProductId {
    ProductId::new("prod_abc").unwrap()
}

/// Positions of the session `a` in these files, and those of `b`.
fn positions_of(name: &str) -> Vec<u64> {
    let absent = [7, 11, 13, 17, 19];
    match name {
        "a" => (1..=40).filter(|it| it % 2 == 0 || *it == 19).collect(),
        _ => (1..=40).filter(|it| it % 2 == 1 && !absent.contains(it)).collect(),
    }
}

#[test]
fn every_released_version_but_the_newest_has_a_file_here() {
    assert_eq!(RELEASED.len() + 1, schema::NEWEST_VERSION);
    for (version, bytes) in (1..).zip(RELEASED) {
        let (_directory, path) = released(bytes);
        let identity = schema::identify(&Connection::open(&path).unwrap()).unwrap();
        assert_eq!(identity, schema::SchemaIdentity::Ours(version));
    }
}

#[test]
fn the_file_of_every_released_version_is_opened_with_all_that_it_has() {
    for bytes in RELEASED {
        let (_directory, path) = released(bytes);
        let mut file = StoreFile::open(&path).unwrap();
        let product = file.find_or_add_product(&main_product()).unwrap();
        assert_eq!((product.product_number, product.newest, product.evicted_through), (1, 40, 0));
        assert_eq!((product.events, product.spans.len()), (38, 1));
        let other = file.find_or_add_product(&ProductId::new("q").unwrap()).unwrap();
        assert_eq!((other.events, &*other.holes), (2, &[Hole { first: 3, last: 5 }][..]));
        let webhook = &file.webhooks().unwrap()[0];
        assert_eq!((webhook.position, webhook.owed[0].delivery.position), (40, 12));
        let dead = file.dead_letters("w", DeadLetterState::Dead, None, 9).unwrap();
        assert_eq!(&*dead[0].1.payload, b"{}");
        for name in ["a", "b"] {
            let unindexed = replay(&path, name, 0, Indices::Unchecked);
            assert_eq!(unindexed, positions_of(name), "before the index is copied");
        }
        file.append_one(1, 41, &[event(41, "a", "actions", b"{}")], 1);
        while file.index_names().unwrap() {}
        let mut of_a = positions_of("a");
        of_a.push(41);
        assert_eq!(replay(&path, "a", 0, Indices::Trusted), of_a);
        assert_eq!(replay(&path, "b", 0, Indices::Trusted), positions_of("b"));
        assert_is_newest(file);
    }
}

/// Positions of the user `u` in the product of the file of version 3 that has users. Of the newest
/// five events neither index had any.
const OF_U: [u64; 15] = [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35];

/// Returns a copy of the file of version 3 whose product with users is the first.
fn released_with_users() -> (TempDir, PathBuf) {
    let (directory, path) = released(RELEASED[2]);
    let connection = Connection::open(&path).unwrap();
    checksum::register(&connection).unwrap();
    let swap = "DELETE FROM entries WHERE entry >> 40 < 3;
        DELETE FROM session_index; DELETE FROM spans WHERE product < 3; DELETE FROM missing;
        DELETE FROM erased; DELETE FROM dead_letters; DELETE FROM owed; DELETE FROM webhooks;
        DELETE FROM indexed_through WHERE product < 3; DELETE FROM products WHERE number < 3;
        UPDATE entries SET entry = entry - (2 << 40);
        UPDATE entries SET payload_sum = row_sum(entry, payload),
            head_sum = row_sum(entry, epoch, sequence, suffix, kept_at, gap, after, kind, session);
        UPDATE products SET number = 1;
        UPDATE products SET sum = row_sum(number, id, newest, evicted_through, events, bytes, highest_epoch);
        UPDATE indexed_through SET product = 1, sum = row_sum(1, position);
        INSERT INTO session_index SELECT session, entry FROM entries
            WHERE session IS NOT NULL AND entry & 0xFF <= 30";
    connection.execute_batch(swap).unwrap();
    (directory, path)
}

#[test]
fn the_users_of_rows_of_a_former_version_are_read_from_their_payloads() {
    let (_directory, path) = released_with_users();
    let mut file = StoreFile::open(&path).unwrap();
    let of = |name: &str, indices| replay_of(&path, &of_user(name), 0, indices);
    assert!(file.look_for_unindexed_rows().unwrap());
    assert_eq!(of("u", Indices::Unchecked), OF_U, "before they are in the index");
    assert_eq!(of("inner", Indices::Unchecked), [0_u64; 0], "the payload's own user alone");
    file.append_one(1, 36, &[event(36, "b/u", "actions", b"{}")], 1);
    while file.index_names().unwrap() {}
    let reader = StoreReader::open(&path).unwrap();
    check_indices(&reader).unwrap();
    let mut all = OF_U.to_vec();
    all.push(36);
    for indices in [Indices::Trusted, Indices::Unchecked] {
        assert_eq!(of("u", indices), all, "{indices:?}");
        assert_eq!(of("v", indices).len(), 10, "{indices:?}");
    }
    file.repair().unwrap();
    assert_eq!(of("u", Indices::Trusted), all, "made anew from the rows");
    let u = UserId::new("u").unwrap();
    for indices in [Indices::Trusted, Indices::Unchecked] {
        let traces = file.traces_of(1, &u, indices).unwrap();
        let sessions: Vec<_> = traces.sessions.iter().map(|it| it.as_str()).collect();
        assert_eq!((sessions, traces.positions), (vec!["a", "b"], [30].into()), "{indices:?}");
    }
    assert_eq!(file.erase(1, &of_user("u"), 0, Indices::Trusted).unwrap().events, 16);
    file.assert_counters_fit("users");
    assert_eq!(of("u", Indices::Unchecked), [0_u64; 0]);
    check_indices(&reader).unwrap();
    while file.retire(2, u64::MAX, 9).unwrap().is_some() {}
    let left = "SELECT (SELECT count(*) FROM user_index) + (SELECT count(*) FROM session_index)";
    assert_eq!(file.connection.query_row(left, [], |row| row.get(0)), Ok(0));
}

#[test]
fn a_user_is_erased_from_rows_of_a_former_version_before_they_are_read() {
    let (_directory, path) = released_with_users();
    let mut file = StoreFile::open(&path).unwrap();
    assert_eq!(file.erase(1, &of_user("u"), 0, Indices::Unchecked).unwrap().events, 15);
    while file.index_names().unwrap() {}
    assert_eq!(replay_of(&path, &of_user("u"), 0, Indices::Trusted), [0_u64; 0]);
    assert_eq!(replay_of(&path, &of_user("v"), 0, Indices::Trusted).len(), 10);
    file.assert_counters_fit("users");
}

#[test]
fn a_damaged_payload_of_a_former_version_is_a_gap_for_readers_of_users() {
    for is_indexed in [false, true] {
        let (_directory, path) = released_with_users();
        let mut file = StoreFile::open(&path).unwrap();
        if is_indexed {
            while file.index_names().unwrap() {}
        }
        // The long one, and a short one.
        let change = "UPDATE entries SET payload = replace(CAST(payload AS TEXT), '\"u\"', '\"w\"') \
                      WHERE entry & 0xFF IN (15, 18)";
        let change =
            change.replace("replace(", "CAST(replace(").replace("'\"w\"')", "'\"w\"') AS BLOB)");
        assert_eq!(file.connection.execute(&change, []), Ok(2));
        let reader = StoreReader::open(&path).unwrap();
        let mut request = ReadRequest {
            product: product("users"),
            product_number: 1,
            after: 0,
            through: 35,
            scope: Scope {
                users: Only::These([UserId::new("u").unwrap()].into()),
                ..Scope::EVERYTHING
            },
            limits: ReadLimits { entries: 100, bytes: usize::MAX },
        };
        let indices = if is_indexed { Indices::Trusted } else { Indices::Unchecked };
        let mut damaged = Vec::new();
        while request.after < request.through {
            let chunk = reader.fetch(&request, indices).unwrap();
            damaged.extend(chunk.damaged.iter().map(|row| row.position));
            request.after = chunk.damaged.map_or(chunk.through, |row| row.position);
        }
        assert_eq!(damaged, [15, 18], "indexed: {is_indexed}");
    }
}

/// Checks that the file is as one that was begun with the newest version.
fn assert_is_newest(file: StoreFile) {
    let path = file.path().to_owned();
    let reader = StoreReader::open(&path).unwrap();
    reader.check().unwrap();
    check_indices(&reader).unwrap();
    drop(reader);
    file.close().unwrap();
    let file = StoreFile::open(&path).unwrap();
    let (_directory, fresh) = file_with_product();
    assert_eq!(schema_of(&file), schema_of(&fresh));
    assert!(!file.look_for_unindexed_rows().unwrap());
}

/// Looks for all rows in the indices.
fn check_indices(reader: &StoreReader) -> Result<(), FileError> {
    let mut after = Some(0);
    while let Some(last) = after {
        after = reader.check_indices(last)?;
    }
    Ok(())
}

fn schema_of(file: &StoreFile) -> Vec<(String, Option<String>)> {
    let mut objects =
        file.connection.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
    let objects = objects.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    objects.map(Result::unwrap).collect()
}

/// Writes a file of version 2 with `rows` events of ten sessions and seven users.
fn write_version_2(path: &Path, rows: u64) {
    let mut former = Connection::open(path).unwrap();
    former.pragma_update(None, "page_size", 8192).unwrap();
    former.pragma_update(None, "journal_mode", "WAL").unwrap();
    checksum::register(&former).unwrap();
    schema::migrate(&mut former, 0, &migrations::MIGRATIONS[..2]).unwrap();
    let fill = format!(
        "INSERT INTO products VALUES (1, 'p', {rows}, 0, {rows}, {rows} * 19, 7, \
             row_sum(1, 'p', {rows}, 0, {rows}, {rows} * 19, 7));
         INSERT INTO spans VALUES (1, 1, 7, 1, 0, row_sum(1, 1, 7, 1, 0));
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO entries SELECT key, 7, i, 0, 5, NULL, NULL, 'k', 's' || (i % 10), \
             row_sum(key, 7, i, 0, 5, NULL, NULL, 'k', 's' || (i % 10)), row_sum(key, payload), payload \
             FROM (SELECT i, 1 << 40 | i AS key, CAST('{{\"user_id\":\"u' || (i % 7) || '\"}}' AS BLOB) AS payload FROM n);"
    );
    former.execute_batch(&fill).unwrap();
}

#[test]
fn the_former_index_is_copied_in_steps_between_which_the_store_does_its_other_work() {
    let (_directory, path) = temporary_path();
    write_version_2(&path, 9000);
    let mut file = StoreFile::open(&path).unwrap();
    let (mut newest, mut steps, mut copied, mut read) = (9000, 0, 0, 0);
    assert_eq!(indexed(&file).len(), 0, "opening copies nothing");
    while file.index_names().unwrap() {
        (newest, steps) = (newest + 1, steps + 1);
        let now_copied = indexed(&file).len();
        assert!(now_copied <= copied + 2050, "a small step");
        let now_read = indexed_users(&file).len();
        assert!(now_read <= read + 2048, "a small step");
        read = now_read.max(read);
        match steps {
            1 => assert!(file.retire(6, 1, 9).unwrap().is_some()),
            2 => {
                assert!(
                    file.erase(1, &of_session("s7"), 0, Indices::Unchecked).unwrap().events > 800
                );
            }
            // Ended in between, and begun anew.
            3 => {
                file.abandon();
                file = StoreFile::open(&path).unwrap();
            }
            _ => assert!(file.look_for_unindexed_rows().unwrap()),
        }
        copied = indexed(&file).len().max(copied);
        file.append_one(1, newest, &[event(newest, "s1", "k", b"x")], 9);
    }
    assert!(steps >= 5, "{steps}");
    let listed = |name: &str, table: &str| -> String {
        let query = format!(
            "SELECT group_concat(it) FROM (SELECT entry || {name} AS it FROM {table} ORDER BY entry)"
        );
        file.connection.query_row(&query, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(listed("session", "session_index"), listed("session", "entries"));
    assert_eq!(listed("user", "user_index"), listed("payload_user(payload)", "entries"));
    assert_is_newest(file);
}

#[test]
fn a_former_index_that_is_damaged_costs_no_event() {
    let (_directory, path) = temporary_path();
    write_version_2(&path, 9000);
    let root: u32 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'by_session'", [], |row| {
            row.get(0)
        })
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The last leaf loses a row: the index leaves it out.
    let mut page = (root as usize - 1) * 8192;
    while bytes[page] != 0x0a {
        let child: [u8; 4] = bytes[page + 8..page + 12].try_into().unwrap();
        page = (u32::from_be_bytes(child) as usize - 1) * 8192;
    }
    bytes[page + 4] -= 1;
    fs::write(&path, bytes).unwrap();
    let mut file = StoreFile::open(&path).unwrap();
    while file.index_names().unwrap() {}
    let reader = StoreReader::open(&path).unwrap();
    let found = check_indices(&reader).unwrap_err();
    assert!(matches!(found, FileError::Damaged { .. }), "{found:?}");
    file.repair().unwrap();
    check_indices(&reader).unwrap();
    assert_eq!(indexed(&file).len(), 9000);
}
