//! An edge that the test plays, frame by frame, and the leaf behind it.

use crate::common::{
    connector::{Connector, Link},
    events::event,
    relay::{Relay, Setup},
};

/// What a relay asks that has nothing yet.
pub(super) const FOLLOW: &[(&str, &str)] = &[("Last-Event-ID", "0"), ("Autoplay-Relay", "follow")];

/// Everything kept, and what comes.
pub(super) const EVERYTHING: &str = "/stream/prod_abc?last_event_id=0";

/// A leaf behind an edge that the test plays.
pub(super) fn edge_and_leaf() -> (Connector, Relay) {
    let edge = Connector::new();
    let leaf = Setup::behind_relay(edge.address).start();
    (edge, leaf)
}

/// Events 7-n with the number n.
pub(super) fn send(link: &mut Link, numbers: std::ops::Range<usize>) {
    send_of(link, 7, numbers);
}

pub(super) fn send_of(link: &mut Link, epoch: usize, numbers: std::ops::Range<usize>) {
    numbers.for_each(|n| link.event_as(&format!("{epoch}-{n}"), event(n)));
}

/// What a leaf has asked for.
pub(super) fn asked(link: &Link) -> (Option<&str>, Option<&str>) {
    (link.request.field("last-event-id"), link.request.field("autoplay-relay"))
}
