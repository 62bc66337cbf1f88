//! What a log knows of its upstream: who gives the ids, and how far the log is behind.
//!
//! May use: `event`.

use tokio::time::Instant;

use crate::event::EventId;

/// Who gives the ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Numbering {
    /// Nobody knows: the upstream has not answered yet.
    Undecided,
    /// This log.
    Own,
    /// The upstream, itself a relay.
    Upstream,
}

/// How far a log is behind its upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum UpstreamLink {
    /// There is no connection.
    Disconnected { since: Instant },
    /// A relay repeats what came meanwhile.
    Replaying,
    /// What comes is live.
    Live,
}

/// Who gave the id of the newest entry kept, as far as that tells. An own one behind no other's has
/// its place for a sequence; an upstream's may have, too.
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
