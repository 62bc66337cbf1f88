//! The left corridor on one page: what one upstream sends goes into the log.
//!
//! May use: `envelope`, `event`, `log`, `metrics`, `rejected`, `sse`, `status`, `upstream`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    envelope::{self, Envelope, Rejection},
    event::{Draft, EventId, GapReason},
    log::{Log, Numbering},
    metrics::UpstreamMetrics,
    rejected::Rejected,
    sse::Frame,
    upstream::{Arrival, Upstream, status::UpstreamStatus},
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
    /// Where what cannot be understood is kept for a while.
    pub(crate) rejected: Arc<Rejected>,
}

impl Ingest {
    /// Carries what the upstream sends into the log until `stop`. Never waits for a disk or a subscriber.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let newest = || self.log.newest_id();
            let Some(arrival) = stop.run_until_cancelled(self.upstream.next(newest)).await else { break };
            match arrival {
                Arrival::Frame { frame, received } => self.take(frame, received),
                Arrival::TooLarge => self.reject(Rejection::TooLarge, None),
                Arrival::Connected { again } => self.connected(again),
                Arrival::Resumed => self.resumed(),
                Arrival::Lost => self.log.upstream_is_away(),
            }
            // A backlog must not keep the runtime's thread from everybody else.
            tokio::task::consume_budget().await;
        }
        self.upstream.close().await;
    }

    /// A connector repeats nothing.
    fn connected(&self, again: bool) {
        self.log.numbered_by(Numbering::Own);
        self.log.has_recovered();
        if again {
            self.log.append_gap(GapReason::UpstreamReconnect);
        }
    }

    /// A relay goes on where the log ends. What it sends first to an empty log is history until it says that it has no more;
    /// after an outage it is news to whoever was here, also where nothing had come before.
    fn resumed(&self) {
        if self.log.newest() == 0 && self.log.is_undecided() {
            self.log.recovers();
        }
        self.log.numbered_by(Numbering::Upstream);
    }

    fn take(&self, frame: Frame, received: Instant) {
        // Only a relay gives ids, and what comes without one of its own is not the event before it.
        let is_named = self.upstream.is_relay() && frame.has_own_id;
        let id = is_named.then(|| std::str::from_utf8(&frame.id).ok().and_then(EventId::parse)).flatten();
        let payload = frame.data.clone();
        match envelope::classify(frame, self.log.product(), received) {
            Ok(Envelope::Event(draft)) => self.append(draft, id),
            Ok(Envelope::Gap(notice)) if self.upstream.is_relay() => {
                let reason = notice.reason.unwrap_or(GapReason::UpstreamReconnect);
                self.log.append_numbered_gap(reason, id, notice.after.filter(|after| after.len() <= MAX_ID_BYTES));
            }
            Ok(Envelope::Gap(_)) => self.log.append_gap(GapReason::UpstreamReconnect),
            Ok(Envelope::Heartbeat) => self.heartbeat(),
            Err(rejection) => self.reject(rejection, Some(&payload)),
        }
    }

    fn append(&self, draft: Draft, id: Option<EventId>) {
        let now = SystemTime::now();
        let lag = draft.forwarded_at.map(|forwarded_at| lag(forwarded_at, now));
        self.metrics.event(&draft.kind, lag, now);
        self.status.event(now, lag);
        match id {
            None => {
                self.log.append(draft);
            }
            Some(id) => self.log.append_numbered(draft, id),
        }
    }

    fn heartbeat(&self) {
        let now = SystemTime::now();
        self.metrics.heartbeat(now);
        self.status.heartbeat(now);
        self.log.has_recovered();
    }

    fn reject(&self, rejection: Rejection, payload: Option<&[u8]>) {
        self.metrics.rejected(rejection);
        self.rejected.keep(self.log.product(), rejection, payload);
        debug!(product = %self.log.product(), reason = rejection.as_str(), "upstream frame skipped: {rejection}");
    }
}

/// How long an event was on its way; a clock ahead of ours counts as no time at all.
fn lag(forwarded_at: f64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Duration::try_from_secs_f64(now - forwarded_at).unwrap_or_default()
}

/// No id of a relay is longer; what is, is not passed on.
const MAX_ID_BYTES: usize = 128;
