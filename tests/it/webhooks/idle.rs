//! A relay with nothing to do, and webhooks that wait for an event.

use std::{thread, time::Duration};

use crate::common::{
    connector::Connector,
    receiver::Receiver,
    relay::Setup,
    webhooks::{LOOPBACK, table},
};

/// Number of webhooks.
const WEBHOOKS: usize = 10;

/// Time in which wake-ups are counted.
const WINDOW: Duration = Duration::from_secs(2);

/// Wake-ups in [`WINDOW`] beyond those of a relay without webhooks: a look of each webhook in a
/// second, for ages and changed states, and as much again for what differs between two processes.
const MAX_DIFFERENCE: i64 = 40;

#[test]
fn an_idle_webhook_looks_once_a_second_at_most() {
    let (connectors, receiver) = ([Connector::new(), Connector::new()], Receiver::accepting());
    let hooks: String = (0..WEBHOOKS).map(|n| table(&format!("hook{n}"), &receiver, "")).collect();
    let without = Setup::behind(&connectors[0]).start();
    let with = Setup::behind(&connectors[1]).more(&(hooks + LOOPBACK)).start();
    let mut links = connectors.each_ref().map(Connector::stream);
    for (relay, link) in [&without, &with].into_iter().zip(&mut links) {
        relay.publish(link, 0..1);
    }
    receiver.wait_for_accepted(WEBHOOKS);
    (0..WEBHOOKS).for_each(|n| with.wait_until_settled(&format!("hook{n}")));
    // Side by side, so that both see the same machine.
    let count = || [&without, &with].map(|relay| relay.process.wake_ups());
    let before = count();
    thread::sleep(WINDOW);
    let after = count();
    let [others, of_webhooks] = [after[0] - before[0], after[1] - before[1]];
    assert!(of_webhooks - others <= MAX_DIFFERENCE, "{of_webhooks} wake-ups, without: {others}");
    with.publish(&mut links[1], 1..2);
    receiver.wait_for_accepted(2 * WEBHOOKS); // they still notice an event
}
