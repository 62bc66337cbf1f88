//! State of a log's upstream: which side assigns the ids, and how far the log is behind.
//!
//! May use: `event`.

use tokio::time::Instant;

use crate::event::EventId;

/// Side that gives the ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Numbering {
    /// Not known yet: the upstream has not answered.
    Undecided,
    /// The log assigns its own ids.
    Own,
    /// The upstream, itself a relay, assigns them.
    Upstream,
}

/// Progress of a log behind its upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum UpstreamLink {
    /// There is no connection.
    Disconnected { since: Instant },
    /// A relay repeats entries of the time without a connection.
    Replaying,
    /// Entries arrive as the upstream gets them.
    Live,
}

/// Infers from the newest id which side gave it. An id of the log's own has its position as
/// sequence and no suffix. The upstream's may look the same, so that case is undecided.
pub(super) fn infer_numbering(newest: u64, id: Option<EventId>) -> Numbering {
    match id {
        Some(id) if newest > 0 && (id.sequence != newest || id.suffix > 0) => Numbering::Upstream,
        _ => Numbering::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_this_log_cannot_have_given_tells_that_the_upstream_numbered_it() {
        for (newest, id, numbering) in [
            (40, "7-41", Numbering::Upstream),
            (40, "7-40.1", Numbering::Upstream),
            (40, "7-40", Numbering::Undecided),
            (0, "7-1", Numbering::Undecided),
        ] {
            assert_eq!(infer_numbering(newest, EventId::parse(id)), numbering, "{id} at {newest}");
        }
        assert_eq!(infer_numbering(40, None), Numbering::Undecided);
    }
}
