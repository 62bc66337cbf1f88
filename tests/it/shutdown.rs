//! Signals and graceful shutdown: subscribers are drained over the drain window.

use std::time::{Duration, Instant};

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::{event, event_of},
    relay::{Relay, Setup},
    subscriber::{Ending, Subscriber},
    wait,
};

#[test]
fn a_drain_without_subscribers_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let connector = Connector::new();
        let mut relay = Setup::behind(&connector).server("drain_window = '1h'").start();
        let link = connector.stream();
        relay.wait_for_upstream("connected");
        relay.process.signal(signal);
        assert_eq!(relay.process.exit_code(), Some(0));
        assert!(!link.is_open());
    }
}

#[test]
fn a_drain_disconnects_subscribers_over_its_window_with_a_retry_line_and_a_proper_end() {
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '2s'").start();
    let mut link = connector.stream();
    let mut subscribers: Vec<Subscriber> = (0..8).map(|_| relay.subscribe()).collect();
    link.event(event(0));
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.numbers(1), [0]);
    }
    let begin = Instant::now();
    relay.process.signal("TERM");
    let ended: Vec<Duration> = std::thread::scope(|scope| {
        let ends = subscribers.iter_mut().map(|subscriber| {
            scope.spawn(move || {
                let (rest, ending) = subscriber.rest();
                let rest = String::from_utf8(rest).unwrap();
                assert_eq!(ending, Ending::Proper);
                let wait = rest.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix('\n'));
                assert!(wait.is_some_and(|wait| wait.parse::<u32>().is_ok()), "{rest:?}");
                begin.elapsed()
            })
        });
        let ends: Vec<_> = ends.collect();
        ends.into_iter().map(|end| end.join().unwrap()).collect()
    });
    let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
    assert!(
        *last - *first > Duration::from_millis(500),
        "the disconnects are spread over the window: {ended:?}"
    );
    assert!(*last < Duration::from_secs(4), "{ended:?}");
    assert_eq!(relay.process.exit_code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

#[test]
fn two_simultaneous_stop_signals_count_as_one() {
    // `timeout` sends two signals: to the process, and to its group.
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '1s'").start();
    let mut subscriber = relay.subscribe();
    relay.process.two_signals("TERM", "INT");
    assert_eq!(subscriber.rest().1, Ending::Proper);
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn a_drained_subscriber_still_receives_every_logged_event() {
    const EVENTS: usize = 400;
    let connector = Connector::new();
    let mut relay = Relay::behind(&connector); // the drain window is 0 s
    let mut link = connector.stream();
    let mut behind = relay.subscribe();
    // Far more than the sockets hold, so that the subscriber, which does not read yet, lags behind
    // the log.
    let session = "x".repeat(8000);
    (0..EVENTS).for_each(|n| link.event(event_of(&session, n)));
    let labels = [("product_id", PRODUCT), ("tier", "memory")];
    relay.wait_for_metric("autoplay_relay_log_events", &labels, EVENTS as f64);
    relay.process.signal("TERM");
    relay.process.log_line("leaving; a second signal ends the process at once");
    assert!(behind.numbers(EVENTS).into_iter().eq(0..EVENTS));
    assert_eq!(behind.rest().1, Ending::Proper);
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn a_draining_relay_delivers_events_and_sheds_new_subscribers() {
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '6s'").start();
    let mut link = connector.stream();
    let mut subscribers: Vec<Subscriber> = (0..12).map(|_| relay.subscribe()).collect();
    relay.wait_for_subscribers(12.0);
    relay.process.signal("TERM");
    wait::until("readiness ends", || relay.ask_admin("/readyz").status() == 503);
    assert_eq!(relay.ask_admin("/healthz").status(), 200);

    let shed = relay.get(STREAM, &[]).problem(503);
    let wait: u32 = shed.field("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1);
    let browser = relay.get(STREAM, &[("Sec-Fetch-Mode", "cors")]);
    assert_eq!((browser.status(), browser.field("content-type")), (200, Some("text/event-stream")));
    assert!(
        browser.text().starts_with("retry: ") && !browser.text().contains("\n\n"),
        "{browser:?}"
    );
    assert_eq!(browser.field("connection"), Some("close"));
    relay.wait_for_metric("autoplay_relay_shed_total", &[("reason", "draining")], 2.0);

    link.event(event(7));
    let mut received = 0;
    for subscriber in &mut subscribers {
        let (rest, ending) = subscriber.rest();
        assert_eq!(ending, Ending::Proper);
        received += usize::from(String::from_utf8(rest).unwrap().contains(&event(7)));
    }
    assert!(received >= 6, "subscribers still connected got the event: {received} of 12");
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn drained_subscribers_are_counted_as_drain() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("drain_window = '4s'").start();
    let _subscribers: Vec<Subscriber> = (0..10).map(|_| relay.subscribe()).collect();
    relay.wait_for_subscribers(10.0);
    relay.process.signal("TERM");
    let drained = [("transport", "sse"), ("reason", "drain")];
    let count = wait::value("the first subscribers are disconnected", || {
        let metrics = relay.metrics();
        metrics
            .value("autoplay_relay_subscriber_disconnects_total", &drained)
            .filter(|count| *count >= 3.0)
    });
    assert!(count <= 10.0);
}

#[test]
fn a_subscriber_that_resumes_at_the_next_relay_gets_an_unknown_id_gap() {
    let connector = Connector::new();
    let mut relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(0));
    let id = subscriber.event().id.unwrap();
    relay.process.signal("TERM");
    subscriber.rest();
    assert_eq!(relay.process.exit_code(), Some(0));
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut resumed = relay.resume(&id);
    assert_eq!(resumed.gap().json()["reason"], "unknown_id", "a log in memory does not survive");
    link.event(event(1));
    assert_eq!(resumed.numbers(1), [1]);
}

#[test]
fn a_second_signal_ends_the_process_at_once_with_1() {
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '1h'").start();
    let _subscribers: Vec<Subscriber> = (0..3).map(|_| relay.subscribe()).collect();
    relay.process.signal("TERM");
    wait::until("the relay drains", || relay.ask_admin("/readyz").status() == 503);
    assert!(relay.process.is_running());
    relay.process.signal("INT");
    assert_eq!(relay.process.exit_code(), Some(1));
}

#[test]
fn an_upstream_that_does_not_answer_does_not_delay_shutdown() {
    let (silent, busy) = (Connector::new(), Connector::new());
    let mut relay = Setup::behind(&silent).upstream("prod_xyz", &busy.url("prod_xyz"), "").start();
    let _silent = silent.accept();
    busy.accept().refuse("503 Service Unavailable", "Retry-After: 120\r\n");
    wait::until("the upstream backs off", || relay.upstream_state("prod_xyz") == "backing_off");
    let begin = Instant::now();
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn a_stalled_subscriber_does_not_delay_shutdown() {
    let connector = Connector::new();
    let mut relay =
        Setup::behind(&connector).server("drain_window = '500ms'\nwrite_timeout = '1h'").start();
    let mut link = connector.stream();
    let _stalled = relay.subscribe();
    let large = crate::common::events::event_of(&"x".repeat(8000), 1);
    (0..1500).for_each(|_| link.event(&large));
    relay.process.signal("TERM");
    let begin = Instant::now();
    assert_eq!(relay.process.exit_code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
}

#[test]
fn a_hangup_signal_disturbs_no_connection() {
    let connector = Connector::new();
    let mut relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(0));
    assert_eq!(subscriber.numbers(1), [0]);
    relay.process.signal("HUP");
    connector.expect_no_connection(Duration::from_millis(300));
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
    assert!(relay.process.is_running());
}
