//! Bound on interim answers (1xx, RFC 9110, section 15.2) to one request over HTTP/1.1.
//!
//! In: a request and its exchange. Out: the exchange's result, or that there were too many. hyper
//! reads interim answers itself and has no bound: a peer that streams them would take a core until
//! the time-out. Dropping an exchange makes hyper close its connection.
//!
//! May use: no other module.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hyper::{Request, ext::on_informational};
use tokio_util::sync::CancellationToken;

/// Count of the interim answers to one request.
#[derive(Debug)]
pub(crate) struct InterimAnswerLimit {
    exceeded: CancellationToken,
}

impl InterimAnswerLimit {
    /// Counts the interim answers to `request` from now on.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Self {
        let exceeded = CancellationToken::new();
        let (count, limit) = (Arc::new(AtomicUsize::new(0)), exceeded.clone());
        on_informational(request, move |_| {
            // Relaxed: the count publishes no other memory.
            if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM_ANSWERS {
                limit.cancel();
            }
        });
        Self { exceeded }
    }

    /// Runs the exchange of the request. Returns [`None`], and drops the exchange, after more than
    /// [`MAX_INTERIM_ANSWERS`] interim answers.
    pub(crate) async fn run<E: Future>(&self, exchange: E) -> Option<E::Output> {
        let output = self.exceeded.run_until_cancelled(exchange).await;
        // An answer that arrived together with too many interim ones does not count.
        output.filter(|_| !self.exceeded.is_cancelled())
    }
}

/// Interim answers that a request may get: a 100, a 103, and now and then a 102 of a server that
/// works on its answer.
pub(crate) const MAX_INTERIM_ANSWERS: usize = 16;
