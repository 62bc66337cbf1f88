//! The limits on connections that follow from the limit on file descriptors.
//!
//! The sum of all connections that clients may open leaves the relay the descriptors that it needs
//! itself: the store opens its files again and again, upstreams and webhooks connect.
//!
//! May use: `config`.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::info;

use crate::config::Config;

/// Connections that the listeners accept at one time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct DescriptorPlan {
    /// The limit on descriptors, if there is one.
    files: Option<usize>,
    /// Connections that the public listener serves.
    pub(super) public: usize,
    /// Further ones that it answers 503.
    pub(super) over_limit: usize,
    /// Connections of the admin listener, and as many of the probe listener.
    pub(super) operators: usize,
    /// Connections to the receivers of the admin API's webhooks. Those of the file are among the
    /// relay's own needs.
    pub(super) webhooks: usize,
}

impl DescriptorPlan {
    /// Raises the limit on file descriptors as far as this process may, and divides it.
    ///
    /// The public listener gets `server.max_subscribers` and some more, or what the limit leaves.
    pub(super) fn new(config: &Config) -> Self {
        let requested = config.server.max_subscribers.saturating_add(NON_SUBSCRIBER_CONNECTIONS);
        // An attempt of a webhook is a socket, and so is an upstream.
        let in_flight: usize = config.webhooks.iter().map(|webhook| webhook.max_in_flight).sum();
        let own = OWN_DESCRIPTORS.max(open_descriptors() + LATER_DESCRIPTORS);
        let own = own.saturating_add(config.upstreams.len()).saturating_add(in_flight);
        Self::divide(raise_descriptor_limit(), own, requested)
    }

    /// Divides the descriptors that `own` leaves. Where the limit is far too low, connections get a
    /// quarter of it.
    fn divide(files: Option<usize>, own: usize, requested: usize) -> Self {
        let for_clients =
            files.map_or(usize::MAX, |files| files.saturating_sub(own).max(files / 4));
        let operators = (for_clients / 8).clamp(1, MAX_OPERATOR_CONNECTIONS);
        let over_limit = (for_clients / 8).min(MAX_OVER_LIMIT_CONNECTIONS);
        let webhooks = (for_clients / 8).clamp(1, MAX_API_WEBHOOK_CONNECTIONS);
        let others = 2 * operators + over_limit + webhooks;
        let public = for_clients.saturating_sub(others).clamp(1, requested);
        Self { files, public, over_limit, operators, webhooks }
    }

    /// Reports a limit that leaves room for fewer subscribers than configured.
    pub(super) fn report(&self, max_subscribers: usize) {
        if let Some(files) = self.files
            && self.public < max_subscribers
        {
            info!(
                open_files = files,
                connections = self.public,
                max_subscribers,
                "the limit on open files leaves room for fewer subscribers than \
                 server.max_subscribers; raise it (ulimit -n, LimitNOFILE)"
            );
        }
    }
}

/// Returns the number of descriptors that are open; 0 where the system does not tell.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
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

/// Descriptors for the store's files, the runtimes and the listeners, on a machine of a few
/// processors, with a margin.
const OWN_DESCRIPTORS: usize = 128;

/// Descriptors beyond those that are open when the listeners start, on a machine of many
/// processors, each of which has a runtime: the store's readers, checkpoints and syncs, another
/// copy of the store when it is set aside, name look-ups, files that a reload reads.
const LATER_DESCRIPTORS: usize = 64;

/// Connections at one time to each of the admin and probe listeners.
const MAX_OPERATOR_CONNECTIONS: usize = 320;

/// Connections to receivers beside those that the webhooks of the file may need: a webhook of the
/// admin API is not known when the listeners start. Some hundred receivers with the default of 16
/// attempts at one time; a connection of HTTP/2 carries more than one.
const MAX_API_WEBHOOK_CONNECTIONS: usize = 4096;

/// Connections that are being answered 503 at one time.
const MAX_OVER_LIMIT_CONNECTIONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTED: usize = 101_024;

    #[test]
    fn the_relay_itself_keeps_its_files_whatever_clients_open() {
        for files in [256, 257, 400, 1024, 65_536, 1_048_576, usize::MAX] {
            let plan = DescriptorPlan::divide(Some(files), 150, REQUESTED);
            let sum = plan.public + plan.over_limit + 2 * plan.operators + plan.webhooks;
            assert!(sum <= files - 150, "{files}: {plan:?}");
            assert!(sum == files - 150 || plan.public == REQUESTED, "{files}: {plan:?}");
        }
    }

    #[test]
    fn a_limit_that_is_far_too_low_is_shared_and_none_is_no_bound() {
        let plan = |files, public, over_limit, operators, webhooks| DescriptorPlan {
            files,
            public,
            over_limit,
            operators,
            webhooks,
        };
        let divide = |files| DescriptorPlan::divide(files, 150, REQUESTED);
        assert_eq!(divide(Some(64)), plan(Some(64), 8, 2, 2, 2));
        assert_eq!(divide(Some(0)), plan(Some(0), 1, 0, 1, 1));
        assert_eq!(divide(Some(256)), plan(Some(256), 54, 13, 13, 13));
        assert_eq!(divide(None), plan(None, REQUESTED, 64, 320, 4096));
    }
}
