//! A subscriber that does not read affects no other.

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event_of, number},
    relay::Setup,
};

#[test]
fn a_subscriber_that_reads_nothing_is_disconnected_while_the_others_get_everything_in_order() {
    const EVENTS: usize = 1500;
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '1s'").start();
    let mut link = connector.stream();
    let _stalled = relay.subscribe();
    let mut others: Vec<_> = (0..4).map(|_| relay.subscribe()).collect();
    // Twelve megabytes: more than the sockets of both ends hold.
    let session = "x".repeat(8000);
    std::thread::scope(|scope| {
        let readers: Vec<_> = others
            .iter_mut()
            .map(|other| scope.spawn(|| (0..EVENTS).all(|n| number(&other.event().data) == n)))
            .collect();
        for n in 0..EVENTS {
            link.event(event_of(&session, n));
        }
        for reader in readers {
            assert!(reader.join().unwrap());
        }
    });
    let stalled = [("transport", "sse"), ("reason", "stalled")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &stalled, 1.0);
    relay.wait_for_subscribers(4.0);
    link.event(event_of("after", EVENTS));
    for other in &mut others {
        assert_eq!(other.numbers(1), [EVENTS]);
    }
    let events = [("product_id", PRODUCT), ("type", "actions")];
    relay.wait_for_metric("autoplay_relay_upstream_events_total", &events, EVENTS as f64 + 1.0);
}

#[test]
fn a_subscriber_that_reads_slowly_is_not_disconnected() {
    const EVENTS: usize = 1500;
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '2s'").start();
    let mut link = connector.stream();
    let mut slow = relay.subscribe();
    let session = "x".repeat(8000);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..EVENTS).for_each(|n| link.event(event_of(&session, n))));
        for n in 0..EVENTS {
            assert_eq!(number(&slow.event().data), n);
            if n % 150 == 149 {
                // The reader's script: each pause is far shorter than the time-out, all together
                // are longer.
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
        }
    });
    let stalled = [("transport", "sse"), ("reason", "stalled")];
    let stalled = relay.metrics().value("autoplay_relay_subscriber_disconnects_total", &stalled);
    assert!(matches!(stalled, None | Some(0.0)), "{stalled:?}");
}

#[test]
fn a_stalled_subscriber_gets_a_gap_for_the_events_that_it_missed() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let large = |n| event_of(&"x".repeat(20_000), n);
    // The sockets hold a few megabytes at most.
    (0..1000).for_each(|n| link.event(large(n)));
    relay.wait_for_metric(
        "autoplay_relay_upstream_events_total",
        &[("product_id", PRODUCT), ("type", "actions")],
        1000.0,
    );
    let (mut next, mut last_id, mut notices) = (0, None, 0);
    while next < 1000 {
        let frame = subscriber.item();
        if frame.event.as_deref() == Some("gap") {
            let notice = frame.json();
            assert_eq!(
                (&notice["reason"], notice["after"].as_str()),
                (&"evicted".into(), last_id.as_deref())
            );
            let first = subscriber.event();
            assert_eq!(notice["before"].as_str(), Some(first.id()));
            assert!(number(&first.data) > next, "events were missed");
            next = number(&first.data) + 1;
            last_id = first.id;
            notices += 1;
            continue;
        }
        assert_eq!(number(&frame.data), next, "no hole without a notice");
        next += 1;
        last_id = frame.id;
    }
    assert!(notices >= 1);
    let labels = [("product_id", PRODUCT), ("reason", "evicted")];
    assert_eq!(
        relay.metrics().value("autoplay_relay_gaps_total", &labels),
        Some(f64::from(notices))
    );
}
