//! The writer on a scripted disk.

mod harness;
mod indexing;
mod store;
mod webhooks;

use std::{
    fs, mem,
    sync::mpsc,
    task::{Context, Waker},
};

pub(super) use self::harness::DiskScript;
use self::harness::{
    ScriptedCommit, WriterHarness, WriterStep, append, disk_error, product, tail, wait_until,
};
use super::*;
use crate::{
    event::{ErasureScope, EventId, SessionId, StartPosition, VisitorId},
    log::{Hole, ReplayClient, ResolvedStart, backing::ReadRequest},
    store::reader::{Indices, StoreReader},
};

#[test]
fn a_commit_that_takes_seconds_delays_no_append_and_no_read_and_the_store_is_degraded() {
    let harness = WriterHarness::new(10_000);
    let (commit_ends, until) = mpsc::channel();
    harness.script_commits([ScriptedCommit::Block(until)]);
    let WriterHarness { _directory, writer, log, .. } = harness;
    let handle = Arc::clone(&writer.handle);
    let script = writer.script.clone();
    let thread = thread::spawn(|| writer.run());
    append(&log);
    wait_until("the commit is under way", || script.steps() == [WriterStep::Commit]);
    // This thread alone ends the commit. If an append or a read waited for the commit, the test
    // would never end.
    (0..5000).for_each(|_| append(&log));
    assert_eq!(tail(&log, 0).len(), 5001);
    assert_eq!(log.backlog(), 5001);
    wait_until("it takes too long", || handle.is_degraded());
    assert_eq!(script.steps(), [WriterStep::Commit], "it is still under way");
    drop(commit_ends);
    wait_until("it has ended", || !handle.is_degraded());
    wait_until("the store has caught up", || log.backlog() == 0);
    assert!(!script.steps().contains(&WriterStep::Open), "slow is not broken");
    handle.stop();
    thread.join().unwrap().close();
}

#[test]
fn after_an_error_the_file_is_opened_anew_and_gets_everything_that_is_in_memory() {
    let mut harness = WriterHarness::new(1000);
    harness.script_commits([ScriptedCommit::FailBefore]);
    harness.append(30);
    harness.writer.run_round();
    assert!(
        harness.writer.handle.is_degraded()
            && matches!(harness.writer.state, WriterState::Failed { .. })
    );
    harness.append(30);
    harness.writer.run_round();
    assert_eq!(
        harness.writer.script.steps(),
        [WriterStep::Commit],
        "the file is left alone for a while"
    );
    harness.retry_round();
    let steps = [WriterStep::Commit, WriterStep::Open, WriterStep::Commit];
    assert_eq!(
        (harness.writer.handle.is_degraded(), harness.writer.script.steps()),
        (false, steps.to_vec())
    );
    assert!(harness.rows().into_iter().eq(1..=60));
    assert_eq!(
        (harness.log.stats().stored.map(|(events, _)| events), harness.not_kept_gaps()),
        (Some(60), Some(0.0))
    );
}

#[test]
fn a_commit_that_had_succeeded_although_it_was_reported_as_failed_is_not_written_twice() {
    let mut harness = WriterHarness::new(1000);
    harness.append(5);
    harness.writer.run_round();
    harness.script_commits([ScriptedCommit::FailAfter]);
    harness.append(20);
    harness.writer.run_round();
    assert!(harness.writer.handle.is_degraded());
    assert_eq!(harness.log.stats().stored.map(|(events, _)| events), Some(5), "not known yet");
    harness.append(5);
    harness.retry_round();
    assert!(!harness.writer.handle.is_degraded());
    assert!(harness.rows().into_iter().eq(1..=30));
    let stored = harness.log.stats().stored;
    let (kept, _) = harness.restart();
    assert_eq!((kept.newest, Some((kept.events, kept.bytes))), (30, stored));
}

#[test]
fn entries_that_leave_memory_while_the_store_fails_are_one_gap_in_memory_and_in_the_file() {
    let mut harness = WriterHarness::new(16);
    harness.append(10);
    harness.writer.run_round();
    harness.script_commits([ScriptedCommit::FailBefore]);
    harness.append(1);
    harness.writer.run_round();
    // Memory holds 16 entries, and as many again for a store that does not keep up.
    harness.append(200);
    tail(&harness.log, 0);
    let first_in_memory =
        (1..).find(|position| harness.read(*position) == "in memory").unwrap() + 1;
    assert!(first_in_memory > 20);
    assert_eq!(
        (harness.read(0), harness.read(9), harness.read(10), harness.not_kept_gaps()),
        ("in store", "in store", "not_kept", Some(1.0))
    );
    harness.retry_round();
    assert!(harness.rows().into_iter().eq((1..=10).chain(first_in_memory..=211)));
    tail(&harness.log, 0);
    assert_eq!(
        (harness.read(9), harness.read(10), harness.read(first_in_memory - 1)),
        ("in store", "not_kept", "in store")
    );
    assert_eq!(harness.not_kept_gaps(), Some(1.0));
    let (kept, _) = harness.restart();
    let hole = Hole { first: 11, last: first_in_memory - 1 };
    assert_eq!((kept.newest, kept.holes), (211, vec![hole]));
}

#[test]
fn entries_of_a_commit_reported_as_failed_are_no_hole_although_they_have_left_memory() {
    let mut harness = WriterHarness::new(16);
    harness.script_commits([ScriptedCommit::FailAfter]);
    harness.append(20);
    harness.writer.run_round();
    harness.append(200);
    tail(&harness.log, 0);
    assert_eq!(harness.read(0), "not_kept", "as far as the log knows");
    harness.retry_round();
    assert_eq!(
        (harness.read(0), harness.read(19), harness.read(20)),
        ("in store", "in store", "not_kept")
    );
    assert!(harness.rows().starts_with(&(1..=20).collect::<Vec<_>>()));
}

#[test]
fn an_eviction_that_was_reported_as_failed_is_announced() {
    let mut harness = WriterHarness::new(16);
    harness.append(40);
    harness.writer.run_round();
    tail(&harness.log, 0);
    let WriterState::Open(file) = &mut harness.writer.state else { panic!("the file is open") };
    file.retire(u64::MAX, u64::MAX, 0).unwrap().unwrap();
    harness.writer.fail(&disk_error());
    assert_eq!(harness.read(0), "in store", "not known yet");
    harness.retry_round();
    assert_eq!(harness.read(0), "evicted");
}

#[test]
fn a_store_that_is_lost_while_the_relay_runs_is_begun_anew_and_goes_on_with_the_same_ids() {
    for is_damaged in [true, false] {
        let mut harness = WriterHarness::new(16);
        harness.append(40);
        harness.writer.run_round();
        tail(&harness.log, 0);
        harness.append(10);
        let (in_memory, lost) = (harness.log.newest_id().unwrap(), harness.log.id_at(3).unwrap());
        if is_damaged {
            harness.writer.replace("says the test");
            let reader = StoreReader::open(harness.writer.handle.path()).unwrap();
            assert!(
                reader.fetch(&harness.request(), Indices::Trusted).is_err(),
                "a reader of the old file gets an error, no empty range"
            );
            harness.writer.run_round();
        } else {
            harness.writer.fail(&disk_error());
            for file in fs::read_dir(harness.writer.handle.path().parent().unwrap()).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
            harness.retry_round();
        }
        assert!(!harness.writer.handle.is_degraded());
        tail(&harness.log, 0);
        assert_eq!((harness.read(0), harness.not_kept_gaps()), ("not_kept", Some(1.0)));
        let rows = harness.rows();
        assert!(
            rows.len() >= 16 && rows.iter().copied().eq(51 - rows.len() as u64..=50),
            "{rows:?}"
        );
        harness.append(1);
        harness.writer.run_round();
        let (kept, next) = harness.restart();
        assert_eq!((kept.newest, kept.holes.first().map(|range| range.first)), (51, Some(1)));
        assert!(next.has_prior_entries());
        let position_of = |id: EventId| match next.resolve_start(&StartPosition::After(id), false) {
            ResolvedStart::After(position) => position,
            other => panic!("{id} is {other:?}"),
        };
        assert_eq!(
            (position_of(in_memory), position_of(lost)),
            (50, 3),
            "both are ids of this log"
        );
    }
}

#[test]
fn a_file_with_another_store_is_set_aside() {
    let (mut harness, mut other) = (WriterHarness::new(1000), WriterHarness::new(1000));
    other.append(3);
    other.writer.run_round();
    harness.append(20);
    harness.writer.run_round();
    harness.writer.fail(&disk_error());
    let path = harness.writer.handle.path().clone();
    let WriterState::Open(file) =
        mem::replace(&mut other.writer.state, WriterState::Failed { retry_at: Instant::now() })
    else {
        panic!("the file is open")
    };
    file.close().unwrap();
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(path.with_extension(format!("db{suffix}"))).unwrap();
    }
    fs::copy(other.writer.handle.path(), &path).unwrap();
    harness.retry_round();
    harness.writer.run_round();
    assert!(harness.rows().into_iter().eq(1..=20));
    let names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.to_string_lossy().contains("damaged")), "{names:?}");
}

#[test]
fn a_stop_writes_a_long_backlog_to_its_end() {
    let harness = WriterHarness::new(100_000);
    harness.append(20_000);
    harness.writer.handle.stop();
    let (log, path) = (Arc::clone(&harness.log), harness.writer.handle.path().clone());
    harness.writer.run().close();
    assert_eq!(log.backlog(), 0);
    let mut file = StoreFile::open(&path).unwrap();
    assert_eq!(
        (file.was_left_open(), file.find_or_add_product(&product()).unwrap().newest),
        (false, 20_000)
    );
}

#[test]
fn commits_are_left_to_the_syncer_and_a_sync_that_failed_is_not_repeated() {
    let mut harness = WriterHarness::new(16);
    harness.append(1);
    harness.writer.run_round();
    assert!(harness.writer.handle.take_unsynced(), "the syncer is told");
    harness.writer.run_round();
    assert!(!harness.writer.handle.take_unsynced(), "once");
    harness.writer.handle.report_sync_failure();
    harness.append(1);
    harness.writer.run_round();
    assert!(harness.writer.handle.is_degraded());
    assert_eq!(
        harness.writer.script.steps(),
        [WriterStep::Commit],
        "not even by another commit to the same file"
    );
    harness.retry_round();
    assert_eq!(
        harness.writer.script.steps(),
        [WriterStep::Commit, WriterStep::Open, WriterStep::Commit]
    );
    assert_eq!((harness.rows(), harness.writer.handle.is_degraded()), (vec![1, 2], false));
}

#[test]
fn the_write_ahead_log_is_bounded_whether_or_not_the_syncer_keeps_up() {
    let mut harness = WriterHarness::new(100_000);
    let path = harness.writer.handle.path().clone();
    let mut largest = 0;
    for _ in 0..40 {
        harness.append(8_000); // 3 MiB and their index
        harness.writer.run_round();
        largest = largest.max(sqlite::wal_bytes(&path));
    }
    assert!(largest > sqlite::CHECKPOINT_WAL_BYTES, "there was something to bound: {largest}");
    assert!(largest < 2 * sqlite::MAX_WAL_BYTES, "{largest}");
    syncer::checkpoint(&harness.writer.handle);
    harness.append(1);
    harness.writer.run_round();
    assert!(
        sqlite::wal_bytes(&path) <= sqlite::CHECKPOINT_WAL_BYTES,
        "begun anew: {}",
        sqlite::wal_bytes(&path)
    );
}

#[test]
fn a_reader_of_the_file_that_was_set_aside_does_not_answer_for_the_new_one() {
    let mut harness = WriterHarness::new(16);
    harness.append(40);
    harness.writer.run_round();
    tail(&harness.log, 0);
    let handle = Arc::clone(&harness.writer.handle);
    let reading = thread::spawn({
        let handle = Arc::clone(&handle);
        move || handle.serve_reads()
    });
    let ask = |request: ReadRequest| {
        let mut catch_up = handle.backing().catch_up(ReplayClient::default());
        catch_up.request(request);
        let mut answer = None;
        wait_until("it is answered", || {
            catch_up
                .poll_chunk(&mut Context::from_waker(Waker::noop()))
                .map(|it| answer = it)
                .is_ready()
        });
        answer.unwrap()
    };
    assert_eq!(
        ask(ReadRequest { after: 0, through: 10, ..harness.request() }).unwrap().entries.len(),
        10
    );
    // The new file is begun, and then the disk fails.
    harness.script_commits([ScriptedCommit::FailBefore]);
    harness.writer.replace("says the test");
    harness.retry_round();
    assert!(!harness.writer.handle.is_degraded());
    harness.append(60);
    harness.writer.run_round();
    let chunk = ask(ReadRequest { after: 50, through: 60, ..harness.request() });
    assert_eq!(chunk.unwrap().entries.len(), 10, "entries of the new file come from the new file");
    handle.stop();
    reading.join().unwrap();
}

#[test]
fn many_erasures_do_not_hold_up_entries_that_come_meanwhile() {
    let mut harness = WriterHarness::new(1000);
    let erased: Vec<_> = (0..5000)
        .map(|number| {
            let session = SessionId::new(&format!("s{number}")).unwrap();
            harness.writer.handle.erase(product(), VisitorId::Session(session))
        })
        .collect();
    let mut rounds = 0;
    while harness.writer.has_pending_work() {
        harness.append(1);
        harness.writer.run_round();
        assert_eq!(harness.log.backlog(), 0, "committed before the next few commands");
        rounds += 1;
    }
    assert!(rounds > 1, "one round was enough: the test needs more commands");
    drop(erased);
}
