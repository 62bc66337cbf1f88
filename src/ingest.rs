//! The loop between one upstream and its product's log.
//!
//! In: frames and changes of the upstream's connection. Out: entries of the log, and rejected
//! frames.
//!
//! Never waits for a disk or a subscriber: the connector drops a slow reader after 256 events.
//!
//! May use: `envelope`, `event`, `log`, `metrics`, `rejected`, `sse`, `upstream`.

use std::{
    pin::pin,
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

/// One upstream and what its frames go to.
#[derive(Debug)]
pub(crate) struct Ingest {
    /// Source of the events.
    pub(crate) upstream: Upstream,
    /// Log of the product.
    pub(crate) log: Arc<Log>,
    /// Counters of the upstream.
    pub(crate) metrics: UpstreamMetrics,
    /// Times of the last event and heartbeat, for the admin API.
    pub(crate) status: Arc<UpstreamStatus>,
    /// Recent frames that were rejected.
    pub(crate) rejected: Arc<RejectedFrames>,
}

impl Ingest {
    /// Appends the events of the upstream to the log until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // One for all arrivals: its place among the token's waiters costs three locks to take and
        // to give back.
        let mut stopped = pin!(stop.cancelled());
        // Asked each time, because a backlog is ready before the stop is.
        while !stop.is_cancelled() {
            // Evaluated at each connect: a relay resumes after the newest id.
            let newest = || self.log.newest_id();
            let arrival = tokio::select! {
                biased;
                arrival = self.upstream.next(newest) => arrival,
                () = &mut stopped => break,
            };
            match arrival {
                Arrival::Frame { frame, received } => self.on_frame(frame, received),
                Arrival::TooLarge => self.reject(Rejection::TooLarge, None),
                Arrival::Connected { is_reconnect } => self.on_connected(is_reconnect),
                Arrival::Resumed => self.on_resumed(),
                Arrival::Lost => self.log.mark_upstream_disconnected(),
            }
            // A backlog is always ready and would keep the thread from the product's fan-out, which
            // runs on the same task, and from all other tasks of the shard.
            tokio::task::consume_budget().await;
        }
        // Never two connections per product: the task ends only once its connection is closed.
        self.upstream.close();
    }

    /// Handles a new stream of a connector, which gives no ids and repeats nothing: the events of
    /// an outage are lost.
    fn on_connected(&self, is_reconnect: bool) {
        self.log.set_numbering(Numbering::Own);
        self.log.finish_replay();
        if is_reconnect {
            self.log.append_gap(GapReason::UpstreamReconnect);
        }
    }

    /// Handles a new stream of a relay, which continues where the log ends. Events that it sends
    /// first to an empty log are history, until it reports the end of its replay. After an outage
    /// its events are new to all subscribers, also if the log had no entry before.
    fn on_resumed(&self) {
        if self.log.newest_position() == 0 && self.log.is_numbering_undecided() {
            self.log.begin_recovery();
        }
        self.log.set_numbering(Numbering::Upstream);
    }

    fn on_frame(&self, frame: Frame, received: Instant) {
        // Only a relay gives ids. A frame without an id of its own repeats the last one, and must
        // not be taken for that entry.
        let carries_id = self.upstream.is_relay() && frame.has_own_id;
        let id = carries_id
            .then(|| std::str::from_utf8(&frame.id).ok().and_then(EventId::parse))
            .flatten();
        let is_future = id.is_some_and(|id| epoch_is_ahead(id, SystemTime::now()));
        // Cloning counts a reference: the frame is consumed by `classify`, and a rejection keeps an
        // excerpt.
        let payload = frame.data.clone();
        match envelope::classify(frame, self.log.product(), received) {
            Ok(Envelope::Event(_)) if is_future => {
                self.reject(Rejection::FutureId, Some(&payload));
            }
            Ok(Envelope::Event(draft)) => self.append(draft, id),
            Ok(Envelope::Gap(notice)) if self.upstream.is_relay() => {
                let reason = notice.reason.unwrap_or(GapReason::UpstreamReconnect);
                // The notice counts all the same, under an id of this relay: subscribers must learn
                // of the loss.
                let id = id.filter(|_| !is_future);
                if is_future {
                    self.reject(Rejection::FutureId, Some(&payload));
                }
                self.log.append_numbered_gap(
                    reason,
                    id,
                    notice.after.filter(|after| after.len() <= MAX_UPSTREAM_ID_BYTES),
                );
            }
            // A connector's notice has an id of that connector, which means nothing here.
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
        debug!(
            product = %self.log.product(),
            reason = rejection.as_str(),
            "upstream frame skipped: {rejection}"
        );
    }
}

/// Returns the delay of an event since the connector forwarded it; zero if the connector's clock is
/// ahead.
fn lag(forwarded_at: f64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Duration::try_from_secs_f64(now - forwarded_at).unwrap_or_default()
}

/// Returns whether an id's epoch is more than [`MAX_EPOCH_LEAD`] ahead of the clock.
///
/// This relay's own ids continue above every id that it has taken, restarts included: after one of
/// a distant epoch there would be no room for them.
fn epoch_is_ahead(id: EventId, now: SystemTime) -> bool {
    let latest = now.duration_since(UNIX_EPOCH).unwrap_or_default() + MAX_EPOCH_LEAD;
    u128::from(id.epoch) > latest.as_millis()
}

/// Lead of an upstream's clock over this relay's that is taken for a difference of clocks. Epochs
/// also run ahead where a relay restarts within a millisecond, by one for each restart.
const MAX_EPOCH_LEAD: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum length of an id of another relay: none is longer. A longer text is not passed on to
/// subscribers.
const MAX_UPSTREAM_ID_BYTES: usize = 128;
