//! The left corridor on one page: what one upstream sends goes into the log.
//!
//! May use: `envelope`, `event`, `log`, `metrics`, `status`, `upstream`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    envelope::{self, Envelope, Rejection},
    event::{Draft, GapReason},
    log::Log,
    metrics::UpstreamMetrics,
    status::UpstreamStatus,
    upstream::{Arrival, Upstream},
};

/// The loop between one upstream and its product's log.
#[derive(Debug)]
pub(crate) struct Ingest {
    /// Where events come from.
    pub(crate) upstream: Upstream,
    /// Where they go.
    pub(crate) log: Arc<Log>,
    /// Where they are counted.
    pub(crate) metrics: UpstreamMetrics,
    /// Where the last of them is noted.
    pub(crate) status: Arc<UpstreamStatus>,
}

impl Ingest {
    /// Carries what the upstream sends into the log until `stop`. Never waits for a disk or a subscriber.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(arrival) = stop.run_until_cancelled(self.upstream.next()).await {
            let understood = match arrival {
                Arrival::Frame { frame, received } => envelope::classify(frame, self.log.product(), received),
                Arrival::TooLarge => Err(Rejection::TooLarge),
                Arrival::Reconnected => Ok(Envelope::Gap),
            };
            match understood {
                Ok(Envelope::Event(draft)) => self.append(draft),
                Ok(Envelope::Gap) => {
                    self.log.append_gap(GapReason::UpstreamReconnect);
                }
                Ok(Envelope::Heartbeat) => self.heartbeat(),
                Err(rejection) => self.reject(rejection),
            }
            // A backlog must not keep the runtime's thread from everybody else.
            tokio::task::consume_budget().await;
        }
    }

    fn append(&self, draft: Draft) {
        let now = SystemTime::now();
        let lag = draft.forwarded_at.map(|forwarded_at| lag(forwarded_at, now));
        self.metrics.event(&draft.kind, lag, now);
        self.status.event(now, lag);
        self.log.append(draft);
    }

    fn heartbeat(&self) {
        let now = SystemTime::now();
        self.metrics.heartbeat(now);
        self.status.heartbeat(now);
    }

    fn reject(&self, rejection: Rejection) {
        self.metrics.rejected(rejection);
        debug!(product = %self.log.product(), reason = rejection.as_str(), "upstream frame skipped: {rejection}");
    }
}

/// How long an event was on its way; a clock ahead of ours counts as no time at all.
fn lag(forwarded_at: f64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Duration::try_from_secs_f64(now - forwarded_at).unwrap_or_default()
}
