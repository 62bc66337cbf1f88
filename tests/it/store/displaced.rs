//! The store's files are taken away, replaced or write-protected while the relay runs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::event,
    http,
    receiver::Receiver,
    relay::Relay,
    store::DataDir,
    wait,
    webhooks::{LOOPBACK, table},
};

#[test]
fn the_database_of_another_relay_that_takes_the_name_is_set_aside_with_all_its_bytes() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let (other_connector, other) = (Connector::new(), DataDir::new());
    let stranger = other.relay(&other_connector);
    let strange = stranger.publish(&mut other_connector.stream(), 1000..1040);
    stranger.wait_until_persisted(40);
    stranger.stop();
    let bytes = fs::read(other.database()).unwrap();
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    assert_eq!(relay.resume(frames[0].id()).event(), frames[1]);
    fs::rename(other.database(), data.database()).unwrap();
    assert_eq!(relay.process.log_line(TAKEN)["level"], "ERROR");
    assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
    assert!(fs::read(&data.set_aside()[0]).unwrap() == bytes, "nothing was written to it");
    wait_until_whole(&relay);
    let live = relay.publish(&mut link, 30..60);
    let mut resumed = relay.resume(frames[0].id());
    let notice = resumed.gap().json();
    assert_eq!((&notice["reason"], &notice["after"]), (&json!("not_kept"), &json!(frames[0].id())));
    let first = frames.iter().position(|it| it.id() == notice["before"]).unwrap();
    frames[first..].iter().chain(&live).for_each(|frame| assert_eq!(resumed.event(), *frame));
    relay.wait_until_persisted(30 - first + 30);
    relay.stop();
    let relay = data.relay(&connector);
    assert_eq!(relay.resume(live[0].id()).event(), live[1], "the new store outlives the process");
    let mut foreign = relay.resume(strange[3].id());
    foreign.gap();
    assert_eq!(foreign.event(), frames[first], "nothing of the other relay is here");
}

#[test]
fn a_database_that_takes_the_name_while_the_store_cannot_be_written_is_not_mixed_with_it() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let (other_connector, other) = (Connector::new(), DataDir::new());
    let stranger = other.relay(&other_connector);
    stranger.publish(&mut other_connector.stream(), 1000..1040);
    stranger.wait_until_persisted(40);
    stranger.stop();
    let bytes = fs::read(other.database()).unwrap();
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    relay.process.limit_file_size(Some(0));
    relay.publish(&mut link, 30..31);
    wait::until("degraded", || degraded(&relay) == Some(1.0));
    fs::rename(other.database(), data.database()).unwrap();
    relay.process.limit_file_size(None);
    assert_eq!(relay.process.log_line(SET_ASIDE)["level"], "ERROR");
    assert!(fs::read(&data.set_aside()[0]).unwrap() == bytes, "nothing was written to it");
    assert_eq!(data.set_aside().len(), 1);
    wait_until_whole(&relay);
    let live = relay.publish(&mut link, 31..40);
    relay.wait_until_persisted(16 + 9);
    relay.stop();
    let relay = data.relay(&connector);
    assert_eq!(relay.resume(live[0].id()).event(), live[1]);
}

#[test]
fn a_database_that_is_removed_is_begun_anew_within_seconds() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    fs::remove_file(data.database()).unwrap();
    assert_eq!(relay.process.log_line(TAKEN)["level"], "ERROR");
    wait::until("there is a database again", || data.database().exists());
    wait_until_whole(&relay);
    let live = relay.publish(&mut link, 30..40);
    let first = 30 - MEMORY_EVENTS;
    relay.wait_until_persisted(MEMORY_EVENTS + 10);
    relay.stop();
    let relay = data.relay(&connector);
    let mut resumed = relay.resume(frames[0].id());
    assert_eq!(resumed.gap().reason(), "not_kept");
    frames[first..].iter().chain(&live).for_each(|frame| assert_eq!(resumed.event(), *frame));
}

#[test]
fn a_write_ahead_log_that_is_removed_costs_nothing() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut relay = data.relay(&connector);
    let mut link = connector.stream();
    let mut frames = relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    assert_eq!(relay.resume(frames[0].id()).event(), frames[1], "a reader has it open");
    fs::rename(data.path().join("relay.db-wal"), data.path().join("elsewhere")).unwrap();
    assert_eq!(relay.process.log_line(WAL_TAKEN)["level"], "ERROR");
    wait_until_whole(&relay);
    frames.extend(relay.publish(&mut link, 30..60));
    let mut resumed = relay.resume(frames[0].id());
    frames[1..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    relay.wait_until_persisted(60);
    relay.process.kill();
    let relay = data.relay(&connector);
    let mut resumed = relay.resume(frames[0].id());
    frames[1..].iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    assert_eq!((relay.gaps("not_kept"), data.set_aside().len()), (0.0, 0));
}

#[test]
fn a_store_that_turns_read_only_is_reported_with_a_remedy_and_used_again_once_it_is_writable() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let publishers = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";
    let hook = table("hook", &receiver, "") + LOOPBACK;
    // Root may write everywhere, so the test drops the relay's capabilities.
    let command = "setpriv --inh-caps=-all --bounding-set=-all --";
    let relay = data.setup(&connector, "").auth(publishers).more(&hook).start_under(command);
    let mut link = connector.stream();
    let mut frames = relay.publish(&mut link, 0..30);
    relay.wait_until_persisted(30);
    assert_eq!(publish(&relay, 30)["durable"], true);
    set_writable(data.path(), false);
    relay.process.limit_file_size(Some(0)); // the files are open: only a write that fails closes them
    assert_eq!(publish(&relay, 31)["durable"], false);
    wait::until("degraded", || degraded(&relay) == Some(1.0));
    relay.process.limit_file_size(None);
    let line = relay.process.log_line("the store still cannot be written");
    let remedy = line["remedy"].as_str().unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(remedy.starts_with("make log.data_dir and all files in it writable"), "{line}");
    let mut all = relay.subscribe();
    assert_eq!(publish(&relay, 32)["durable"], false);
    // The answer did not wait for a commit: a subscriber of this moment might still get the event.
    assert_eq!(all.numbers(1), [32]);
    frames.extend(relay.publish(&mut link, 33..36));
    let accepted = receiver.wait_for_accepted(36);
    assert_eq!(accepted.len(), 36, "webhooks are delivered meanwhile");
    assert_eq!(relay.ask_admin("/readyz").json()["degraded"], json!(true));
    set_writable(data.path(), true);
    relay.process.log_line("the store can be written again");
    wait_until_whole(&relay);
    relay.wait_until_persisted(36);
    relay.wait_until_settled("hook");
    assert_eq!(publish(&relay, 36)["durable"], true);
    receiver.wait_for_accepted(37);
    relay.wait_until_settled("hook");
    relay.stop();
    let relay = data.setup(&connector, "").more(&hook).start();
    assert!(relay.resume("0").numbers(37).into_iter().eq(0..37));
    relay.wait_until_settled("hook");
    assert_eq!(receiver.requests().len(), 37, "their outcomes were written afterwards");
}

/// Publishes an event, and returns the answer.
fn publish(relay: &Relay, number: usize) -> serde_json::Value {
    let path = format!("/events/{PRODUCT}");
    let answer = http::ask_with(relay.public, "POST", &path, &[], &event(number));
    assert_eq!(answer.status(), 202, "{answer:?}");
    answer.json()
}

/// Lets the owner write to a directory and its files, or not.
fn set_writable(directory: &Path, is_writable: bool) {
    let mode =
        |mode: u32| fs::Permissions::from_mode(if is_writable { mode } else { mode & 0o555 });
    fs::set_permissions(directory, mode(0o700)).unwrap();
    for file in fs::read_dir(directory).unwrap() {
        fs::set_permissions(file.unwrap().path(), mode(0o600)).unwrap();
    }
}

fn degraded(relay: &Relay) -> Option<f64> {
    relay.metrics().value("autoplay_relay_log_degraded", &[])
}

fn wait_until_whole(relay: &Relay) {
    wait::until("no longer degraded", || degraded(relay) == Some(0.0));
}

/// Events that the relays of [`DataDir`] keep in memory.
const MEMORY_EVENTS: usize = 16;

const TAKEN: &str = "the store's file was taken away or another has its name";

const WAL_TAKEN: &str =
    "the store's write-ahead log was taken away: begun anew, and nothing is lost";

const SET_ASIDE: &str =
    "the store is damaged: set aside, and a new one begun; what it kept cannot be replayed";
