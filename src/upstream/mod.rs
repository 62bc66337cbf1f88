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
    error_chain::with_causes,
    event::EventId,
    metrics::UpstreamMetrics,
    outbound::client::{Client, EventStream, OpenError, Target},
    sse::{Decoded, Frame},
};

/// The connection to one connector, kept up.
#[derive(Debug)]
pub(crate) struct Upstream {
    wanted: watch::Receiver<Settings>,
    /// Those of `wanted` that are in force.
    settings: config::Upstream,
    target: Target,
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

/// How an upstream is reached.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// As it is configured.
    pub(crate) upstream: config::Upstream,
    /// Who dials, from the next attempt on.
    pub(crate) client: Client,
}

#[derive(Debug)]
enum Connection {
    Waiting { until: Instant },
    Standing { stream: Box<EventStream>, since: Instant },
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
        again: bool,
    },
    /// The stream of a relay stands, and goes on where the log ends.
    Resumed,
    /// The stream has ended, and the next attempt comes after a wait.
    Lost,
}

impl Upstream {
    /// An upstream that is not connected. `has_streamed` tells that it was before; `random` spreads the waits.
    pub(crate) fn new(
        mut wanted: watch::Receiver<Settings>,
        has_streamed: bool,
        status: Arc<UpstreamStatus>,
        metrics: UpstreamMetrics,
        random: fastrand::Rng,
    ) -> Self {
        let settings = wanted.borrow_and_update().upstream.clone();
        let url = settings.url.as_uri().clone();
        Self {
            target: Target { url, token: settings.token.clone(), last_event_id: None, is_relay: false },
            wanted,
            settings,
            status,
            metrics,
            backoff: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF),
            random,
            connection: Connection::Waiting { until: Instant::now() },
            has_streamed,
            retry: Duration::ZERO,
        }
    }

    /// Waits for what comes next, connecting as often as it takes. `newest` is the last id of the log, behind which a relay
    /// is asked to go on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up an attempt under way and loses no frame.
    pub(crate) async fn next(&mut self, newest: impl Fn() -> Option<EventId>) -> Arrival {
        loop {
            let heartbeat_timeout = self.settings.heartbeat_timeout;
            let step = match &mut self.connection {
                Connection::Waiting { until } => tokio::select! {
                    biased;
                    () = changed(&mut self.wanted) => Step::Adopt,
                    () = sleep_until(*until) => Step::Connect,
                },
                Connection::Standing { stream, .. } => tokio::select! {
                    biased;
                    () = changed(&mut self.wanted) => Step::Adopt,
                    next = stream.next(heartbeat_timeout) => match next {
                        Ok(Some(Decoded::Frame(frame))) => Step::Frame { frame, received: stream.received() },
                        Ok(Some(Decoded::TooLarge)) => Step::TooLarge,
                        Ok(Some(Decoded::Retry(wait))) => Step::Retry(wait),
                        Ok(None) => Step::Lost(format!("silent for {}", humantime::format_duration(heartbeat_timeout))),
                        Err(error) => Step::Lost(with_causes(&error)),
                    },
                },
            };
            let arrival = match step {
                Step::Adopt => self.adopt().await,
                Step::Connect => self.connect(newest()).await,
                Step::Frame { frame, received } => Some(Arrival::Frame { frame, received }),
                Step::TooLarge => Some(Arrival::TooLarge),
                Step::Retry(wait) => {
                    self.retry = wait.min(MAX_BACKOFF);
                    None
                }
                Step::Lost(problem) => {
                    self.lost(problem).await;
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
        let ended = mem::replace(&mut self.connection, Connection::Waiting { until: Instant::now() });
        if let Connection::Standing { stream, .. } = ended {
            stream.close().await;
        }
    }

    /// Takes over the settings that are wanted. A stream that stands stays, unless it would be another one by these.
    async fn adopt(&mut self) -> Option<Arrival> {
        let wanted = self.wanted.borrow_and_update().upstream.clone();
        let before = mem::replace(&mut self.settings, wanted);
        self.target.token.clone_from(&self.settings.token);
        if before.url != self.settings.url {
            self.target.url = self.settings.url.as_uri().clone();
            self.target.is_relay = false; // that is found out again
        }
        let stays = config::Upstream { token: self.settings.token.clone(), ..before } == self.settings;
        if stays && matches!(self.connection, Connection::Standing { .. }) {
            return None;
        }
        let ended = mem::replace(&mut self.connection, Connection::Waiting { until: Instant::now() });
        let Connection::Standing { stream, .. } = ended else { return None };
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
    async fn connect(&mut self, newest: Option<EventId>) -> Option<Arrival> {
        self.status.enter(UpstreamState::Connecting, None);
        let asked_as_relay = self.target.is_relay;
        // A log that is empty wants everything that the relay keeps: its own clients come back with ids from there.
        let position = newest.map_or_else(|| "0".to_owned(), |id| id.to_string());
        self.target.last_event_id = asked_as_relay.then_some(position);
        let max_event_bytes = usize::try_from(self.settings.max_event_bytes).unwrap_or(usize::MAX);
        let client = self.wanted.borrow().client.clone();
        let stream = match client.open(&self.target, max_event_bytes).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                self.failed(&error);
                return None;
            }
        };
        self.target.is_relay = stream.resumes();
        if self.target.is_relay && !asked_as_relay {
            self.warn_of_filter();
            stream.close().await; // asked again at once, and then to go on
            return None;
        }
        self.connection = Connection::Standing { stream, since: Instant::now() };
        self.metrics.connects_connected.inc();
        self.metrics.connected.set(1);
        self.status.enter(UpstreamState::Connected, None);
        info!(product = %self.settings.product_id, "upstream connected");
        let again = mem::replace(&mut self.has_streamed, true);
        Some(if self.target.is_relay { Arrival::Resumed } else { Arrival::Connected { again } })
    }

    /// A relay that is asked for a part of its events gives ids with holes, and where they began is forgotten soon.
    fn warn_of_filter(&self) {
        if filters(self.settings.url.as_uri().query().unwrap_or_default()) {
            let product = &self.settings.product_id;
            warn!(%product, "upstream is a relay whose url asks for some types or sessions only: older ids will be lost sooner");
        }
    }

    /// Settles when to try again after an attempt that led to no stream.
    fn failed(&mut self, error: &OpenError) {
        let product = &self.settings.product_id;
        let problem = with_causes(error);
        if error.is_permanent() {
            self.metrics.connects_refused.inc();
            let wait = REFUSED_WAIT + REFUSED_WAIT.mul_f64(self.random.f64() / 10.0);
            error!(%product, problem, retry_in = ?wait, "upstream refuses the connection: check product_id, url and token");
            self.status.enter(UpstreamState::Refused, Some(problem));
            self.connection = Connection::Waiting { until: Instant::now() + wait };
            return;
        }
        self.metrics.connects_failed.inc();
        let wait = self.backoff.next(&mut self.random).max(error.retry_after().unwrap_or_default());
        warn!(%product, problem, retry_in = ?wait, "upstream connection failed");
        self.wait(wait, problem);
    }

    /// Closes a stream that ended, and settles when to try again.
    async fn lost(&mut self, problem: String) {
        let ended = mem::replace(&mut self.connection, Connection::Waiting { until: Instant::now() });
        let mut lasted = Duration::ZERO;
        if let Connection::Standing { stream, since } = ended {
            lasted = since.elapsed();
            stream.close().await;
        }
        self.metrics.connected.set(0);
        let wait = self.wait_after(lasted);
        warn!(product = %self.settings.product_id, problem, retry_in = ?wait, "upstream connection lost");
        self.wait(wait, problem);
    }

    /// How long to wait after a stream that `lasted` so long.
    fn wait_after(&mut self, lasted: Duration) -> Duration {
        if lasted >= PROVEN_AFTER {
            self.backoff.reset();
        }
        self.backoff.next(&mut self.random).max(self.retry)
    }

    fn wait(&mut self, wait: Duration, problem: String) {
        self.status.enter(UpstreamState::BackingOff, Some(problem));
        self.connection = Connection::Waiting { until: Instant::now() + wait };
    }
}

/// What happens next.
enum Step {
    Adopt,
    Connect,
    Frame { frame: Frame, received: Instant },
    TooLarge,
    Retry(Duration),
    Lost(String),
}

/// Waits for other settings; for ever where nobody is left to give any.
async fn changed(wanted: &mut watch::Receiver<Settings>) {
    if wanted.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// Whether a query asks a relay for less than everything.
fn filters(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| matches!(&*key, "type" | "session_id"))
}

/// A connector that restarts is back within a second.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Long enough for a connector in trouble, short enough that its return is noticed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a success; a shorter one may be a connector that crashes on every client.
const PROVEN_AFTER: Duration = Duration::from_secs(30);

/// What only a person can mend is tried at most once a minute.
const REFUSED_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;
    use crate::{
        config::{AllowAnonymous, Config, Environment},
        metrics::Metrics,
    };

    fn upstream() -> Upstream {
        let text = "[[upstreams]]\nproduct_id = 'p'\nurl = 'http://127.0.0.1:1/stream/p'";
        let config = Config::parse(text, "test", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
        let settings = Settings { upstream: config.upstreams[0].clone(), client: Client::new(None).unwrap() };
        let metrics = Metrics::new().unwrap().upstream(&settings.upstream.product_id);
        let (_, wanted) = watch::channel(settings);
        Upstream::new(wanted, false, Arc::new(UpstreamStatus::new()), metrics, fastrand::Rng::with_seed(1))
    }

    fn answered(status: u16, retry_after: Option<u64>) -> OpenError {
        let status = StatusCode::from_u16(status).unwrap();
        OpenError::Status { status, retry_after: retry_after.map(Duration::from_secs) }
    }

    /// How long the next attempt is away.
    fn wait(upstream: &Upstream) -> Duration {
        match &upstream.connection {
            Connection::Waiting { until } => until.duration_since(Instant::now()),
            Connection::Standing { .. } => panic!("connected"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_a_person_can_mend_is_tried_at_most_once_a_minute() {
        for status in [400, 401, 403, 404] {
            let mut upstream = upstream();
            for _ in 0..50 {
                upstream.failed(&answered(status, None));
                assert!((60.0..=66.0).contains(&wait(&upstream).as_secs_f64()));
            }
            assert_eq!(upstream.status.facts().state, UpstreamState::Refused);
            assert_eq!((upstream.metrics.connects_refused.get(), upstream.metrics.connects_failed.get()), (50, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_mend_itself_is_tried_again_within_half_a_minute() {
        for error in [answered(500, None), answered(429, None), answered(204, None), OpenError::Timeout] {
            let mut upstream = upstream();
            let waits = (0..50).map(|_| {
                upstream.failed(&error);
                wait(&upstream)
            });
            let waits: Vec<_> = waits.collect();
            assert!(waits[0] <= FIRST_BACKOFF, "{error}: {:?}", waits[0]);
            assert!(waits.iter().all(|wait| *wait <= MAX_BACKOFF));
            assert!(waits.iter().any(|wait| *wait > MAX_BACKOFF / 2));
            assert_eq!(upstream.status.facts().state, UpstreamState::BackingOff);
        }
    }

    #[test]
    fn a_query_filters_when_it_names_types_or_sessions() {
        assert!(["type=actions", "a=1&session_id=s", "%74ype=actions"].into_iter().all(filters));
        assert!(!["", "types=a", "token=type", "last_event_id=0"].into_iter().any(filters));
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_honoured_within_reason() {
        let mut upstream = upstream();
        upstream.failed(&answered(503, Some(45)));
        assert_eq!(wait(&upstream), Duration::from_secs(45));
        upstream.failed(&answered(429, Some(86_400)));
        assert_eq!(wait(&upstream), Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stream_that_lasted_makes_the_waits_short_again() {
        let mut upstream = upstream();
        for _ in 0..20 {
            upstream.wait_after(Duration::from_secs(29));
        }
        let worn: Vec<_> = (0..50).map(|_| upstream.wait_after(Duration::from_secs(29))).collect();
        assert!(worn.iter().any(|wait| *wait > MAX_BACKOFF / 2));
        assert!(upstream.wait_after(Duration::from_secs(30)) <= FIRST_BACKOFF);
    }

    #[tokio::test(start_paused = true)]
    async fn the_connectors_own_wish_is_the_shortest_wait() {
        let mut upstream = upstream();
        upstream.retry = Duration::from_secs(7);
        assert!(upstream.wait_after(Duration::from_secs(60)) >= Duration::from_secs(7));
    }
}
