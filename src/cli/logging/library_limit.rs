//! Rate limit of the lines of libraries: peers cause them, and choose how many.
//!
//! In: an event, and the levels of `RUST_LOG`. Out: whether the event is logged.
//!
//! May use: `log_limit`.

use std::collections::HashMap;

use parking_lot::Mutex;
use tracing::{Event, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    filter::Targets,
    layer::{Context, Layer},
};

use crate::log_limit::LogRateLimit;

/// Admits one line a minute from each place in a library's source, unless `RUST_LOG` names the
/// library.
#[derive(Debug)]
pub(super) struct LibraryLogLimit {
    /// Targets that `RUST_LOG` names: an operator who asks for a library gets all of its lines.
    named: Vec<String>,
    /// Bounded by the program's source: it has a few hundred such places.
    by_callsite: Mutex<HashMap<Identifier, LogRateLimit>>,
}

impl LibraryLogLimit {
    /// Creates a limit for all libraries that `levels` does not name.
    pub(super) fn new(levels: &Targets) -> Self {
        let named = levels.iter().map(|(target, _)| target.to_owned()).collect();
        Self { named, by_callsite: Mutex::default() }
    }

    fn limits(&self, target: &str) -> bool {
        let is_own = target.split("::").next() == Some(OWN_CRATE);
        // As `Targets` has it: a prefix of the target, with no regard to its `::`.
        !is_own && !self.named.iter().any(|named| target.starts_with(named.as_str()))
    }
}

impl<S: Subscriber> Layer<S> for LibraryLogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !self.limits(metadata.target()) {
            return true;
        }
        let mut limits = self.by_callsite.lock();
        limits.entry(metadata.callsite()).or_default().allow()
    }
}

/// Crate of the relay's own modules, which limit their lines themselves.
const OWN_CRATE: &str = "autoplay_relay";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts what passes the layers below.
    struct Counter(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Counter {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(event.metadata().target().to_owned());
        }
    }

    /// Returns the targets of the lines that pass when each of four places logs twice.
    fn passing(levels: &str) -> Vec<String> {
        let passed = Arc::default();
        let levels: Targets = levels.parse().unwrap();
        let limit = LibraryLogLimit::new(&levels);
        let subscriber = tracing_subscriber::registry()
            .with(levels)
            .with(limit)
            .with(Counter(Arc::clone(&passed)));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..2 {
                tracing::warn!(target: "h2::proto", "one");
                tracing::warn!(target: "h2::proto", "another");
                tracing::warn!(target: "hyper", "one");
                tracing::warn!(target: "autoplay_relay::net", "own");
            }
        });
        Arc::into_inner(passed).unwrap().into_inner()
    }

    #[test]
    fn each_place_of_a_library_logs_once_a_minute_and_the_relay_itself_as_it_likes() {
        for levels in ["info", "debug", "info,autoplay_relay=debug"] {
            let own = "autoplay_relay::net";
            assert_eq!(passing(levels), ["h2::proto", "h2::proto", "hyper", own, own], "{levels}");
        }
    }

    #[test]
    fn a_library_that_rust_log_names_is_not_limited() {
        for levels in ["info,h2=warn", "h2::proto=info,info"] {
            let passing = passing(levels);
            let of = |name: &str| passing.iter().filter(|target| target.starts_with(name)).count();
            assert_eq!((of("h2"), of("hyper"), of("autoplay")), (4, 1, 2), "{levels}");
        }
    }
}
