//! The session index in the writer's rounds.

use super::{store::open_store, *};
use crate::event::ProductId;

/// Returns the number of entries that the file's session index has.
fn indexed(harness: &WriterHarness) -> i64 {
    let file = rusqlite::Connection::open(harness.writer.handle.path()).unwrap();
    file.query_row("SELECT count(*) FROM session_index", [], |row| row.get(0)).unwrap()
}

/// Ends the wait for further rows, and runs a round.
fn index_now(harness: &mut WriterHarness) {
    assert!(harness.writer.indexing.due.is_some(), "rows are waiting");
    harness.writer.indexing.due = Some(Instant::now());
    harness.writer.run_round();
}

#[test]
fn rows_wait_a_second_for_the_index_and_nothing_is_due_once_it_has_all() {
    let mut harness = WriterHarness::new(1000);
    harness.writer.run_round();
    assert_eq!(harness.writer.indexing.due, None, "a file without rows");
    harness.append(3);
    harness.writer.run_round();
    let due = harness.writer.indexing.due.unwrap();
    assert!(due > Instant::now() + Duration::from_millis(500));
    harness.append(3);
    harness.writer.run_round();
    assert_eq!(harness.writer.indexing.due, Some(due), "later rows do not defer it");
    assert_eq!(indexed(&harness), 0);
    harness.writer.may_retire = false;
    harness.writer.indexing.due = Some(Instant::now() + Duration::from_millis(300));
    assert!(harness.writer.max_park() <= Duration::from_millis(300), "the writer wakes for it");
    index_now(&mut harness);
    assert_eq!((indexed(&harness), harness.writer.indexing.due), (6, None));
    assert_eq!(harness.writer.max_park(), MAX_PARK);
}

#[test]
fn rows_that_fill_a_step_do_not_wait_for_the_second() {
    let mut harness = WriterHarness::new(100_000);
    harness.writer.run_round();
    harness.append(MAX_BATCH_ENTRIES * 3 + 7);
    harness.writer.run_round();
    assert_eq!(indexed(&harness), (MAX_BATCH_ENTRIES * 3) as i64, "as fast as rows are written");
    assert!(harness.writer.indexing.due > Some(Instant::now()), "the rest waits");
    index_now(&mut harness);
    assert_eq!(indexed(&harness), (MAX_BATCH_ENTRIES * 3 + 7) as i64);
}

#[test]
fn rows_of_a_commit_that_was_reported_as_failed_are_indexed_once_the_file_is_open_again() {
    let mut harness = WriterHarness::new(1000);
    harness.writer.run_round();
    harness.script_commits([ScriptedCommit::FailAfter]);
    harness.append(5);
    harness.writer.run_round();
    harness.retry_round();
    assert_eq!(indexed(&harness), 5);
}

#[test]
fn a_stop_leaves_no_row_out_of_the_index_and_a_crash_leaves_them_to_the_next_process() {
    for is_crash in [false, true] {
        let mut harness = WriterHarness::new(1000);
        harness.writer.run_round();
        harness.append(5);
        harness.writer.run_round();
        let WriterHarness { _directory, writer, .. } = harness;
        let path = writer.handle.path().clone();
        if is_crash {
            drop(writer);
        } else {
            writer.close();
        }
        let file = StoreFile::open(&path).unwrap();
        assert_eq!(file.look_for_unindexed_rows().unwrap(), is_crash);
    }
}

#[test]
fn a_damaged_index_is_made_anew_and_the_file_stays() {
    let mut harness = WriterHarness::new(1000);
    harness.writer.run_round();
    harness.append(5);
    harness.writer.run_round();
    index_now(&mut harness);
    let damage = "UPDATE indexed_through SET position = 0";
    let path = harness.writer.handle.path().clone();
    assert_eq!(rusqlite::Connection::open(&path).unwrap().execute(damage, []), Ok(1));
    harness.append(1);
    harness.writer.run_round();
    index_now(&mut harness);
    harness.writer.run_round();
    assert_eq!((indexed(&harness), harness.writer.repairs), (6, 1));
    assert!(harness.rows().into_iter().eq(1..=6));
    assert!(!harness.writer.handle.is_degraded());
}

#[test]
fn the_indices_of_a_store_of_version_2_are_used_once_the_former_one_is_copied_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.db");
    fs::write(&path, include_bytes!("../../../../tests/data/store/schema-2.db")).unwrap();
    let (store, _) = open_store(directory.path(), &[ProductId::new("prod_abc").unwrap()]);
    wait_until("the indices are used", || store.handle().are_indices_trusted());
    let former = "SELECT count(*) FROM sqlite_schema WHERE name = 'by_session'";
    let file = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(file.query_row(former, [], |row| row.get(0)), Ok(0));
    assert!(!store.handle().is_filling() && !store.handle().has_reports());
    let indexed = "SELECT count(*) FROM session_index";
    assert_eq!(file.query_row(indexed, [], |row| row.get(0)), Ok(38), "of both products");
}
