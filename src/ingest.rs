//! The left corridor on one page: what one upstream sends goes into the log.
//!
//! May use: `envelope`, `event`, `log`, `metrics`, `rejected`, `sse`, `upstream`.

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
    rejected::RejectedFrames,
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
    pub(crate) rejected: Arc<RejectedFrames>,
}

impl Ingest {
    /// Carries what the upstream sends into the log until `stop`. Never waits for a disk or a
    /// subscriber.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let newest = || self.log.newest_id();
            let Some(arrival) = stop.run_until_cancelled(self.upstream.next(newest)).await else {
                break;
            };
            match arrival {
                Arrival::Frame { frame, received } => self.on_frame(frame, received),
                Arrival::TooLarge => self.reject(Rejection::TooLarge, None),
                Arrival::Connected { is_reconnect: again } => self.on_connected(again),
                Arrival::Resumed => self.on_resumed(),
                Arrival::Lost => self.log.mark_upstream_disconnected(),
            }
            // A backlog must not keep the runtime's thread from everybody else.
            tokio::task::consume_budget().await;
        }
        self.upstream.close().await;
    }

    /// A connector repeats nothing.
    fn on_connected(&self, again: bool) {
        self.log.set_numbering(Numbering::Own);
        self.log.finish_replay();
        if again {
            self.log.append_gap(GapReason::UpstreamReconnect);
        }
    }

    /// A relay goes on where the log ends. What it sends first to an empty log is history until it
    /// says that it has no more; after an outage it is news to whoever was here, also where nothing
    /// had come before.
    fn on_resumed(&self) {
        if self.log.newest_position() == 0 && self.log.is_numbering_undecided() {
            self.log.begin_recovery();
        }
        self.log.set_numbering(Numbering::Upstream);
    }

    fn on_frame(&self, frame: Frame, received: Instant) {
        // Only a relay gives ids, and what comes without one of its own is not the event before it.
        let carries_id = self.upstream.is_relay() && frame.has_own_id;
        let id = carries_id
            .then(|| std::str::from_utf8(&frame.id).ok().and_then(EventId::parse))
            .flatten();
        let payload = frame.data.clone();
        match envelope::classify(frame, self.log.product(), received) {
            Ok(Envelope::Event(draft)) => self.append(draft, id),
            Ok(Envelope::Gap(notice)) if self.upstream.is_relay() => {
                let reason = notice.reason.unwrap_or(GapReason::UpstreamReconnect);
                self.log.append_numbered_gap(
                    reason,
                    id,
                    notice.after.filter(|after| after.len() <= MAX_UPSTREAM_ID_BYTES),
                );
            }
            Ok(Envelope::Gap(_)) => self.log.append_gap(GapReason::UpstreamReconnect),
            Ok(Envelope::Heartbeat) => self.on_heartbeat(),
            Err(rejection) => self.reject(rejection, Some(&payload)),
        }
    }

    fn append(&self, draft: Draft, id: Option<EventId>) {
        let now = SystemTime::now();
        let lag = draft.forwarded_at.map(|forwarded_at| lag(forwarded_at, now));
        self.metrics.record_event(&draft.kind, lag, now);
        self.status.record_event(now, lag);
        match id {
            None => {
                self.log.append(draft);
            }
            Some(id) => self.log.append_numbered(draft, id),
        }
    }

    fn on_heartbeat(&self) {
        let now = SystemTime::now();
        self.metrics.record_heartbeat(now);
        self.status.record_heartbeat(now);
        self.log.finish_replay();
    }

    fn reject(&self, rejection: Rejection, payload: Option<&[u8]>) {
        self.metrics.record_rejection(rejection);
        self.rejected.record(self.log.product(), rejection, payload);
        debug!(product = %self.log.product(), reason = rejection.as_str(), "upstream frame skipped: {rejection}");
    }
}

/// How long an event was on its way; a clock ahead of ours counts as no time at all.
fn lag(forwarded_at: f64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Duration::try_from_secs_f64(now - forwarded_at).unwrap_or_default()
}

/// No id of a relay is longer; what is, is not passed on.
const MAX_UPSTREAM_ID_BYTES: usize = 128;
