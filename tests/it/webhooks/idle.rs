//! Webhooks that wait for an event, beside a relay without webhooks.

use std::{thread, time::Duration};

use tempfile::TempDir;

use crate::common::{
    connector::Connector,
    events::event_like,
    receiver::Receiver,
    relay::Setup,
    webhooks::{LOOPBACK, table},
};

/// Number of webhooks.
const WEBHOOKS: usize = 10;

/// Time in which wake-ups are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Windows, of which one has to be quiet: the first may be too early, and on a busy machine threads
/// wait for the disk and for each other, too.
const WINDOWS: usize = 6;

/// Wake-ups in [`WINDOW`] beyond those of a relay without webhooks, for what differs between two
/// processes. Ten webhooks with a timer of a second have 10 at least in each window.
const MAX_DIFFERENCE: i64 = 5;

/// Time between the events of two webhooks: workers with a timer would not share its ticks.
const STAGGER: Duration = Duration::from_millis(90);

/// Events that no webhook is to receive.
const HIDDEN_EVENTS: usize = 50;

/// Checks that idle webhooks cost no wake-up, after traffic that concerns them, and after traffic
/// that does not. `log` has the lines of `[log]` for each of the two relays.
fn assert_idle_webhooks_cost_nothing(log: &[String; 2]) {
    let (connectors, receiver) = ([Connector::new(), Connector::new()], Receiver::accepting());
    let (hook, kind) = (|n: usize| format!("hook{n}"), |n: usize| format!("kind{n}"));
    let hooks: String = (0..WEBHOOKS)
        .map(|n| table(&hook(n), &receiver, &format!("types = ['{}']", kind(n))))
        .collect();
    let without = Setup::behind(&connectors[0]).log(&log[0]).start();
    let with = Setup::behind(&connectors[1]).log(&log[1]).more(&(hooks + LOOPBACK)).start();
    let mut links = connectors.each_ref().map(Connector::stream);
    for n in 0..HIDDEN_EVENTS {
        links.iter_mut().for_each(|link| link.event(event_like("summary", "s1", n)));
    }
    for n in 0..WEBHOOKS {
        links.iter_mut().for_each(|link| link.event(event_like(&kind(n), "s1", n)));
        receiver.wait_for_accepted(n + 1);
        with.wait_until_settled(&hook(n));
        thread::sleep(STAGGER);
    }
    // Side by side, so that both see the same machine.
    let count = || [&without, &with].map(|relay| relay.process.wake_ups());
    let windows = (0..WINDOWS).map(|_| {
        let before = count();
        thread::sleep(WINDOW);
        let after = count();
        [after[0] - before[0], after[1] - before[1]]
    });
    let mut counts = Vec::new(); // wake-ups without webhooks, and with them
    for window in windows {
        counts.push(window);
        if window[1] - window[0] <= MAX_DIFFERENCE {
            break;
        }
    }
    assert!(
        counts.last().is_some_and(|[others, with]| with - others <= MAX_DIFFERENCE),
        "{counts:?}"
    );
    (0..WEBHOOKS).for_each(|n| links[1].event(event_like(&kind(n), "s1", n)));
    receiver.wait_for_accepted(2 * WEBHOOKS); // they still notice an event
}

#[test]
fn an_idle_webhook_is_never_woken() {
    assert_idle_webhooks_cost_nothing(&[String::new(), String::new()]);
}

#[test]
fn an_idle_webhook_is_never_woken_where_the_log_is_durable() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let log = |directory: &TempDir| format!("data_dir = '{}'", directory.path().display());
    assert_idle_webhooks_cost_nothing(&directories.each_ref().map(log));
}
