//! The limit on connections that follows from the limit on file descriptors.
//!
//! May use: `config`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::info;

use crate::config::Config;

/// Raises the limit on file descriptors as far as this process may, and returns the limit on
/// connections of the public listener.
///
/// That is `server.max_subscribers` and some more, or what the limit leaves beside the descriptors
/// that the relay itself needs.
pub(super) fn max_connections(config: &Config) -> usize {
    let requested = config.server.max_subscribers.saturating_add(NON_SUBSCRIBER_CONNECTIONS);
    let Some(files) = raise_descriptor_limit() else { return requested };
    // An attempt of a webhook is a socket, and so is an upstream.
    let in_flight: usize = config.webhooks.iter().map(|webhook| webhook.max_in_flight).sum();
    let budget =
        connection_budget(files, RESERVED_DESCRIPTORS + config.upstreams.len() + in_flight);
    if budget < config.server.max_subscribers {
        info!(
            open_files = files,
            connections = budget,
            max_subscribers = config.server.max_subscribers,
            "the limit on open files leaves room for fewer subscribers than \
             server.max_subscribers; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    requested.min(budget)
}

/// Returns what a limit of `files` leaves to connections. Where the limit is far too low, they get
/// half of it.
fn connection_budget(files: usize, reserved: usize) -> usize {
    files.saturating_sub(reserved).max(files / 2)
}

/// Raises the soft limit to the hard limit, and returns it; `None` means no limit.
///
/// The lower soft limit is for programs that use `select`, which the relay does not.
fn raise_descriptor_limit() -> Option<usize> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    files.map(|files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Connections that are not subscribers': publishers, pollers, peers that have just connected, and
/// new subscribers that are answered 503 for lack of a permit.
const NON_SUBSCRIBER_CONNECTIONS: usize = 1024;

/// The store's files, the runtimes, the other listeners and their clients, and the connections
/// beyond the limit that are answered 503.
const RESERVED_DESCRIPTORS: usize = 128 + 2 * MAX_ADMIN_CONNECTIONS;

/// Connections at one time to each of the admin and probe listeners.
pub(super) const MAX_ADMIN_CONNECTIONS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_itself_keeps_its_files_unless_there_are_hardly_any() {
        assert_eq!(connection_budget(1_048_576, 300), 1_048_276);
        assert_eq!(connection_budget(400, 300), 200);
        assert_eq!(connection_budget(usize::MAX, 300), usize::MAX - 300);
    }
}
