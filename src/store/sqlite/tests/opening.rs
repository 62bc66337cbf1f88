//! Opening files: fresh, foreign, newer, damaged and unavailable ones.

use rusqlite::types::Value;

use super::*;

fn foreign_file(path: &Path, application_id: i64) -> Connection {
    let other = Connection::open(path).unwrap();
    other.pragma_update(None, "journal_mode", "WAL").unwrap();
    other.pragma_update(None, "application_id", application_id).unwrap();
    other.execute_batch("CREATE TABLE theirs (it); INSERT INTO theirs VALUES (1)").unwrap();
    other
}

#[test]
fn an_empty_file_and_one_with_only_a_header_are_damaged() {
    let (_directory, path) = temporary_path();
    fs::write(&path, b"").unwrap();
    let is_damaged = || matches!(StoreFile::open(&path), Err(FileError::Damaged { .. }));
    assert!(is_damaged());
    fs::remove_file(&path).unwrap();
    let header = Connection::open(&path).unwrap();
    header.pragma_update(None, "journal_mode", "WAL").unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 0);
    assert!(is_damaged());
    header.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    assert!(is_damaged());
}

#[test]
fn a_file_that_was_never_completed_does_not_stand_in_the_way_of_a_new_one() {
    let (_directory, path) = temporary_path();
    for name in ["relay.db.new", "relay.db.new-wal", "relay.db-wal", "relay.db-shm"] {
        fs::write(path.with_file_name(name), b"leftover").unwrap();
    }
    StoreFile::open(&path).unwrap().close().unwrap();
    let names = fs::read_dir(path.parent().unwrap()).unwrap();
    let names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["relay.db"]);
}

#[test]
fn the_write_ahead_log_of_a_removed_file_is_not_taken_for_that_of_the_next() {
    let (_directory, mut file) = file_with_product();
    file.append_one(1, 1, &[event(1, "s", "k", b"x")], 1);
    let path = file.path().to_owned();
    file.abandon();
    assert!(wal_bytes(&path) > 0);
    fs::remove_file(&path).unwrap();
    let mut file = StoreFile::open(&path).unwrap();
    assert_eq!(file.find_or_add_product(&product("p")).unwrap().newest, 0);
}

#[test]
fn a_file_without_one_of_its_tables_or_with_an_altered_one_is_damaged() {
    let names = || {
        let (_directory, file) = file_with_product();
        let query = "SELECT type || ' ' || name FROM sqlite_schema WHERE sql IS NOT NULL";
        let mut statement = file.connection.prepare(query).unwrap();
        let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        names.map(Result::unwrap).collect::<Vec<_>>()
    };
    for name in names() {
        let (_directory, file) = file_with_product();
        let path = file.path().to_owned();
        file.close().unwrap();
        Connection::open(&path).unwrap().execute_batch(&format!("DROP {name}")).unwrap();
        let error = StoreFile::open(&path).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{name}: {error:?}");
    }
    let (_directory, file) = file_with_product();
    let path = file.path().to_owned();
    file.close().unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE INDEX of_an_operator ON entries (kept_at)").unwrap();
    StoreFile::open(&path).unwrap().close().unwrap();
    other.execute_batch("ALTER TABLE spans RENAME COLUMN sequence TO number").unwrap();
    assert!(matches!(StoreFile::open(&path), Err(FileError::Damaged { .. })));
}

#[test]
fn a_table_that_goes_while_the_file_is_open_is_damage_and_the_error_holds_no_statement() {
    let (_directory, mut file) = file_with_product();
    let other = Connection::open(file.path()).unwrap();
    other.execute_batch("DROP TABLE entries").unwrap();
    let entries = [event(1, "s", "k", b"x")];
    let error = file.append(&[append_batch(1, 1, &entries)], SyncMode::Normal, 1).unwrap_err();
    assert!(matches!(error, FileError::Damaged { .. }), "{error:?}");
    let text = crate::error_chain::error_chain(&error);
    assert!(text.contains("no such table: ") && !text.contains("INSERT"), "{text}");
}

#[test]
fn a_version_that_no_relay_writes_is_refused_in_one_line_and_left_alone() {
    for version in [0, -1] {
        let (_directory, path) = temporary_path();
        StoreFile::open(&path).unwrap().close().unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
        let before = bytes_of(&path).swap_remove(0);
        for refused in [StoreFile::open(&path).unwrap_err(), StoreReader::open(&path).unwrap_err()]
        {
            let expected =
                format!("its schema has version {version}; a store has a version from 1 to 4");
            let text = crate::error_chain::error_chain(&refused);
            assert!(text.ends_with(&expected) && !text.contains('\n'), "{text}");
        }
        assert_eq!(bytes_of(&path).swap_remove(0), before);
    }
}

#[test]
fn a_file_of_version_1_is_migrated_with_all_its_rows() {
    let (_directory, path) = temporary_path();
    let mut former = Connection::open(&path).unwrap();
    former.pragma_update(None, "journal_mode", "WAL").unwrap();
    schema::migrate(&mut former, 0, &migrations::MIGRATIONS[..1]).unwrap();
    former
        .execute_batch(
            "INSERT INTO products VALUES (1, 'p', 3, 0, 3, 9, 7), (2, 'q', 4, 0, 0, 0, 0);
             INSERT INTO entries VALUES (1099511627777, 7, 1, 0, 5, NULL, NULL, 'k', 's', x'7b7d');
             INSERT INTO entries VALUES (1099511627778, 7, 2, 0, 5, NULL, NULL, 'k', NULL, x'7b7d');
             INSERT INTO entries VALUES (1099511627779, 7, 3, 0, 5, 'not_kept', '7-2', NULL, NULL, NULL);
             INSERT INTO spans VALUES (1, 1, 7, 1, 0);
             INSERT INTO missing VALUES (2, 4, 4);
             INSERT INTO webhooks VALUES (1, 'w', 1, '{\"sessions\":null,\"kinds\":null}', 'about', 2, 0, 0, 0);
             INSERT INTO owed VALUES (1, 2, 7, 2, 0, 'k', NULL, 5, NULL, '[]');
             INSERT INTO dead_letters (webhook, place, epoch, sequence, suffix, kind, session, created_at, died_at,
                 reason, requeued, attempts, payload) VALUES (1, 1, 7, 1, 0, 'k', 's', 5, 6, 'refused', 0, '[]', x'7b7d');",
        )
        .unwrap();
    drop(former);
    let mut file = StoreFile::open(&path).unwrap();
    let expected = [
        event(1, "s", "k", b"{}"),
        event(2, "", "k", b"{}"),
        gap(3, GapReason::NotKept, Some("7-2")),
    ];
    let read: Vec<_> = read_back(&path, 1).iter().take(3).map(visible_facts).collect();
    assert_eq!(read, expected.iter().map(visible_facts).collect::<Vec<_>>());
    let kept = file.find_or_add_product(&product("p")).unwrap();
    assert_eq!((kept.newest, kept.spans.len()), (3, 1));
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().holes.len(), 1);
    assert_eq!(file.webhooks().unwrap()[0].owed[0].delivery.event_id, EventId::new(7, 2));
    let letters = file.dead_letters("w", crate::store::DeadLetterState::Dead, None, 9).unwrap();
    assert_eq!(&*letters[0].1.payload, b"{}");
    let counts = &file.dead_letter_counts().unwrap()[0];
    assert_eq!((counts.dead, counts.requeued), (1, 0), "counted once");
    assert_eq!(file.take_damaged_dead_letters(), 0);
    file.append_one(1, 4, &[event(4, "s", "k", b"x")], 1);
}

#[test]
fn a_changed_row_of_a_table_that_says_what_the_log_has_is_damage() {
    for change in [
        "UPDATE products SET newest = newest + 1",
        "UPDATE products SET evicted_through = 1",
        "UPDATE products SET highest_epoch = 1",
        "UPDATE spans SET sequence = sequence + 1",
        "UPDATE spans SET place = place + 1",
        "UPDATE missing SET last = last + 1",
        "UPDATE empty_epochs SET epoch = epoch + 1",
        "UPDATE webhooks SET position = position + 1",
        "UPDATE webhooks SET definition = 'other'",
        "UPDATE webhooks SET product = 77",
    ] {
        let (_directory, mut file) = file_with_product();
        let missing = [Hole { first: 4, last: 6 }];
        for epoch in [7, 8] {
            let spans = [IdSpan { first_position: 2, first_id: EventId::new(epoch, 2) }];
            let batch = AppendBatch { spans: &spans, holes: &missing, ..append_batch(1, 1, &[]) };
            file.append(&[batch], SyncMode::Normal, 1).unwrap();
        }
        file.register(&crate::store::webhook_rows::tests::webhook("w", 0), 1).unwrap();
        let read =
            |file: &mut StoreFile| file.find_or_add_product(&product("p")).and(file.webhooks());
        assert!(read(&mut file).is_ok());
        assert_eq!(file.connection.execute(change, []), Ok(1), "{change}");
        let error = read(&mut file).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{change}: {error:?}");
    }
}

#[test]
fn the_settings_are_in_force() {
    let (_directory, file) = file_with_product();
    let setting = |name: &str| {
        file.connection.pragma_query_value(None, name, |row| row.get::<_, Value>(0)).unwrap()
    };
    assert_eq!(setting("journal_mode"), Value::Text("wal".into()));
    for (name, value) in [
        ("page_size", 8192),
        ("user_version", 4),
        ("application_id", schema::APPLICATION_ID),
        ("secure_delete", 1),
        ("cell_size_check", 1),
        ("trusted_schema", 0),
        ("temp_store", 2),
        ("journal_size_limit", 4 << 20),
        ("cache_size", -4096),
        ("busy_timeout", 1000),
    ] {
        assert_eq!(setting(name), Value::Integer(value), "{name}");
    }
}

#[test]
fn migrations_are_applied_in_order_and_keep_what_is_there() {
    let (_directory, path) = temporary_path();
    let mut connection = Connection::open(&path).unwrap();
    let scripts = [
        "CREATE TABLE a (x)",
        "ALTER TABLE a ADD COLUMN y DEFAULT 5",
        "CREATE TABLE b (x); nonsense",
    ];
    schema::migrate(&mut connection, 0, &scripts[..1]).unwrap();
    connection.execute("INSERT INTO a VALUES (4)", []).unwrap();
    schema::migrate(&mut connection, 1, &scripts[..2]).unwrap();
    let row = connection.query_row("SELECT x, y FROM a", [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(row, Ok((4, 5)));
    assert!(schema::migrate(&mut connection, 2, &scripts).is_err());
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    assert_eq!(version, Ok(2));
    assert!(!connection.table_exists(None, "b").unwrap());
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let (_directory, path) = temporary_path();
    StoreFile::open(&path).unwrap().close().unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let before = bytes_of(&path).swap_remove(0);
    for refused in [StoreFile::open(&path).unwrap_err(), StoreReader::open(&path).unwrap_err()] {
        assert!(
            matches!(refused, FileError::NewerVersion { found: 7, known: 4, .. }),
            "{refused:?}"
        );
        assert!(
            refused.to_string().ends_with("version 7, the newest known here is 4"),
            "{refused}"
        );
    }
    assert_eq!(bytes_of(&path).swap_remove(0), before);
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    for application_id in [0, 42] {
        let (_directory, path) = temporary_path();
        // Its last commits are in its write-ahead log, as after a crash.
        let other = foreign_file(&path, application_id);
        let copy = path.with_file_name("copy.db");
        for suffix in ["", "-wal"] {
            fs::copy(with_suffix(&path, suffix), with_suffix(&copy, suffix)).unwrap();
        }
        drop(other);
        let before = bytes_of(&copy);
        let refused = StoreFile::open(&copy).unwrap_err();
        assert!(
            matches!(refused, FileError::Foreign { found, .. } if found == application_id),
            "{refused:?}"
        );
        assert_eq!(bytes_of(&copy)[..2], before[..2]);
    }
}

#[test]
fn a_file_that_is_no_database_is_damaged() {
    for garbage in [&b"xy"[..], &[b'x'; 20_000], b"SQLite format 3\0 and then something else"] {
        let (_directory, path) = temporary_path();
        fs::write(&path, garbage).unwrap();
        let error = StoreFile::open(&path).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "{error:?}");
        assert!(matches!(StoreReader::open(&path), Err(FileError::Damaged { .. })));
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }
}

#[test]
fn a_truncated_file_is_damaged() {
    let (_directory, mut file) = file_with_product();
    for position in 1..200 {
        file.append_one(1, position, &[event(position, "s", "k", &[b'x'; 1000])], 1);
    }
    let path = file.path().to_owned();
    file.close().unwrap();
    let bytes = fs::read(&path).unwrap();
    for length in [50, 5000, 8192, bytes.len() / 2, bytes.len() - 8192] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = StoreFile::open(&path)
            .err()
            .or_else(|| StoreReader::open(&path).unwrap().check().err())
            .unwrap();
        assert!(matches!(error, FileError::Damaged { .. }), "{length}: {error:?}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_unavailable() {
    let (directory, path) = temporary_path();
    assert!(matches!(StoreFile::open(directory.path()), Err(FileError::Unavailable { .. })));
    assert!(matches!(StoreFile::open(&path.join("x")), Err(FileError::Unavailable { .. })));
    assert!(matches!(StoreReader::open(&path), Err(FileError::Unavailable { .. })));
    fs::write(&path, b"").unwrap();
    assert!(matches!(
        StoreReader::open(&path),
        Err(FileError::Unavailable { source: FileFault::Refused(_), .. })
    ));
}
