//! A wall clock that jumps: nothing is deleted for an age that no time has given it.
//!
//! The clock of the relay is shifted by a library that the test compiles and preloads.

use std::{fs, path::Path, process::Command, time::Duration};

use tempfile::TempDir;

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event,
    receiver::{Answer, Receiver},
    relay::{Relay, Setup},
    store::DataDir,
    wait, webhooks,
};

/// Wall clock of a relay, which the test can set.
struct ShiftedClock {
    directory: TempDir,
}

impl ShiftedClock {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shifted_clock.c");
        let library = directory.path().join("shifted_clock.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status()
            .unwrap();
        assert!(compiled.success());
        let clock = Self { directory };
        clock.shift(0);
        clock
    }

    /// Sets the wall clock ahead of the true time by these seconds.
    fn shift(&self, seconds: i64) {
        // In place: the relay has the file mapped.
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.directory.path().join("seconds"))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0).unwrap();
    }

    fn start(&self, setup: &Setup) -> Relay {
        let path = |name| self.directory.path().join(name).to_str().unwrap().to_owned();
        setup.start_with(&[
            ("LD_PRELOAD", &path("shifted_clock.so")),
            ("SHIFTED_CLOCK", &path("seconds")),
        ])
    }
}

/// A relay with kept events, a dead letter and a delivery that is owed, before the clock jumps.
struct Kept {
    clock: ShiftedClock,
    _connector: Connector,
    _data: DataDir,
    receiver: Receiver,
    relay: Relay,
    link: Link,
}

impl Kept {
    fn new() -> Self {
        let (clock, connector, data) = (ShiftedClock::new(), Connector::new(), DataDir::new());
        let receiver = Receiver::answering(410);
        let lines = "retention = '24h'\ndead_letter_retention = '24h'";
        let tables = webhooks::LOOPBACK.to_owned() + &webhooks::table("hook", &receiver, "");
        let relay = clock.start(&data.setup(&connector, lines).more(&tables));
        let mut link = connector.stream();
        // The answer 410 makes the first delivery a dead letter, and disables the webhook, so that
        // the others are owed.
        relay.publish(&mut link, 0..1);
        relay.wait_for_webhook("hook", "disabled");
        relay.publish(&mut link, 1..40);
        relay.wait_until_persisted(40);
        relay.wait_for_pending("hook", 39);
        Self { clock, _connector: connector, _data: data, receiver, relay, link }
    }

    /// Shifts the clock, publishes 20 more events meanwhile, and sets the clock right again.
    fn jump(&mut self, seconds: i64) {
        self.clock.shift(seconds);
        let warning = self.relay.process.log_line(JUMPED);
        let by = warning["by_seconds"].as_i64().unwrap();
        assert!((by - seconds).abs() <= 1, "{warning}");
        self.relay.publish(&mut self.link, 40..60);
        // The writer looks for what is too old each second at least.
        wait::holds("everything is kept", Duration::from_secs(3), || self.is_whole());
        self.clock.shift(0);
        self.relay.process.log_line(RETURNED);
        wait::holds("everything is kept", Duration::from_secs(3), || self.is_whole());
    }

    fn is_whole(&self) -> bool {
        let labels = [("product_id", PRODUCT), ("tier", "disk")];
        let events = self.relay.metrics().value("autoplay_relay_log_events", &labels).unwrap();
        let webhook = self.relay.webhook("hook");
        let is_owed = webhook["pending"].as_u64().unwrap() >= 39;
        events >= 40.0 && webhook["dead"] == 1 && is_owed
    }

    /// Checks that all events are replayed, and all that was owed is delivered.
    fn assert_all_delivered(&self) {
        self.relay.wait_until_persisted(60);
        assert_eq!(self.relay.resume("0").numbers(60), (0..60).collect::<Vec<_>>());
        self.receiver.set_script(|_| Answer::Status(200));
        assert_eq!(self.relay.command_webhook("hook", "enable").status(), 200);
        self.relay.wait_until_settled("hook");
        let mut numbers: Vec<_> =
            self.receiver.accepted().iter().map(|request| request.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..60).collect::<Vec<_>>());
        self.relay.wait_for_dead("hook", 1);
        let warnings = self.relay.process.stderr.so_far();
        assert_eq!(warnings.iter().filter(|line| line.contains(JUMPED)).count(), 1, "once");
    }
}

#[test]
fn a_wall_clock_that_is_days_ahead_for_a_while_deletes_nothing() {
    let mut kept = Kept::new();
    kept.jump(2 * DAY);
    kept.assert_all_delivered();
}

#[test]
fn a_wall_clock_that_is_days_behind_for_a_while_deletes_nothing() {
    let mut kept = Kept::new();
    kept.jump(-2 * DAY);
    kept.assert_all_delivered();
}

#[test]
fn events_that_really_are_too_old_are_deleted_after_a_jump_too() {
    let (clock, connector, data) = (ShiftedClock::new(), Connector::new(), DataDir::new());
    let relay = clock.start(&data.setup(&connector, "retention = '2s'"));
    let mut link = connector.stream();
    relay.publish(&mut link, 0..20);
    clock.shift(2 * DAY);
    relay.process.log_line(JUMPED);
    relay.publish(&mut link, 20..40);
    relay.wait_until_persisted(40);
    clock.shift(0);
    relay.process.log_line(RETURNED);
    relay.publish(&mut link, 40..60);
    // Those of the jump are stamped two days ahead, and must not hold the others.
    wait::until("the log is empty", || relay.status()["log"][PRODUCT]["oldest"].is_null());
    link.event(event(60));
    assert_eq!(relay.resume("0").numbers(1), [60]);
}

#[test]
fn small_steps_of_the_wall_clock_leave_retention_alone() {
    let (clock, connector, data) = (ShiftedClock::new(), Connector::new(), DataDir::new());
    let relay = clock.start(&data.setup(&connector, "retention = '2s'"));
    let mut link = connector.stream();
    relay.publish(&mut link, 0..20);
    relay.wait_until_persisted(20);
    clock.shift(-3);
    wait::until("the log is empty", || relay.status()["log"][PRODUCT]["oldest"].is_null());
    assert!(!relay.process.stderr.so_far().iter().any(|line| line.contains(JUMPED)));
}

const DAY: i64 = 24 * 60 * 60;

/// Message of the log when the clock has jumped.
const JUMPED: &str = "the wall clock has jumped: nothing is deleted for its age until it agrees with the monotonic clock \
                      again, or for a day; check the machine's time synchronization";

/// Message of the log when the clock is right again.
const RETURNED: &str =
    "the wall clock agrees with the monotonic clock again: what is too old is deleted again";
