//! An edge played by the test, frame by frame, and the leaf behind it.

use crate::common::{
    connector::{Connector, Link},
    events::event,
    relay::{Relay, Setup},
};

/// Header fields of a leaf with an empty log.
pub(super) const FOLLOW: &[(&str, &str)] = &[("Last-Event-ID", "0"), ("Autoplay-Relay", "follow")];

/// Path of a stream with every kept event, then live ones.
pub(super) const FROM_OLDEST: &str = "/stream/prod_abc?last_event_id=0";

/// Starts a leaf behind an edge played by the test.
pub(super) fn edge_and_leaf() -> (Connector, Relay) {
    let edge = Connector::new();
    let leaf = Setup::behind_relay(edge.address).start();
    (edge, leaf)
}

/// Sends the events `7-n` with the numbers n.
pub(super) fn send(link: &mut Link, numbers: std::ops::Range<usize>) {
    send_of(link, 7, numbers);
}

pub(super) fn send_of(link: &mut Link, epoch: usize, numbers: std::ops::Range<usize>) {
    numbers.for_each(|n| link.event_as(&format!("{epoch}-{n}"), event(n)));
}

/// Returns the resume id and the follow field of a leaf's request.
pub(super) fn resume_fields(link: &Link) -> (Option<&str>, Option<&str>) {
    (link.request.field("last-event-id"), link.request.field("autoplay-relay"))
}
