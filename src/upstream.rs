//! One supervised connection to the connector of one product.
//!
//! In: frames. Out: frames, and a word whenever the stream stands again after it was lost. Never holds two connections:
//! the old one is closed before the next attempt.
//!
//! ```text
//! connecting ──► connected ──► backing_off ──► connecting …      lost, silent, 5xx, 429: 0.5 s to 30 s, full jitter
//!          └───► refused ────────────────────► connecting …      400, 401, 403, 404: once a minute, loudly
//! ```
//!
//! May use: `backoff`, `client`, `config`, `metrics`, `sse`, `status`.

use std::{mem, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::{
    backoff::Backoff,
    client::{Client, EventStream, OpenError, Target},
    config,
    metrics::UpstreamMetrics,
    sse::{Decoded, Frame},
    status::{UpstreamState, UpstreamStatus},
};

/// The connection to one connector, kept up.
#[derive(Debug)]
pub(crate) struct Upstream {
    settings: config::Upstream,
    target: Target,
    client: Client,
    status: Arc<UpstreamStatus>,
    metrics: UpstreamMetrics,
    backoff: Backoff,
    random: fastrand::Rng,
    connection: Connection,
    /// There has been a stream: the next one begins behind a gap.
    has_streamed: bool,
    /// The connector's own wish for the time before a reconnect.
    retry: Duration,
}

#[derive(Debug)]
enum Connection {
    Waiting { until: Instant },
    Standing { stream: EventStream, since: Instant },
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
    /// The stream stands again after it was lost: what was sent meanwhile is missing.
    Reconnected,
}

impl Upstream {
    /// An upstream that has not been connected yet. `random` spreads the waits.
    pub(crate) fn new(
        settings: config::Upstream,
        client: Client,
        status: Arc<UpstreamStatus>,
        metrics: UpstreamMetrics,
        random: fastrand::Rng,
    ) -> Self {
        let url = settings.url.as_uri().clone();
        Self {
            target: Target {
                url,
                token: settings.token.clone(),
                last_event_id: None,
            },
            settings,
            client,
            status,
            metrics,
            backoff: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF),
            random,
            connection: Connection::Waiting { until: Instant::now() },
            has_streamed: false,
            retry: Duration::ZERO,
        }
    }

    /// Waits for what comes next, connecting as often as it takes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up an attempt under way and loses no frame.
    pub(crate) async fn next(&mut self) -> Arrival {
        loop {
            let arrival = match &mut self.connection {
                Connection::Waiting { until } => {
                    sleep_until(*until).await;
                    self.connect().await
                }
                Connection::Standing { stream, .. } => match stream.next(self.settings.heartbeat_timeout).await {
                    Ok(Some(Decoded::Frame(frame))) => Some(Arrival::Frame {
                        frame,
                        received: stream.received(),
                    }),
                    Ok(Some(Decoded::TooLarge)) => Some(Arrival::TooLarge),
                    Ok(Some(Decoded::Retry(wait))) => {
                        self.retry = wait.min(MAX_BACKOFF);
                        None
                    }
                    Ok(None) => {
                        let silence = humantime::format_duration(self.settings.heartbeat_timeout);
                        self.lost(format!("silent for {silence}")).await;
                        None
                    }
                    Err(error) => {
                        self.lost(chain(&error)).await;
                        None
                    }
                },
            };
            if let Some(arrival) = arrival {
                return arrival;
            }
        }
    }

    /// Makes one attempt. The connection before it is closed already: waiting holds none.
    async fn connect(&mut self) -> Option<Arrival> {
        self.status.enter(UpstreamState::Connecting, None);
        let max_event_bytes = usize::try_from(self.settings.max_event_bytes).unwrap_or(usize::MAX);
        let stream = match self.client.open(&self.target, max_event_bytes).await {
            Ok(stream) => stream,
            Err(error) => {
                self.failed(&error);
                return None;
            }
        };
        self.connection = Connection::Standing {
            stream,
            since: Instant::now(),
        };
        self.metrics.connects_connected.inc();
        self.metrics.connected.set(1);
        self.status.enter(UpstreamState::Connected, None);
        info!(product = %self.settings.product_id, "upstream connected");
        let again = mem::replace(&mut self.has_streamed, true);
        again.then_some(Arrival::Reconnected)
    }

    /// Settles when to try again after an attempt that led to no stream.
    fn failed(&mut self, error: &OpenError) {
        let product = &self.settings.product_id;
        let problem = chain(error);
        if error.is_permanent() {
            self.metrics.connects_refused.inc();
            let wait = REFUSED_WAIT + REFUSED_WAIT.mul_f64(self.random.f64() / 10.0);
            error!(%product, problem, retry_in = ?wait, "upstream refuses the connection: check product_id, url and token");
            self.status.enter(UpstreamState::Refused, Some(problem));
            self.connection = Connection::Waiting {
                until: Instant::now() + wait,
            };
            return;
        }
        self.metrics.connects_failed.inc();
        let wait = self
            .backoff
            .next(&mut self.random)
            .max(error.retry_after().unwrap_or_default());
        warn!(%product, problem, retry_in = ?wait, "upstream connection failed");
        self.wait(wait, problem);
    }

    /// Closes a stream that ended, and settles when to try again.
    async fn lost(&mut self, problem: String) {
        let ended = mem::replace(&mut self.connection, Connection::Waiting { until: Instant::now() });
        if let Connection::Standing { stream, since } = ended {
            if since.elapsed() >= PROVEN_AFTER {
                self.backoff.reset();
            }
            stream.close().await;
        }
        self.metrics.connected.set(0);
        let wait = self.backoff.next(&mut self.random).max(self.retry);
        warn!(product = %self.settings.product_id, problem, retry_in = ?wait, "upstream connection lost");
        self.wait(wait, problem);
    }

    fn wait(&mut self, wait: Duration, problem: String) {
        self.status.enter(UpstreamState::BackingOff, Some(problem));
        self.connection = Connection::Waiting {
            until: Instant::now() + wait,
        };
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A connector that restarts is back within a second.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Long enough for a connector in trouble, short enough that its return is noticed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a success; a shorter one may be a connector that crashes on every client.
const PROVEN_AFTER: Duration = Duration::from_secs(30);

/// What only a person can mend is tried at most once a minute.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
