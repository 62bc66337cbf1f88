//! Clients that move between chained relays.

use std::time::Duration;

use super::{leaf_behind, leaf_of, publish, setup_behind};
use crate::common::{
    bridge::Bridge,
    connector::{Connector, Link},
    events::{event, number},
    relay::Relay,
};

#[test]
fn a_client_that_moves_to_a_lagging_leaf_waits_for_it() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let (leaf, lagging) = (leaf_of(&edge), leaf_behind(&bridge, ""));
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    publish(&mut link, &mut at_edge, 0..5);
    lagging.wait_for_events(5);
    bridge.block();
    publish(&mut link, &mut at_edge, 5..10);
    let ids: Vec<_> = (0..10).map(|_| at_leaf.event().id.unwrap()).collect();
    let mut moved = [lagging.resume(&ids[9]), lagging.resume(&ids[7]), lagging.resume(&ids[4])];
    moved.iter_mut().for_each(|subscriber| subscriber.expect_nothing(Duration::from_millis(300)));
    bridge.unblock();
    publish(&mut link, &mut at_edge, 10..12);
    assert_eq!(moved[0].numbers(2), [10, 11]);
    assert_eq!(moved[1].numbers(4), [8, 9, 10, 11]);
    assert!(moved[2].numbers(7).into_iter().eq(5..12));
    assert_eq!(lagging.all_gaps(), 0.0);
}

#[test]
fn a_client_that_moves_between_edge_and_leaves_sees_every_event_once() {
    const EVENTS: usize = 400;
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let (leaf, cut_off) = (leaf_of(&edge), leaf_behind(&bridge, ""));
    let relays = [&edge, &leaf, &cut_off];
    let mut subscriber = edge.subscribe();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..EVENTS {
                link.event(event(n));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut moves = 0;
        while seen.len() < EVENTS {
            let mut id = String::new();
            for _ in 0..(5 + moves % 7).min(EVENTS - seen.len()) {
                let frame = subscriber.event();
                seen.push(number(&frame.data));
                id = frame.id.unwrap();
            }
            moves += 1;
            if moves % 10 == 0 {
                bridge.cut();
            }
            subscriber = relays[moves % 3].resume(&id);
        }
    });
    assert!(seen.into_iter().eq(0..EVENTS));
    assert_eq!(relays.iter().map(|relay| relay.all_gaps()).sum::<f64>(), 0.0);
}

#[test]
fn a_chain_of_three_relays_delivers_the_same_as_one() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let to_edge = Bridge::to(edge.public);
    let mut middle = leaf_behind(&to_edge, "");
    let to_middle = Bridge::to(middle.public);
    let leaf = leaf_behind(&to_middle, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let mut same = |link: &mut Link, numbers| {
        publish(link, &mut at_edge, numbers)
            .iter()
            .for_each(|frame| assert_eq!(at_leaf.event(), *frame));
    };
    same(&mut link, 0..5);
    to_edge.cut();
    same(&mut link, 5..10);
    to_middle.cut();
    same(&mut link, 10..15);
    middle.process.signal("KILL");
    middle.process.exit_code();
    to_edge.block();
    let middle = setup_behind(&to_edge, "").start();
    to_middle.redirect_to(middle.public);
    middle.wait_for_subscribers(1.0); // the leaf reconnects before the middle has any event
    to_edge.unblock();
    same(&mut link, 15..20);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(at_edge.gap().id(), at_leaf.gap().id());
    link.event(event(20));
    assert_eq!(at_edge.event(), at_leaf.event());
    for relay in [&middle, &leaf] {
        assert_eq!((relay.all_gaps(), relay.gaps("upstream_reconnect")), (1.0, 1.0));
        let mut all = relay.resume("0");
        assert!(all.numbers(20).into_iter().eq(0..20));
        all.gap();
        assert_eq!(all.numbers(1), [20]);
    }
}
