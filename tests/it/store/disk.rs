//! A full disk: live delivery continues, a loss is announced, and the store recovers by itself once
//! the disk has space.

use std::{fs, path::Path, process::Command};

use crate::common::{
    connector::{Connector, Link},
    events::{event_of, number},
    relay::Relay,
    store::DataDir,
    subscriber::{Frame, Subscriber},
    wait,
};

#[test]
fn events_in_memory_are_persisted_once_a_full_disk_has_space() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let mut frames = send(&mut link, &mut all, 0..100, 100);
    relay.wait_until_persisted(100);
    relay.process.limit_file_size(Some(0));
    frames.extend(send(&mut link, &mut all, 100..101, 100));
    wait_until_degraded(&relay, true);
    assert_eq!(relay.process.log_line(FAILED)["level"], "ERROR");
    assert_eq!(relay.ask_admin("/readyz").status(), 200, "the relay serves as before");
    frames.extend(send(&mut link, &mut all, 101..1000, 100));
    let mut resumed = relay.resume(frames[10].id());
    frames[11..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    assert_eq!(stored(&relay), 100.0);
    relay.process.limit_file_size(None);
    wait_until_degraded(&relay, false);
    relay.process.log_line(RECOVERED);
    relay.wait_until_persisted(1000);
    assert_eq!(relay.gaps("not_kept"), 0.0);
    relay.stop();
    let relay = data.relay(&connector);
    let mut again = relay.resume(frames[10].id());
    frames[11..].iter().for_each(|frame| assert_eq!(again.event(), *frame));
}

#[test]
fn events_evicted_from_memory_while_the_disk_is_full_are_one_gap() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.setup(&connector, "memory_bytes = '64KiB'").start();
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let mut frames = send(&mut link, &mut all, 0..100, 100);
    relay.wait_until_persisted(100);
    relay.process.limit_file_size(Some(0));
    // Sixty megabytes: more than memory holds for a store that does not keep up.
    frames.extend(send(&mut link, &mut all, 100..1100, 30_000));
    wait_until_degraded(&relay, true);
    assert_eq!(relay.gaps("not_kept"), 1.0);
    relay.process.limit_file_size(None);
    wait_until_degraded(&relay, false);
    let first = announced_between(&relay, &frames, 100);
    assert!((200..1100).contains(&first), "memory holds half of the events: {first}");
    relay.wait_until_persisted(100 + frames.len() - first);
    // Not before: one of them could push an event out of memory that the writer is writing.
    frames.extend(send(&mut link, &mut all, 1100..1110, 100));
    relay.wait_until_persisted(100 + frames.len() - first);
    assert_eq!(announced_between(&relay, &frames, 100), first);
    assert_eq!(relay.gaps("not_kept"), 1.0, "counted once, announced to every reader");
    relay.stop();
    let relay = data.relay(&connector);
    assert_eq!(announced_between(&relay, &frames, 100), first, "and after a restart");
}

#[test]
fn a_relay_with_a_full_disk_shuts_down_gracefully() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let frames = send(&mut link, &mut all, 0..100, 100);
    relay.wait_until_persisted(100);
    relay.process.limit_file_size(Some(0));
    let lost = send(&mut link, &mut all, 100..120, 100);
    wait_until_degraded(&relay, true);
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    let line = relay.process.log_line("the newest events could not be kept");
    assert_eq!((&line["level"], &line["events"]), (&"ERROR".into(), &20.into()));
    drop(link);
    let relay = data.relay(&connector);
    let _link = relay.reconnect(&connector);
    let mut resumed = relay.resume(frames[98].id());
    assert_eq!(resumed.event(), frames[99]);
    assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect");
    let mut resumed = relay.resume(lost[5].id());
    assert_eq!(
        resumed.gap().json()["reason"],
        "unknown_id",
        "an id that was delivered and not persisted"
    );
}

#[test]
fn a_relay_survives_a_full_disk_and_uses_it_again() {
    let Some(disk) = SmallDisk::mounted() else {
        eprintln!(
            "only root can mount a small disk: the file size limit of the tests above replaces it"
        );
        return;
    };
    let (connector, data) = (Connector::new(), DataDir::at(&disk.0.path().join("data")));
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let mut frames = send(&mut link, &mut all, 0..50, 100);
    relay.wait_until_persisted(50);
    let ballast = disk.0.path().join("ballast");
    fill(&ballast);
    frames.extend(send(&mut link, &mut all, 50..200, 10_000));
    wait_until_degraded(&relay, true);
    assert_eq!(relay.process.log_line(FAILED)["level"], "ERROR");
    let mut resumed = relay.resume(frames[3].id());
    frames[4..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    fs::remove_file(&ballast).unwrap();
    wait_until_degraded(&relay, false);
    relay.wait_until_persisted(200);
    assert_eq!(relay.gaps("not_kept"), 0.0);
    relay.stop();
    let relay = data.relay(&connector);
    let mut again = relay.resume(frames[3].id());
    frames[4..].iter().for_each(|frame| assert_eq!(again.event(), *frame));
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mounted() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(directory.path());
        mount.output().ok()?.status.success().then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as the relay may still run when a test fails.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Fills the disk to its last byte.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    let block = [b'x'; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
}

/// Sends events with payloads of about this size, and checks that each is delivered at once.
fn send(
    link: &mut Link,
    subscriber: &mut Subscriber,
    numbers: std::ops::Range<usize>,
    bytes: usize,
) -> Vec<Frame> {
    let session = "s".repeat(bytes);
    let frames = numbers.map(|n| {
        link.event(event_of(&session, n));
        let frame = subscriber.event();
        assert_eq!(number(&frame.data), n, "no hole in live delivery");
        frame
    });
    frames.collect()
}

/// Checks that all entries but one range, which begins with `lost`, are stored and that a gap
/// announces the range. Returns the index after it.
fn announced_between(relay: &Relay, frames: &[Frame], lost: usize) -> usize {
    let mut resumed = relay.resume(frames[10].id());
    frames[11..lost].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    let notice = resumed.gap().json();
    assert_eq!(
        (&notice["reason"], &notice["after"]),
        (&"not_kept".into(), &frames[lost - 1].id().into())
    );
    let first = frames.iter().position(|frame| frame.id() == notice["before"]).unwrap();
    frames[first..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    first
}

fn wait_until_degraded(relay: &Relay, is_degraded: bool) {
    let expected = f64::from(u8::from(is_degraded));
    wait::until(&format!("degraded is {is_degraded}"), || {
        relay.metrics().value("autoplay_relay_log_degraded", &[]) == Some(expected)
    });
}

fn stored(relay: &Relay) -> f64 {
    let labels = [("product_id", crate::common::PRODUCT), ("tier", "disk")];
    relay.metrics().value("autoplay_relay_log_events", &labels).unwrap()
}

const FAILED: &str = "the store cannot be written: events are delivered, but kept in memory alone; tried again every second";

const RECOVERED: &str = "the store can be written again";
