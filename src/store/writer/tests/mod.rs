//! The writer on a disk that does what the test says.

mod webhooks;

use std::{
    collections::VecDeque,
    fs, io,
    path::Path,
    sync::{Mutex, mpsc},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::{
    event::{Draft, Entry, EventId, Kind, Only, ProductId, Scope, SessionId, Start},
    log::{Bounds, Limits, Numbering, Place, Reading, epoch_after},
    metrics::Metrics,
    store::{Kept, Wanted, reader::Reader},
};

/// What becomes of commits with entries, one after the other, and what the writer has done so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Script(Arc<Mutex<Scene>>);

#[derive(Debug, Default)]
struct Scene {
    acts: VecDeque<Act>,
    fails_after: bool,
    steps: Vec<Step>,
}

/// What becomes of one commit.
#[derive(Debug)]
enum Act {
    /// It is under way until the other end says so or goes.
    Take(mpsc::Receiver<()>),
    /// The disk fails, and nothing is written.
    FailBefore,
    /// Everything is written, and then the disk fails.
    FailAfter,
}

/// What the writer has done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Open,
    Commit,
}

impl Script {
    pub(super) fn before_commit(&self, parts: usize) -> Result<(), FileError> {
        if parts == 0 {
            return Ok(());
        }
        let act = {
            let mut scene = self.0.lock().unwrap();
            scene.steps.push(Step::Commit);
            let act = scene.acts.pop_front();
            scene.fails_after = matches!(act, Some(Act::FailAfter));
            act
        };
        match act {
            Some(Act::Take(until)) => drop(until.recv()),
            Some(Act::FailBefore) => return Err(trouble()),
            Some(Act::FailAfter) | None => {}
        }
        Ok(())
    }

    pub(super) fn after_commit(&self) -> Result<(), FileError> {
        match std::mem::take(&mut self.0.lock().unwrap().fails_after) {
            true => Err(trouble()),
            false => Ok(()),
        }
    }

    pub(super) fn opens(&self) {
        self.0.lock().unwrap().steps.push(Step::Open);
    }

    fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().steps.clone()
    }
}

fn trouble() -> FileError {
    Fault::from(io::Error::other("the disk says no")).at(Path::new("relay.db"), "write entries to")
}

/// A writer and the log it keeps, in a directory of their own.
struct Rig {
    _directory: TempDir,
    writer: Writer,
    log: Arc<Log>,
    metrics: Metrics,
}

impl Rig {
    fn new(memory_events: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.db");
        let (metrics, bounds) = (Metrics::new().unwrap(), Bounds { events: memory_events, bytes: u64::MAX });
        let mut file = File::open(&path).unwrap();
        let kept = file.product(&product()).unwrap();
        let desk = Desk::new(path, 4);
        let epoch = epoch_after(kept.highest_epoch);
        let log = Log::restored(product(), bounds, kept, epoch, false, Arc::clone(&desk), metrics.log(&product()));
        log.numbered_by(Numbering::Own);
        let settings = Settings {
            directory: directory.path().to_owned(),
            retention: Duration::from_secs(3600),
            retention_bytes: 1 << 30,
            dead_letter_retention: Duration::MAX,
            dead_letter_bytes: 1 << 30,
            max_concurrent_replays: 4,
        };
        let log = Arc::new(log);
        let writer = Writer::new(desk, vec![Arc::clone(&log)], file, settings, metrics.store().clone());
        Self { _directory: directory, writer, log, metrics }
    }

    fn acts(&self, acts: impl IntoIterator<Item = Act>) {
        self.writer.script.0.lock().unwrap().acts.extend(acts);
    }

    fn append(&self, events: usize) {
        (0..events).for_each(|_| append(&self.log));
    }

    /// What the writer does when the wait after an error is over.
    fn work_again(&mut self) {
        assert!(matches!(self.writer.state, State::Failed { .. }), "the writer is waiting");
        self.writer.state = State::Failed { retry_at: Instant::now() };
        self.writer.work();
    }

    /// Places of all rows there are.
    fn rows(&self) -> Vec<u64> {
        let reader = Reader::open(self.writer.desk.path()).unwrap();
        let mut rows = Vec::new();
        for place in 1..=self.log.newest() {
            let wanted = Wanted { after: place - 1, through: place, ..self.wanted() };
            let row = reader.fetch(&wanted).map(|chunk| chunk.entries.len());
            rows.extend((row.unwrap_or(0) == 1).then_some(place));
        }
        rows
    }

    fn wanted(&self) -> Wanted {
        let scope = Scope { sessions: Only::Everything, kinds: Only::Everything };
        Wanted { product: product(), number: self.log.number_in_store(), after: 0, through: 1, scope, limits: LIMITS }
    }

    /// What a reader at this place is told.
    fn read(&self, place: u64) -> &'static str {
        match self.log.read_after(place, &self.wanted().scope, LIMITS, &mut VecDeque::new()) {
            Reading::Taken { .. } => "in memory",
            Reading::InStore { .. } => "in store",
            Reading::Lost { reason, .. } => reason.as_str(),
        }
    }

    fn gaps(&self) -> Option<f64> {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line = "autoplay_relay_gaps_total{product_id=\"p\",reason=\"not_kept\"} ";
        text.lines().find_map(|found| found.strip_prefix(line)).map(|count| count.parse().unwrap())
    }

    /// What the next life of the relay finds.
    fn restart(self) -> (Kept, Log) {
        let path = self.writer.desk.path().clone();
        drop(self.writer);
        let kept = || File::open(&path).unwrap().product(&product()).unwrap();
        let (epoch, bounds) = (epoch_after(kept().highest_epoch), Bounds { events: 16, bytes: u64::MAX });
        let (desk, metrics) = (Desk::new(path.clone(), 4), self.metrics.log(&product()));
        (kept(), Log::restored(product(), bounds, kept(), epoch, false, desk, metrics))
    }
}

fn product() -> ProductId {
    ProductId::new("p").unwrap()
}

fn append(log: &Log) {
    let session = Some(SessionId::new("s").unwrap());
    let (payload, received) = (Bytes::from_static(b"{}"), tokio::time::Instant::now());
    log.append(Draft { kind: Kind::Actions, session, forwarded_at: None, payload, received });
}

/// Everything behind a place, as the fan-out takes it; nothing to wait for.
fn tail(log: &Log, mut place: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let tail = std::pin::pin!(log.tail(place, 100));
        let Poll::Ready((_, entries)) = tail.poll(&mut Context::from_waker(Waker::noop())) else { return all };
        place += entries.len() as u64;
        all.extend(entries);
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

const LIMITS: Limits = Limits { entries: 16, bytes: usize::MAX };

#[test]
fn while_a_commit_takes_seconds_nobody_waits_for_it_and_the_store_is_degraded() {
    let Rig { _directory, writer, log, .. } = Rig::new(10_000);
    let desk = Arc::clone(&writer.desk);
    let (commit_ends, until) = mpsc::channel();
    writer.script.0.lock().unwrap().acts.push_back(Act::Take(until));
    let script = writer.script.clone();
    let thread = thread::spawn(|| writer.run());
    append(&log);
    wait_until("the commit is under way", || script.steps() == [Step::Commit]);
    // All this happens on one thread while the commit does not end: had it to wait, it would wait for ever.
    (0..5000).for_each(|_| append(&log));
    assert_eq!(tail(&log, 0).len(), 5001);
    assert_eq!(log.backlog(), 5001);
    wait_until("it takes too long", || desk.is_degraded());
    assert_eq!(script.steps(), [Step::Commit], "it is still under way");
    drop(commit_ends);
    wait_until("it has ended", || !desk.is_degraded());
    wait_until("the store has caught up", || log.backlog() == 0);
    assert!(!script.steps().contains(&Step::Open), "slow is not broken");
    desk.stop();
    thread.join().unwrap().close();
}

#[test]
fn after_an_error_the_file_is_opened_anew_and_gets_everything_that_is_in_memory() {
    let mut rig = Rig::new(1000);
    rig.acts([Act::FailBefore]);
    rig.append(30);
    rig.writer.work();
    assert!(rig.writer.desk.is_degraded() && matches!(rig.writer.state, State::Failed { .. }));
    rig.append(30);
    rig.writer.work();
    assert_eq!(rig.writer.script.steps(), [Step::Commit], "the file is left alone for a while");
    rig.work_again();
    let steps = [Step::Commit, Step::Open, Step::Commit];
    assert_eq!((rig.writer.desk.is_degraded(), rig.writer.script.steps()), (false, steps.to_vec()));
    assert!(rig.rows().into_iter().eq(1..=60));
    assert_eq!((rig.log.facts().shelf.map(|(events, _)| events), rig.gaps()), (Some(60), Some(0.0)));
}

#[test]
fn a_commit_that_had_succeeded_although_it_was_reported_as_failed_is_not_written_twice() {
    let mut rig = Rig::new(1000);
    rig.append(5);
    rig.writer.work();
    rig.acts([Act::FailAfter]);
    rig.append(20);
    rig.writer.work();
    assert!(rig.writer.desk.is_degraded());
    assert_eq!(rig.log.facts().shelf.map(|(events, _)| events), Some(5), "nobody knows");
    rig.append(5);
    rig.work_again();
    assert!(!rig.writer.desk.is_degraded());
    assert!(rig.rows().into_iter().eq(1..=30));
    let shelf = rig.log.facts().shelf;
    let (kept, _) = rig.restart();
    assert_eq!((kept.newest, Some((kept.events, kept.bytes))), (30, shelf));
}

#[test]
fn what_leaves_memory_while_the_store_fails_is_one_gap_in_memory_and_in_the_file() {
    let mut rig = Rig::new(16);
    rig.append(10);
    rig.writer.work();
    rig.acts([Act::FailBefore]);
    rig.append(1);
    rig.writer.work();
    // Sixteen, and as many again as are held for a store that does not keep up.
    rig.append(200);
    tail(&rig.log, 0);
    let first_in_memory = (1..).find(|place| rig.read(*place) == "in memory").unwrap() + 1;
    assert!(first_in_memory > 20);
    assert_eq!((rig.read(0), rig.read(9), rig.read(10), rig.gaps()), ("in store", "in store", "not_kept", Some(1.0)));
    rig.work_again();
    assert!(rig.rows().into_iter().eq((1..=10).chain(first_in_memory..=211)));
    tail(&rig.log, 0);
    assert_eq!((rig.read(9), rig.read(10), rig.read(first_in_memory - 1)), ("in store", "not_kept", "in store"));
    assert_eq!(rig.gaps(), Some(1.0));
    let (kept, _) = rig.restart();
    let missing = Missing { first: 11, last: first_in_memory - 1 };
    assert_eq!((kept.newest, kept.missing), (211, vec![missing]));
}

#[test]
fn what_had_been_kept_by_a_commit_reported_as_failed_is_not_missing_though_it_has_left_memory() {
    let mut rig = Rig::new(16);
    rig.acts([Act::FailAfter]);
    rig.append(20);
    rig.writer.work();
    rig.append(200);
    tail(&rig.log, 0);
    assert_eq!(rig.read(0), "not_kept", "as far as anybody knows");
    rig.work_again();
    assert_eq!((rig.read(0), rig.read(19), rig.read(20)), ("in store", "in store", "not_kept"));
    assert!(rig.rows().starts_with(&(1..=20).collect::<Vec<_>>()));
}

#[test]
fn what_retention_had_taken_although_that_was_reported_as_failed_is_announced() {
    let mut rig = Rig::new(16);
    rig.append(40);
    rig.writer.work();
    tail(&rig.log, 0);
    let State::Open(file) = &mut rig.writer.state else { panic!("the file is open") };
    file.retire(u64::MAX, u64::MAX, 0).unwrap().unwrap();
    rig.writer.fail(&trouble());
    assert_eq!(rig.read(0), "in store", "nobody knows");
    rig.work_again();
    assert_eq!(rig.read(0), "evicted");
}

#[test]
fn a_store_that_is_lost_while_the_relay_runs_is_begun_anew_and_goes_on_with_the_same_ids() {
    for is_damaged in [true, false] {
        let mut rig = Rig::new(16);
        rig.append(40);
        rig.writer.work();
        tail(&rig.log, 0);
        rig.append(10);
        let (in_memory, lost) = (rig.log.newest_id().unwrap(), rig.log.id(3).unwrap());
        if is_damaged {
            rig.writer.replace("says the test");
            let reader = Reader::open(rig.writer.desk.path()).unwrap();
            assert!(reader.fetch(&rig.wanted()).is_err(), "who asked the old file is not told that there was nothing");
            rig.writer.work();
        } else {
            rig.writer.fail(&trouble());
            for file in fs::read_dir(rig.writer.desk.path().parent().unwrap()).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
            rig.work_again();
        }
        assert!(!rig.writer.desk.is_degraded());
        tail(&rig.log, 0);
        assert_eq!((rig.read(0), rig.gaps()), ("not_kept", Some(1.0)));
        let rows = rig.rows();
        assert!(rows.len() >= 16 && rows.iter().copied().eq(51 - rows.len() as u64..=50), "{rows:?}");
        rig.append(1);
        rig.writer.work();
        let (kept, next) = rig.restart();
        assert_eq!((kept.newest, kept.missing.first().map(|range| range.first)), (51, Some(1)));
        assert!(next.has_past());
        let place = |id: EventId| match next.locate(&Start::After(id), false) {
            Place::Behind(place) => place,
            other => panic!("{id} is {other:?}"),
        };
        assert_eq!((place(in_memory), place(lost)), (50, 3), "both are ids of this log");
    }
}

#[test]
fn a_file_with_another_store_is_set_aside() {
    let (mut rig, mut other) = (Rig::new(1000), Rig::new(1000));
    other.append(3);
    other.writer.work();
    rig.append(20);
    rig.writer.work();
    rig.writer.fail(&trouble());
    let path = rig.writer.desk.path().clone();
    let State::Open(file) = mem::replace(&mut other.writer.state, State::Failed { retry_at: Instant::now() }) else {
        panic!("the file is open")
    };
    file.close().unwrap();
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(path.with_extension(format!("db{suffix}"))).unwrap();
    }
    fs::copy(other.writer.desk.path(), &path).unwrap();
    rig.work_again();
    rig.writer.work();
    assert!(rig.rows().into_iter().eq(1..=20));
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.to_string_lossy().contains("damaged")), "{names:?}");
}

#[test]
fn a_stop_writes_a_long_backlog_to_its_end() {
    let rig = Rig::new(100_000);
    rig.append(20_000);
    rig.writer.desk.stop();
    let (log, path) = (Arc::clone(&rig.log), rig.writer.desk.path().clone());
    rig.writer.run().close();
    assert_eq!(log.backlog(), 0);
    let mut file = File::open(&path).unwrap();
    assert_eq!((file.was_left_open(), file.product(&product()).unwrap().newest), (false, 20_000));
}

#[test]
fn what_is_committed_is_synced_elsewhere_and_a_sync_that_failed_is_not_repeated() {
    let mut rig = Rig::new(16);
    rig.append(1);
    rig.writer.work();
    assert!(rig.writer.desk.take_unsynced(), "the syncer is told");
    rig.writer.work();
    assert!(!rig.writer.desk.take_unsynced(), "once");
    rig.writer.desk.could_not_sync();
    rig.append(1);
    rig.writer.work();
    assert!(rig.writer.desk.is_degraded());
    assert_eq!(rig.writer.script.steps(), [Step::Commit], "not even by another commit on the same file");
    rig.work_again();
    assert_eq!(rig.writer.script.steps(), [Step::Commit, Step::Open, Step::Commit]);
    assert_eq!((rig.rows(), rig.writer.desk.is_degraded()), (vec![1, 2], false));
}

#[test]
fn the_write_ahead_log_is_bounded_whether_or_not_the_syncer_keeps_up() {
    let mut rig = Rig::new(100_000);
    let path = rig.writer.desk.path().clone();
    let mut largest = 0;
    for _ in 0..40 {
        rig.append(8_000); // 3 MiB and their index
        rig.writer.work();
        largest = largest.max(sqlite::wal_bytes(&path));
    }
    assert!(largest > sqlite::WAL_BYTES, "there was something to bound: {largest}");
    assert!(largest < 2 * MOST_WAL_BYTES, "{largest}");
    syncer::checkpoint(&rig.writer.desk);
    rig.append(1);
    rig.writer.work();
    assert!(sqlite::wal_bytes(&path) <= sqlite::WAL_BYTES, "begun anew: {}", sqlite::wal_bytes(&path));
}

#[test]
fn who_has_the_file_open_that_was_set_aside_does_not_answer_for_the_new_one() {
    let mut rig = Rig::new(16);
    rig.append(40);
    rig.writer.work();
    tail(&rig.log, 0);
    let desk = Arc::clone(&rig.writer.desk);
    let reading = thread::spawn({
        let desk = Arc::clone(&desk);
        move || desk.answer_questions()
    });
    let ask = |wanted: Wanted| {
        let mut catch_up = desk.catch_up();
        catch_up.want(wanted);
        let mut answer = None;
        wait_until("it is answered", || {
            catch_up.poll(&mut Context::from_waker(Waker::noop())).map(|it| answer = it).is_ready()
        });
        answer.unwrap()
    };
    assert_eq!(ask(Wanted { after: 0, through: 10, ..rig.wanted() }).unwrap().entries.len(), 10);
    rig.acts([Act::FailBefore]); // the new file is begun, and then the disk fails
    rig.writer.replace("says the test");
    rig.work_again();
    assert!(!rig.writer.desk.is_degraded());
    rig.append(60);
    rig.writer.work();
    let chunk = ask(Wanted { after: 50, through: 60, ..rig.wanted() });
    assert_eq!(chunk.unwrap().entries.len(), 10, "what the new file has comes from there");
    desk.stop();
    reading.join().unwrap();
}

#[test]
fn many_erasures_do_not_hold_up_what_comes_meanwhile() {
    let mut rig = Rig::new(1000);
    let erased: Vec<_> = (0..5000)
        .map(|number| rig.writer.desk.erase(product(), SessionId::new(&format!("s{number}")).unwrap()))
        .collect();
    let mut rounds = 0;
    while rig.writer.desk.has_orders() {
        rig.append(1);
        rig.writer.work();
        assert_eq!(rig.log.backlog(), 0, "committed before the next few orders");
        rounds += 1;
    }
    assert!(rounds > 1, "they took one round: make it more of them");
    drop(erased);
}
