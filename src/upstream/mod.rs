//! One supervised connection to the connector of one product.
//!
//! In: settings, which may change at any time. Out: frames, and an arrival whenever the stream
//! opens or ends. Never holds two connections: the old one is closed before the next attempt. An
//! upstream that turns out to be a relay is asked again, for the events behind the log's newest id.
//!
//! A new token applies from the next attempt, which starts at once if no stream is open. Any other
//! new setting ends the open stream, and the next attempt follows when it is closed.
//!
//! ```text
//! connecting ──► connected ──► backing_off ──► connecting …   lost, silent, 5xx, 429
//!          └───► refused ────────────────────► connecting …   400, 401, 403, 404
//!
//! backing_off: 0.5 s to 30 s, full jitter, Retry-After; refused: once a minute, logged as an error
//! ```
//!
//! May use: `config`, `error_chain`, `event`, `metrics`, `outbound`, `sse`.

pub(crate) mod backoff;
mod settings_updates;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::{mem, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

pub(crate) use self::settings_updates::UpstreamSettings;
use self::{
    backoff::Backoff,
    settings_updates::SettingsUpdates,
    status::{UpstreamState, UpstreamStatus},
};
use crate::{
    config,
    error_chain::error_chain,
    event::EventId,
    metrics::UpstreamMetrics,
    outbound::{
        client::{OpenError, StreamTarget},
        event_stream::EventStream,
    },
    sse::{Decoded, Frame},
};

/// Connection to one connector, reopened as often as it takes.
#[derive(Debug)]
pub(crate) struct Upstream {
    settings_updates: SettingsUpdates,
    /// The settings in force; `settings_updates` may hold newer ones.
    settings: config::UpstreamConfig,
    target: StreamTarget,
    status: Arc<UpstreamStatus>,
    metrics: UpstreamMetrics,
    backoff: Backoff,
    random: fastrand::Rng,
    connection: UpstreamConnection,
    /// Whether a stream has been open before: the next one begins behind a gap.
    has_streamed: bool,
    /// The least time before a reconnect that the connector asks for (`retry:`, WHATWG HTML,
    /// section 9.2.6).
    server_retry_delay: Duration,
}

#[derive(Debug)]
enum UpstreamConnection {
    Waiting { until: Instant },
    Streaming { stream: Box<EventStream>, since: Instant },
}

/// Item that an upstream brings.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// One frame.
    Frame {
        /// The frame.
        frame: Frame,
        /// Time at which its last byte came.
        received: Instant,
    },
    /// A frame exceeded `max_event_bytes` and was skipped.
    TooLarge,
    /// The stream of a connector is open. If one was open before, the events sent in between are
    /// missing: a connector repeats nothing.
    Connected {
        /// Whether a stream was open before.
        is_reconnect: bool,
    },
    /// The stream of a relay is open and continues behind the log's newest id.
    Resumed,
    /// The stream has ended; the next attempt comes after a wait.
    Lost,
}

impl Upstream {
    /// Creates an upstream that is not connected yet.
    ///
    /// `has_streamed` tells whether the log already has entries of an earlier life; `random`
    /// spreads the waits.
    pub(crate) fn new(
        settings_updates: watch::Receiver<UpstreamSettings>,
        has_streamed: bool,
        status: Arc<UpstreamStatus>,
        metrics: UpstreamMetrics,
        random: fastrand::Rng,
    ) -> Self {
        let mut settings_updates = SettingsUpdates::new(settings_updates);
        let settings = settings_updates.accept();
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

    /// Waits for the next arrival, connecting as often as it takes.
    ///
    /// `newest_id` returns the newest id of the log, behind which a relay is asked to continue.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up an attempt under way and loses no frame.
    pub(crate) async fn next(&mut self, newest_id: impl Fn() -> Option<EventId>) -> Arrival {
        loop {
            let heartbeat_timeout = self.settings.heartbeat_timeout;
            let updates = &mut self.settings_updates;
            // Settings first: an attempt must not begin with settings that are replaced already,
            // and a backlog must not keep them from being applied.
            let step = match &mut self.connection {
                _ if updates.are_new() => UpstreamStep::ApplySettings,
                UpstreamConnection::Waiting { until } => tokio::select! {
                    biased;
                    () = updates.changed() => UpstreamStep::ApplySettings,
                    () = sleep_until(*until) => UpstreamStep::Connect,
                },
                UpstreamConnection::Streaming { stream, .. } => tokio::select! {
                    // The stream first: an event that is there needs no waker for the settings.
                    biased;
                    next = stream.next(heartbeat_timeout) => match next {
                        Ok(Some(Decoded::Frame(frame))) => {
                            UpstreamStep::Frame { frame, received: stream.received_at() }
                        }
                        Ok(Some(Decoded::TooLarge)) => UpstreamStep::TooLarge,
                        Ok(Some(Decoded::Retry(wait))) => UpstreamStep::Retry(wait),
                        Ok(None) => {
                            let silence = humantime::format_duration(heartbeat_timeout);
                            UpstreamStep::Lost(format!("silent for {silence}"))
                        }
                        Err(error) => UpstreamStep::Lost(error_chain(&error)),
                    },
                    () = updates.changed() => UpstreamStep::ApplySettings,
                },
            };
            let arrival = match step {
                UpstreamStep::ApplySettings => self.apply_settings(),
                UpstreamStep::Connect => self.connect(newest_id()).await,
                UpstreamStep::Frame { frame, received } => Some(Arrival::Frame { frame, received }),
                UpstreamStep::TooLarge => Some(Arrival::TooLarge),
                UpstreamStep::Retry(wait) => {
                    // Bounded: a connector's mistake must not silence its product for hours.
                    self.server_retry_delay = wait.min(MAX_RECONNECT_BACKOFF);
                    None
                }
                UpstreamStep::Lost(problem) => {
                    self.handle_disconnect(problem);
                    Some(Arrival::Lost)
                }
            };
            if let Some(arrival) = arrival {
                return arrival;
            }
            // A backlog of `retry` fields is always ready, and would keep the thread from its other
            // tasks.
            tokio::task::consume_budget().await;
        }
    }

    /// Closes the open stream.
    pub(crate) fn close(self) {
        self.metrics.connected.set(0);
        // Dropping a stream closes its connection.
        drop(self.connection);
    }

    /// Brings the newest settings into force, and ends the open stream unless it would be the same
    /// with them.
    fn apply_settings(&mut self) -> Option<Arrival> {
        let new_settings = self.settings_updates.accept();
        let old_settings = mem::replace(&mut self.settings, new_settings);
        self.target.token.clone_from(&self.settings.token);
        if old_settings.url != self.settings.url {
            self.target.url = self.settings.url.as_uri().clone();
            // Another peer: whether it is a relay shows with its first answer.
            self.target.is_relay = false;
        }
        // A token that is replaced does not end the stream that the former one opened.
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
        drop(stream);
        self.metrics.connected.set(0);
        info!(product = %self.settings.product_id, "upstream closed: its settings have changed");
        Some(Arrival::Lost)
    }

    /// Returns whether the peer is a relay, as far as known.
    pub(crate) fn is_relay(&self) -> bool {
        self.target.is_relay
    }

    /// Makes one attempt. The connection before it is closed already: the waiting state holds none.
    async fn connect(&mut self, newest_id: Option<EventId>) -> Option<Arrival> {
        self.status.set_state(UpstreamState::Connecting, None);
        let asked_to_resume = self.target.is_relay;
        // An empty log asks for everything that the relay keeps (id 0): its own clients come with
        // ids from there.
        let resume_from = newest_id.map_or_else(|| "0".to_owned(), |id| id.to_string());
        self.target.last_event_id = asked_to_resume.then_some(resume_from);
        let max_event_bytes = usize::try_from(self.settings.max_event_bytes).unwrap_or(usize::MAX);
        let client = self.settings_updates.client();
        let stream = match client.open(&self.target, max_event_bytes).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                self.schedule_retry(&error);
                return None;
            }
        };
        self.target.is_relay = stream.is_relay();
        if self.target.is_relay && !asked_to_resume {
            // The request did not say `follow` nor where to continue. `connection` is still due, so
            // the next attempt comes at once, and asks as a relay.
            self.warn_of_filter();
            drop(stream);
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

    /// Warns about a relay that is asked for a part of its events: its ids then have holes, which
    /// use up the id spans, so older ids are forgotten sooner.
    fn warn_of_filter(&self) {
        if asks_for_subset(self.settings.url.as_uri().query().unwrap_or_default()) {
            let product = &self.settings.product_id;
            warn!(
                %product,
                "upstream is a relay whose url asks for some types or sessions only: \
                 older ids will be lost sooner"
            );
        }
    }

    /// Schedules the next attempt after one that led to no stream.
    fn schedule_retry(&mut self, error: &OpenError) {
        let product = &self.settings.product_id;
        let problem = error_chain(error);
        if error.is_permanent() {
            // No backoff: the cause does not go away by itself. A tenth of jitter spreads products.
            self.metrics.connects_refused.inc();
            let wait =
                REFUSED_RETRY_INTERVAL + REFUSED_RETRY_INTERVAL.mul_f64(self.random.f64() / 10.0);
            error!(
                %product, problem, retry_in = ?wait,
                "upstream refuses the connection: check product_id, url and token"
            );
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

    /// Closes a stream that has ended, and schedules the next attempt.
    fn handle_disconnect(&mut self, problem: String) {
        let ended = mem::replace(
            &mut self.connection,
            UpstreamConnection::Waiting { until: Instant::now() },
        );
        let mut lasted = Duration::ZERO;
        if let UpstreamConnection::Streaming { stream, since } = ended {
            lasted = since.elapsed();
            drop(stream);
        }
        self.metrics.connected.set(0);
        let wait = self.reconnect_delay(lasted);
        let product = &self.settings.product_id;
        warn!(%product, problem, retry_in = ?wait, "upstream connection lost");
        self.enter_backoff(wait, problem);
    }

    /// Returns the wait after a stream that lasted for `lasted`.
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

/// Next step of the connection.
enum UpstreamStep {
    ApplySettings,
    Connect,
    Frame { frame: Frame, received: Instant },
    TooLarge,
    Retry(Duration),
    Lost(String),
}

/// Returns whether a query asks a relay for a part of its events.
fn asks_for_subset(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| matches!(&*key, "type" | "session_id"))
}

/// A connector that restarts is back within a second.
const INITIAL_RECONNECT_BACKOFF: Duration = Duration::from_millis(500);

/// Long enough for a connector in trouble, short enough that its return is noticed.
const MAX_RECONNECT_BACKOFF: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a success; a shorter one may be a connector that crashes
/// on every client.
const STABLE_CONNECTION_AGE: Duration = Duration::from_secs(30);

/// A failure that only a person can mend is retried at most once a minute.
const REFUSED_RETRY_INTERVAL: Duration = Duration::from_secs(60);
