//! Ids that were shown and then lost with the process: their clients continue behind the end of the
//! epoch, and get nothing again that they have seen.

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::{event, number},
    page::Page,
    relay::Relay,
    store::DataDir,
    subscriber::Frame,
    wait,
};

#[test]
fn a_client_whose_last_event_was_lost_in_a_kill_continues_behind_the_end_of_its_epoch() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut relay = data.relay(&connector);
    let mut link = connector.stream();
    let kept = relay.publish(&mut link, 0..20);
    relay.wait_until_persisted(20);
    let lost = publish_uncommitted(&relay, &mut link, 20);
    relay.process.kill();
    drop(link);
    let relay = data.relay(&connector);
    let mut link = relay.reconnect(&connector);
    let new = relay.publish(&mut link, 100..103);
    for frame in &lost {
        assert_continues(&relay, frame.id(), &new);
    }
    let mut known = relay.resume(kept[18].id());
    assert_eq!(known.event(), kept[19], "a committed id is known");
    assert_eq!(known.gap().reason(), "upstream_reconnect");
    let mut foreign = relay.resume("1-1");
    assert_eq!(foreign.gap().reason(), "unknown_id");
    assert_eq!(foreign.event(), kept[0], "an id of another log starts at the oldest");
}

#[test]
fn an_epoch_of_which_nothing_was_committed_is_known_after_two_more_lives() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let kept = relay.publish(&mut link, 0..20);
    relay.wait_until_persisted(20);
    relay.stop();
    drop(link);
    let mut lost = Vec::new();
    for life in 1..3 {
        let mut relay = data.relay(&connector);
        relay.process.limit_file_size(Some(0));
        let mut link = relay.reconnect(&connector);
        lost.extend(publish_uncommitted(&relay, &mut link, life * 1000));
        relay.process.kill();
    }
    for _ in 0..2 {
        let relay = data.relay(&connector);
        let mut link = relay.reconnect(&connector);
        let new = relay.publish(&mut link, 100..103);
        let mut known = relay.resume(kept[19].id());
        assert_eq!(known.gap().reason(), "upstream_reconnect");
        for frame in &lost {
            let mut resumed = relay.resume(frame.id());
            assert_eq!(resumed.gap().reason(), "unknown_id");
            assert_eq!(resumed.gap().reason(), "upstream_reconnect", "nothing that it has seen");
            let next = resumed.item();
            assert!(next == new[0] || number(&next.data) == 100, "{next:?}");
        }
        relay.stop();
    }
}

#[test]
fn an_id_from_the_future_of_a_known_epoch_gets_nothing_that_was_before_it() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.relay(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..20);
    let (epoch, _) = frames[0].id().split_once('-').unwrap();
    let future = format!("{epoch}-1000");
    let mut resumed = relay.resume(&future);
    let gap = resumed.gap();
    let notice = gap.json();
    assert_eq!((gap.reason().as_str(), gap.id()), ("unknown_id", frames[19].id()));
    assert_eq!((notice["after"].as_str(), notice["before"].as_str()), (Some(&*future), None));
    link.event(event(20));
    assert_eq!(resumed.numbers(1), [20]);
}

/// Publishes events that clients see and the store cannot commit.
fn publish_uncommitted(relay: &Relay, link: &mut Link, first: usize) -> Vec<Frame> {
    relay.process.limit_file_size(Some(0));
    let lost = relay.publish(link, first..first + 5);
    wait::until("the store is degraded", || {
        relay.metrics().value("autoplay_relay_log_degraded", &[]) == Some(1.0)
    });
    lost
}

/// Checks that a client with this lost id gets the notice, and then what follows the epoch.
fn assert_continues(relay: &Relay, id: &str, new: &[Frame]) {
    let mut resumed = relay.resume(id);
    let gap = resumed.gap();
    let notice = gap.json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"unknown_id".into(), &id.into()));
    let outage = resumed.gap();
    assert_eq!(outage.reason(), "upstream_reconnect");
    assert_eq!(notice["before"], outage.id());
    new.iter().for_each(|frame| assert_eq!(resumed.event(), *frame));
    let mut again = relay.resume(gap.id());
    assert_eq!(again.gap().id(), outage.id(), "the id of the gap repeats neither it nor an event");
    let mut socket = relay.socket(&format!("/ws/{PRODUCT}?last_event_id={id}"));
    assert_eq!(socket.item()["data"]["reason"], "unknown_id");
    assert_eq!(socket.item()["data"]["reason"], "upstream_reconnect");
    assert_eq!(socket.numbers(3), [100, 101, 102]);
    let first = Page::get(relay, &format!("?last_event_id={id}"));
    assert_eq!((first.reason(), first.events.len()), (Some("unknown_id"), 0));
    let second = Page::get(relay, &format!("?last_event_id={}", first.next));
    assert_eq!((second.reason(), &second.events[..]), (Some("upstream_reconnect"), new));
}
