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
fn an_empty_file_and_one_with_only_a_header_are_fresh() {
    let (_directory, path) = temporary_path();
    fs::write(&path, b"").unwrap();
    StoreFile::open(&path).unwrap().close().unwrap();
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "WAL").unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 0);
    StoreFile::open(&path).unwrap().close().unwrap();
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
        ("user_version", 1),
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
            matches!(refused, FileError::NewerVersion { found: 7, known: 1, .. }),
            "{refused:?}"
        );
        assert!(
            refused.to_string().ends_with("version 7, the newest known here is 1"),
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
