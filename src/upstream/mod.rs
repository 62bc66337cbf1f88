//! One supervised connection to the connector of one product.
//!
//! In: frames. Out: frames, and a word whenever the stream stands. Never holds two connections: the old one is closed before
//! the next attempt. An upstream that turns out to be a relay is asked again, for what comes behind the log's last id.
//!
//! Its settings may change at any time. Another token counts from the next attempt, which comes at once if none stands; anything
//! else ends the stream that stands, and the next attempt follows when that is closed.
//!
//! ```text
//! connecting ──► connected ──► backing_off ──► connecting …      lost, silent, 5xx, 429: 0.5 s to 30 s, full jitter
//!          └───► refused ────────────────────► connecting …      400, 401, 403, 404: once a minute, loudly
//! ```
//!
//! May use: `backoff`, `causes`, `client`, `config`, `event`, `metrics`, `sse`, `status`.

pub(crate) mod backoff;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::{future::pending, mem, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use self::{
    backoff::Backoff,
    status::{UpstreamState, UpstreamStatus},
};
use crate::{
    config,
    error_chain::error_chain,
    event::EventId,
    metrics::UpstreamMetrics,
    outbound::{
        client::{EventStreamClient, OpenError, StreamTarget},
        event_stream::EventStream,
    },
    sse::{Decoded, Frame},
};

/// The connection to one connector, kept up.
#[derive(Debug)]
pub(crate) struct Upstream {
    settings_updates: watch::Receiver<UpstreamSettings>,
    /// Those of `wanted` that are in force.
    settings: config::UpstreamConfig,
    target: StreamTarget,
    status: Arc<UpstreamStatus>,
    metrics: UpstreamMetrics,
    backoff: Backoff,
    random: fastrand::Rng,
    connection: UpstreamConnection,
    /// There has been a stream: the next one begins behind a gap.
    has_streamed: bool,
    /// The connector's own wish for the time before a reconnect.
    server_retry_delay: Duration,
}

/// How an upstream is reached.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamSettings {
    /// As it is configured.
    pub(crate) upstream: config::UpstreamConfig,
    /// Who dials, from the next attempt on.
    pub(crate) client: EventStreamClient,
}

#[derive(Debug)]
enum UpstreamConnection {
    Waiting { until: Instant },
    Streaming { stream: Box<EventStream>, since: Instant },
}

/// What an upstream brings.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// One frame, whose last byte came at `received`.
    Frame {
        /// The frame.
        frame: Frame,
        /// When its last byte came.
        received: Instant,
    },
    /// A frame went past `max_event_bytes` and was skipped.
    TooLarge,
    /// The stream of a connector stands. If it stood before, what was sent meanwhile is missing.
    Connected {
        /// It stood before.
        is_reconnect: bool,
    },
    /// The stream of a relay stands, and goes on where the log ends.
    Resumed,
    /// The stream has ended, and the next attempt comes after a wait.
    Lost,
}

impl Upstream {
    /// An upstream that is not connected. `has_streamed` tells that it was before; `random` spreads the waits.
    pub(crate) fn new(
        mut settings_updates: watch::Receiver<UpstreamSettings>,
        has_streamed: bool,
        status: Arc<UpstreamStatus>,
        metrics: UpstreamMetrics,
        random: fastrand::Rng,
    ) -> Self {
        let settings = settings_updates.borrow_and_update().upstream.clone();
        let url = settings.url.as_uri().clone();
        Self {
            target: StreamTarget {
                url,
                token: settings.token.clone(),
                last_event_id: None,
                is_relay: false,
            },
            settings_updates,
            settings,
            status,
            metrics,
            backoff: Backoff::new(INITIAL_RECONNECT_BACKOFF, MAX_RECONNECT_BACKOFF),
            random,
            connection: UpstreamConnection::Waiting { until: Instant::now() },
            has_streamed,
            server_retry_delay: Duration::ZERO,
        }
    }

    /// Waits for what comes next, connecting as often as it takes. `newest` is the last id of the log, behind which a relay
    /// is asked to go on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up an attempt under way and loses no frame.
    pub(crate) async fn next(&mut self, newest_id: impl Fn() -> Option<EventId>) -> Arrival {
        loop {
            let heartbeat_timeout = self.settings.heartbeat_timeout;
            let step = match &mut self.connection {
                UpstreamConnection::Waiting { until } => tokio::select! {
                    biased;
                    () = settings_changed(&mut self.settings_updates) => UpstreamStep::ApplySettings,
                    () = sleep_until(*until) => UpstreamStep::Connect,
                },
                UpstreamConnection::Streaming { stream, .. } => tokio::select! {
                    biased;
                    () = settings_changed(&mut self.settings_updates) => UpstreamStep::ApplySettings,
                    next = stream.next(heartbeat_timeout) => match next {
                        Ok(Some(Decoded::Frame(frame))) => UpstreamStep::Frame { frame, received: stream.received_at() },
                        Ok(Some(Decoded::TooLarge)) => UpstreamStep::TooLarge,
                        Ok(Some(Decoded::Retry(wait))) => UpstreamStep::Retry(wait),
                        Ok(None) => UpstreamStep::Lost(format!("silent for {}", humantime::format_duration(heartbeat_timeout))),
                        Err(error) => UpstreamStep::Lost(error_chain(&error)),
                    },
                },
            };
            let arrival = match step {
                UpstreamStep::ApplySettings => self.apply_settings().await,
                UpstreamStep::Connect => self.connect(newest_id()).await,
                UpstreamStep::Frame { frame, received } => Some(Arrival::Frame { frame, received }),
                UpstreamStep::TooLarge => Some(Arrival::TooLarge),
                UpstreamStep::Retry(wait) => {
                    self.server_retry_delay = wait.min(MAX_RECONNECT_BACKOFF);
                    None
                }
                UpstreamStep::Lost(problem) => {
                    self.handle_disconnect(problem).await;
                    Some(Arrival::Lost)
                }
            };
            if let Some(arrival) = arrival {
                return arrival;
            }
        }
    }

    /// Closes the stream that stands, and returns when it is closed.
    pub(crate) async fn close(mut self) {
        self.metrics.connected.set(0);
        let ended = mem::replace(
            &mut self.connection,
            UpstreamConnection::Waiting { until: Instant::now() },
        );
        if let UpstreamConnection::Streaming { stream, .. } = ended {
            stream.close().await;
        }
    }

    /// Takes over the settings that are wanted. A stream that stands stays, unless it would be another one by these.
    async fn apply_settings(&mut self) -> Option<Arrival> {
        let new_settings = self.settings_updates.borrow_and_update().upstream.clone();
        let old_settings = mem::replace(&mut self.settings, new_settings);
        self.target.token.clone_from(&self.settings.token);
        if old_settings.url != self.settings.url {
            self.target.url = self.settings.url.as_uri().clone();
            self.target.is_relay = false; // that is found out again
        }
        let keeps_stream =
            config::UpstreamConfig { token: self.settings.token.clone(), ..old_settings }
                == self.settings;
        if keeps_stream && matches!(self.connection, UpstreamConnection::Streaming { .. }) {
            return None;
        }
        let ended = mem::replace(
            &mut self.connection,
            UpstreamConnection::Waiting { until: Instant::now() },
        );
        let UpstreamConnection::Streaming { stream, .. } = ended else { return None };
        stream.close().await;
        self.metrics.connected.set(0);
        info!(product = %self.settings.product_id, "upstream closed: its settings have changed");
        Some(Arrival::Lost)
    }

    /// Whether the stream that stands is a relay's.
    pub(crate) fn is_relay(&self) -> bool {
        self.target.is_relay
    }

    /// Makes one attempt. The connection before it is closed already: waiting holds none.
    async fn connect(&mut self, newest_id: Option<EventId>) -> Option<Arrival> {
        self.status.set_state(UpstreamState::Connecting, None);
        let asked_to_resume = self.target.is_relay;
        // A log that is empty wants everything that the relay keeps: its own clients come back with ids from there.
        let resume_from = newest_id.map_or_else(|| "0".to_owned(), |id| id.to_string());
        self.target.last_event_id = asked_to_resume.then_some(resume_from);
        let max_event_bytes = usize::try_from(self.settings.max_event_bytes).unwrap_or(usize::MAX);
        let client = self.settings_updates.borrow().client.clone();
        let stream = match client.open(&self.target, max_event_bytes).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                self.schedule_retry(&error);
                return None;
            }
        };
        self.target.is_relay = stream.is_relay();
        if self.target.is_relay && !asked_to_resume {
            self.warn_of_filter();
            stream.close().await; // asked again at once, and then to go on
            return None;
        }
        self.connection = UpstreamConnection::Streaming { stream, since: Instant::now() };
        self.metrics.connects_connected.inc();
        self.metrics.connected.set(1);
        self.status.set_state(UpstreamState::Connected, None);
        info!(product = %self.settings.product_id, "upstream connected");
        let is_reconnect = mem::replace(&mut self.has_streamed, true);
        Some(if self.target.is_relay {
            Arrival::Resumed
        } else {
            Arrival::Connected { is_reconnect }
        })
    }

    /// A relay that is asked for a part of its events gives ids with holes, and where they began is forgotten soon.
    fn warn_of_filter(&self) {
        if asks_for_subset(self.settings.url.as_uri().query().unwrap_or_default()) {
            let product = &self.settings.product_id;
            warn!(%product, "upstream is a relay whose url asks for some types or sessions only: older ids will be lost sooner");
        }
    }

    /// Settles when to try again after an attempt that led to no stream.
    fn schedule_retry(&mut self, error: &OpenError) {
        let product = &self.settings.product_id;
        let problem = error_chain(error);
        if error.is_permanent() {
            self.metrics.connects_refused.inc();
            let wait =
                REFUSED_RETRY_INTERVAL + REFUSED_RETRY_INTERVAL.mul_f64(self.random.f64() / 10.0);
            error!(%product, problem, retry_in = ?wait, "upstream refuses the connection: check product_id, url and token");
            self.status.set_state(UpstreamState::Refused, Some(problem));
            self.connection = UpstreamConnection::Waiting { until: Instant::now() + wait };
            return;
        }
        self.metrics.connects_failed.inc();
        let wait =
            self.backoff.next_delay(&mut self.random).max(error.retry_after().unwrap_or_default());
        warn!(%product, problem, retry_in = ?wait, "upstream connection failed");
        self.enter_backoff(wait, problem);
    }

    /// Closes a stream that ended, and settles when to try again.
    async fn handle_disconnect(&mut self, problem: String) {
        let ended = mem::replace(
            &mut self.connection,
            UpstreamConnection::Waiting { until: Instant::now() },
        );
        let mut lasted = Duration::ZERO;
        if let UpstreamConnection::Streaming { stream, since } = ended {
            lasted = since.elapsed();
            stream.close().await;
        }
        self.metrics.connected.set(0);
        let wait = self.reconnect_delay(lasted);
        warn!(product = %self.settings.product_id, problem, retry_in = ?wait, "upstream connection lost");
        self.enter_backoff(wait, problem);
    }

    /// How long to wait after a stream that `lasted` so long.
    fn reconnect_delay(&mut self, lasted: Duration) -> Duration {
        if lasted >= STABLE_CONNECTION_AGE {
            self.backoff.reset();
        }
        self.backoff.next_delay(&mut self.random).max(self.server_retry_delay)
    }

    fn enter_backoff(&mut self, wait: Duration, problem: String) {
        self.status.set_state(UpstreamState::BackingOff, Some(problem));
        self.connection = UpstreamConnection::Waiting { until: Instant::now() + wait };
    }
}

/// What happens next.
enum UpstreamStep {
    ApplySettings,
    Connect,
    Frame { frame: Frame, received: Instant },
    TooLarge,
    Retry(Duration),
    Lost(String),
}

/// Waits for other settings; for ever where nobody is left to give any.
async fn settings_changed(updates: &mut watch::Receiver<UpstreamSettings>) {
    if updates.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// Whether a query asks a relay for less than everything.
fn asks_for_subset(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| matches!(&*key, "type" | "session_id"))
}

/// A connector that restarts is back within a second.
const INITIAL_RECONNECT_BACKOFF: Duration = Duration::from_millis(500);

/// Long enough for a connector in trouble, short enough that its return is noticed.
const MAX_RECONNECT_BACKOFF: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a success; a shorter one may be a connector that crashes on every client.
const STABLE_CONNECTION_AGE: Duration = Duration::from_secs(30);

/// What only a person can mend is tried at most once a minute.
const REFUSED_RETRY_INTERVAL: Duration = Duration::from_secs(60);
