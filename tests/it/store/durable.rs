//! With `log.data_dir`, the log survives restarts and reaches further back than memory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_like, event_of, number},
    store::DataDir,
    subscriber::{Frame, Subscriber},
    wait,
};

#[test]
fn every_event_survives_a_restart_and_the_time_between_is_one_gap() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let before = relay.publish(&mut link, 0..40);
    relay.stop();
    drop(link);

    let relay = data.relay(&connector);
    let mut waiting = relay.resume(before[38].id());
    assert_eq!(
        waiting.event(),
        before[39],
        "stored events are served before the connector connects"
    );
    let mut link = connector.stream();
    let gap = waiting.gap();
    let notice = gap.json();
    assert_eq!(
        (notice["reason"].as_str(), notice["after"].as_str()),
        (Some("upstream_reconnect"), Some(before[39].id()))
    );
    let after = relay.publish(&mut link, 40..80);
    assert_eq!(waiting.event(), after[0]);
    for (n, frame) in before.iter().enumerate().step_by(7) {
        let mut resumed = relay.resume(frame.id());
        before[n + 1..].iter().for_each(|expected| assert_eq!(resumed.event(), *expected));
        let again = resumed.gap();
        assert_eq!((again.id(), &again.json()["before"]), (gap.id(), &after[0].id().into()));
        after.iter().for_each(|expected| assert_eq!(resumed.event(), *expected));
    }
    let mut behind_the_gap = relay.resume(gap.id());
    after.iter().for_each(|expected| assert_eq!(behind_the_gap.event(), *expected));
    assert_eq!(relay.gaps("upstream_reconnect"), 1.0);
    let (old, new) = (epoch(&before[0]), epoch(&gap));
    assert!(new > old, "each run has its own epoch");
    assert!(
        before.iter().all(|frame| epoch(frame) == old)
            && after.iter().all(|frame| epoch(frame) == new)
    );
    relay.stop();
    drop(link);

    let relay = data.relay(&connector);
    let _link = connector.stream();
    let mut all = relay.resume("0");
    before.iter().for_each(|expected| assert_eq!(all.event(), *expected));
    assert_eq!(all.gap().id(), gap.id());
    after.iter().for_each(|expected| assert_eq!(all.event(), *expected));
    assert_eq!(all.gap().json()["after"], after[39].id());
    all.expect_nothing(Duration::from_millis(50));
    relay.stop();
}

#[test]
fn ids_are_not_reused_over_several_restarts() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut ids = Vec::new();
    for run in 0..4 {
        let relay = data.relay(&connector);
        let mut link = if run < 2 { connector.stream() } else { relay.reconnect(&connector) };
        let published = run..run + run % 2 * 3; // some runs publish no event
        ids.extend(relay.publish(&mut link, published).into_iter().map(|frame| frame.id.unwrap()));
        relay.stop();
    }
    let relay = data.relay(&connector);
    let mut all = relay.resume("0");
    let mut seen = Vec::new();
    // Two outages are among the entries: an empty log has no entry that a gap could follow.
    while seen.len() < ids.len() + 2 {
        seen.push(all.item().id.unwrap());
    }
    assert!(ids.iter().all(|id| seen.contains(id)), "{ids:?} {seen:?}");
    let of_this_life = relay.publish(&mut relay.reconnect(&connector), 0..3);
    seen.extend(of_this_life.into_iter().map(|frame| frame.id.unwrap()));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

#[test]
fn filters_apply_across_store_and_memory() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let kind = |n: usize| ["actions", "summary", "x"][n % 3];
    let session = |n: usize| ["a", "b", "c", "d"][n % 4];
    let publish = |link: &mut crate::common::connector::Link,
                   all: &mut Subscriber,
                   numbers: std::ops::Range<usize>| {
        numbers
            .map(|n| {
                link.event(event_like(kind(n), session(n), n));
                all.event()
            })
            .collect::<Vec<Frame>>()
    };
    let mut frames = publish(&mut link, &mut all, 0..300);
    let check = |relay: &crate::common::relay::Relay, frames: &[Frame], gap_at: Option<usize>| {
        for (query, admits) in FILTERS {
            for from in [None, Some(0), Some(100), Some(290)] {
                let path = format!("/stream/{PRODUCT}?{query}");
                let id = from.map_or("0", |from| frames[from].id());
                let mut resumed = Subscriber::open(relay.public, &path, &[("Last-Event-ID", id)]);
                for (n, frame) in frames.iter().enumerate().skip(from.map_or(0, |from| from + 1)) {
                    if gap_at == Some(n) {
                        assert_eq!(
                            resumed.gap().json()["reason"],
                            "upstream_reconnect",
                            "{query} from {from:?}"
                        );
                    }
                    if admits(session(n), kind(n)) {
                        assert_eq!(&resumed.event(), frame, "{query} from {from:?}");
                    }
                }
            }
        }
    };
    check(&relay, &frames, None);
    relay.stop();
    drop(link);
    let relay = data.relay(&connector);
    let mut link = relay.reconnect(&connector);
    let mut all = relay.subscribe();
    frames.extend(publish(&mut link, &mut all, 300..330));
    check(&relay, &frames, Some(300));
    assert_eq!(
        (relay.gaps("evicted"), relay.gaps("unknown_id"), relay.gaps("not_kept")),
        (0.0, 0.0, 0.0)
    );
}

/// A query, and the sessions and types that it admits.
type Filter = (&'static str, fn(&str, &str) -> bool);

const FILTERS: [Filter; 6] = [
    ("", |_, _| true),
    ("session_id=a", |session, _| session == "a"),
    ("session_id=a&session_id=c&session_id=nobody", |session, _| session == "a" || session == "c"),
    ("type=summary", |_, kind| kind == "summary"),
    ("type=x&session_id=b", |session, kind| session == "b" && kind == "x"),
    ("session_id=nobody", |_, _| false),
];

#[test]
fn a_resume_from_the_store_has_no_duplicate_and_no_hole_while_events_arrive() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let first = relay.publish(&mut link, 0..300);
    let ids = Mutex::new(first.into_iter().map(|frame| frame.id.unwrap()).collect::<Vec<_>>());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = SetOnDrop(&is_over);
        scope.spawn(|| {
            let mut witness = relay.subscribe();
            while !is_over.load(Ordering::SeqCst) {
                let known = ids.lock().unwrap().len();
                (known..known + 4).for_each(|n| link.event(event(n)));
                for n in known..known + 4 {
                    let frame = witness.event();
                    assert_eq!(number(&frame.data), n);
                    ids.lock().unwrap().push(frame.id.unwrap());
                }
            }
        });
        for round in 0..60 {
            let (from, id) = {
                let ids = ids.lock().unwrap();
                let from = ids.len() - 1 - round * 5 % 290;
                (from, ids[from].clone())
            };
            let mut resumed = relay.resume(&id);
            assert!(resumed.numbers(349).into_iter().eq(from + 1..from + 350), "behind {from}");
        }
    });
    assert_eq!((relay.gaps("evicted"), relay.gaps("not_kept")), (0.0, 0.0));
}

/// Stops the thread beside a test, even if the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_stalled_subscriber_reads_from_the_store_what_memory_has_evicted() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    // Far more than the sockets hold.
    (0..1000).for_each(|n| link.event(event_of(&"x".repeat(20_000), n)));
    relay.wait_until_persisted(1000);
    assert!(subscriber.numbers(1000).into_iter().eq(0..1000), "without a gap");
}

#[test]
fn events_removed_by_retention_are_a_gap_only_for_readers_before_them() {
    const EVENTS: usize = 2000;
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.setup(&connector, "retention_bytes = '1MiB'").start();
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let frames: Vec<_> = (0..EVENTS)
        .map(|n| {
            link.event(event_of(&"x".repeat(4000), n));
            all.event()
        })
        .collect();
    let kept = || {
        relay
            .metrics()
            .value("autoplay_relay_log_events", &[("product_id", PRODUCT), ("tier", "disk")])
    };
    // Memory evicts committed events only, so all are committed once the bound of memory is reached.
    let tier = [("product_id", PRODUCT), ("tier", "memory")];
    relay.wait_for_metric("autoplay_relay_log_events", &tier, 16.0);
    wait::until("retention has deleted most events", || {
        kept().is_some_and(|kept| (1.0..200.0).contains(&kept))
    });
    let count = wait::value("retention has ended", || {
        let before = kept()?;
        // Much longer than the indices wait, whose pages count, too: on a busy machine the writer
        // is late.
        std::thread::sleep(Duration::from_millis(3500));
        kept().filter(|now| *now == before)
    }) as usize;
    let first = EVENTS - count;
    let mut resumed = relay.resume(frames[3].id());
    let gap = resumed.gap();
    let notice = gap.json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"evicted".into(), &frames[3].id().into()));
    assert_eq!(notice["before"], frames[first].id());
    frames[first..].iter().for_each(|expected| assert_eq!(resumed.event(), *expected));
    let mut again = relay.resume(gap.id());
    assert_eq!(again.event(), frames[first], "the id of the gap repeats neither it nor an event");
    drop(again);
    assert_eq!(relay.gaps("evicted"), 1.0);
    let mut everything = relay.resume("0");
    frames[first..].iter().for_each(|expected| assert_eq!(everything.event(), *expected));
    assert_eq!(relay.gaps("evicted"), 1.0);
    relay.stop();
    let used = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    let used = rusqlite::Connection::open(data.database())
        .unwrap()
        .query_row(used, [], |row| row.get::<_, i64>(0));
    assert!(used.as_ref().is_ok_and(|used| *used <= 1 << 20), "of 24 MiB: {used:?}");
    let relay = data.setup(&connector, "retention_bytes = '1MiB'").start();
    let mut resumed = relay.resume(frames[3].id());
    assert_eq!(resumed.gap().json()["reason"], "evicted", "after a restart, too");
    assert!(frames[first..].contains(&resumed.event()));
}

#[test]
fn events_older_than_the_retention_are_deleted() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.setup(&connector, "retention = '1s'").start();
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..60);
    wait::until("the log is empty", || relay.status()["log"][PRODUCT]["oldest"].is_null());
    let mut resumed = relay.resume(frames[0].id());
    let notice = resumed.gap().json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"evicted".into(), &frames[0].id().into()));
    link.event(event(60));
    assert_eq!(resumed.numbers(1), [60]);
    assert_eq!(relay.resume("0").numbers(1), [60]);
}

#[test]
fn an_id_of_a_lost_store_is_unknown() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..5);
    relay.stop();
    drop(link);
    fs::remove_dir_all(data.path()).unwrap();
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let after = relay.publish(&mut link, 0..5);
    assert!(after.iter().all(|frame| epoch(frame) > epoch(&frames[0])), "no id is reused");
    for frame in &frames {
        let mut resumed = relay.resume(frame.id());
        let notice = resumed.gap().json();
        assert_eq!(
            (&notice["reason"], &notice["after"]),
            (&"unknown_id".into(), &frame.id().into())
        );
        assert_eq!(notice["before"], after[0].id());
        assert_eq!(resumed.numbers(5), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn events_lost_in_a_power_cut_are_unknown_and_their_ids_are_not_reused() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut frames = relay.publish(&mut link, 0..50);
    relay.wait_until_persisted(50);
    let wal = fs::OpenOptions::new().write(true).open(data.path().join("relay.db-wal")).unwrap();
    let synced = wal.metadata().unwrap().len();
    frames.extend(relay.publish(&mut link, 50..100));
    relay.wait_until_persisted(100);
    relay.process.kill();
    drop(link);
    wal.set_len(synced).unwrap(); // as if the rest had not reached the disk
    let relay = data.relay(&connector);
    let kept = relay.status()["log"][PRODUCT]["disk"]["events"].as_u64().unwrap() as usize;
    assert!((1..100).contains(&kept), "{kept} events are left");
    let mut link = connector.stream();
    link.event(event(1000));
    let mut whole = relay.resume("0");
    assert_eq!(whole.numbers(kept), (0..kept).collect::<Vec<_>>());
    assert_eq!(whole.gap().json()["reason"], "upstream_reconnect");
    let new = whole.event();
    assert!(epoch(&new) > epoch(&frames[0]));
    let mut last = relay.resume(frames[99].id());
    let notice = last.gap().json();
    assert_eq!(
        (&notice["reason"], &notice["after"]),
        (&"unknown_id".into(), &frames[99].id().into())
    );
    assert_eq!(last.gap().json()["reason"], "upstream_reconnect", "behind the end of its epoch");
    assert_eq!(last.event(), new);
    let mut known = relay.resume(frames[kept - 1].id());
    assert_eq!(known.gap().json()["reason"], "upstream_reconnect");
    assert_eq!(known.event(), new);
}

#[test]
fn store_files_are_private_and_the_metrics_tell_their_size() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..50);
    relay.wait_until_persisted(50);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(data.path()), 0o700);
    assert_eq!(data.names(), ["relay.db", "relay.db-shm", "relay.db-wal", "relay.lock"]);
    for name in data.names() {
        assert_eq!(mode(&data.path().join(&name)), 0o600, "{name}");
    }
    let metrics = relay.metrics();
    let of = |name, tier| metrics.value(name, &[("product_id", PRODUCT), ("tier", tier)]).unwrap();
    assert_eq!(of("autoplay_relay_log_events", "memory"), 16.0);
    let bytes = of("autoplay_relay_log_bytes", "disk");
    let each = (event(10).len() + "actions".len() + "s1".len()) as f64;
    assert!((each * 40.0..=each * 50.0).contains(&bytes), "{bytes}");
    assert!(metrics.value("autoplay_relay_log_commit_seconds_count", &[]).unwrap() >= 1.0);
    assert_eq!(metrics.value("autoplay_relay_log_degraded", &[]), Some(0.0));
    let in_use = || relay.metrics().value("autoplay_relay_log_store_bytes", &[]).unwrap();
    wait::until("the store's size holds its events", || (bytes..1e6).contains(&in_use()));
    assert_eq!(
        relay.metrics().value("autoplay_relay_log_retention_bytes", &[]),
        Some(f64::from(1 << 30))
    );
    assert_eq!(relay.resume("0").numbers(50).len(), 50);
    relay.stop();
    assert_eq!(data.names(), ["relay.db", "relay.lock"], "a closed store is one file");
}

fn epoch(frame: &Frame) -> u64 {
    frame.id().split_once('-').unwrap().0.parse().unwrap()
}
