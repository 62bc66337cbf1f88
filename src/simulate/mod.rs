//! A stand-in connector: `GET /stream/{product_id}` as the real one serves it, filled with simulated sessions.
//!
//! In: which products, how much traffic. Out: routes to serve, and a future that makes the traffic until it is stopped.
//! Like the real connector it keeps nothing, knows no resume, and drops events for a client whose queue is full.
//!
//! ```text
//! site → visit → person → people → run → audience → stream
//!  what there is   who     when   to whom    over HTTP
//! ```
//!
//! Beside it, `receiver`: a stand-in for whoever receives webhooks.
//!
//! May use: `auth`, `http::error`, `sse`.

mod payload;
mod person;
mod population;
mod receiver;
mod site;
mod stream;
#[cfg(test)]
mod tests;
mod viewers;
mod visit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use bytes::Bytes;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Interval, interval};
use tokio_util::sync::CancellationToken;
use tracing::error;

pub(crate) use self::receiver::Receiver;
use self::{population::Crowd, stream::Connector};

/// What to simulate. The caller has checked it.
pub(crate) struct Options {
    /// The products that are registered. Twice the same is once.
    pub(crate) products: Vec<String>,
    /// Events per second and product: more than 0, at most 100 000.
    pub(crate) rate: f64,
    /// Sessions active at one time in each product, at least 1.
    pub(crate) sessions: usize,
    /// Size that every payload reaches at least; 0 leaves them as they are.
    pub(crate) payload_bytes: usize,
    /// The bearer token that clients must present, if any.
    pub(crate) token: Option<String>,
    /// Time between the heartbeats of one stream, more than 0.
    pub(crate) heartbeat: Duration,
    /// What the traffic follows from. Each product has its own traffic under the same seed.
    pub(crate) seed: u64,
}

/// The stand-in connector. Serve [`Simulator::router`] while [`Simulator::run`] makes the traffic.
pub(crate) struct Simulator {
    options: Options,
    connector: Arc<Connector>,
}

impl Simulator {
    /// A connector that is silent until it runs.
    pub(crate) fn new(options: Options) -> Simulator {
        let connector = Connector::new(&options.products, options.token.as_deref(), options.heartbeat);
        Simulator { options, connector: Arc::new(connector) }
    }

    /// What to serve.
    pub(crate) fn router(&self) -> Router {
        stream::router(self.connector.clone())
    }

    /// Makes every product's traffic until `stop` is cancelled; then ends all streams, so that a server can drain, and
    /// answers new ones with 503.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the traffic but leaves the streams open.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut products = JoinSet::new();
        for product in self.options.products.iter().collect::<BTreeSet<_>>() {
            let Options { rate, sessions, payload_bytes, seed, .. } = self.options;
            let crowd = Crowd::new(seed, product, sessions, payload_bytes);
            products.spawn(drive(self.connector.clone(), product.clone(), crowd, Pace::new(rate), stop.clone()));
        }
        while let Some(ended) = products.join_next().await {
            if let Err(error) = ended {
                error!(%error, "the traffic of a simulated product broke off");
            }
        }
        stop.cancelled().await; // without products there was nothing to wait for yet
    }
}

/// Tells a product's audience what its crowd does, at an even pace, until stopped; then closes the audience.
async fn drive(connector: Arc<Connector>, product: String, mut crowd: Crowd, mut pace: Pace, stop: CancellationToken) {
    let Some(audience) = connector.audience(&product) else {
        return;
    };
    while let Some(events) = stop.run_until_cancelled(pace.next()).await {
        for _ in 0..events {
            audience.tell(&frame(&crowd.next(unix_seconds())));
        }
        // When ticks were missed the next one is due already; clients take their turn in between.
        yield_now().await;
    }
    audience.close();
}

/// When events are due: one a tick, or several where ticks would have to be closer than a timer can tell apart.
struct Pace {
    ticks: Interval,
    per_tick: f64,
    /// What earlier ticks left over: less than one event.
    owed: f64,
}

impl Pace {
    fn new(rate: f64) -> Pace {
        // A rate too small for a `Duration` is a very long time, and so is the longest allowed.
        let between_events = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(LONGEST_TICK);
        let period = between_events.clamp(SHORTEST_TICK, LONGEST_TICK);
        let per_tick = if between_events < SHORTEST_TICK { rate * SHORTEST_TICK.as_secs_f64() } else { 1.0 };
        // By default an interval catches up with missed ticks in a burst, so the rate holds on a busy machine.
        Pace { ticks: interval(period), per_tick, owed: 0.0 }
    }

    /// Waits for the next tick: how many events are due.
    async fn next(&mut self) -> u32 {
        self.ticks.tick().await;
        self.owed += self.per_tick;
        let due = self.owed.floor();
        self.owed -= due;
        due as u32
    }
}

/// A payload as it goes over the wire: encoded once, shared by all clients.
fn frame(payload: &str) -> Bytes {
    let mut frame = String::with_capacity("data: \n\n".len() + payload.len());
    for part in ["data: ", payload, "\n\n"] {
        frame.push_str(part);
    }
    Bytes::from(frame)
}

/// Now, as the connector writes it. A clock before 1970 counts as 1970.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The resolution of tokio's timer.
const SHORTEST_TICK: Duration = Duration::from_millis(1);
/// Long enough to mean never, short enough to be added to an instant.
const LONGEST_TICK: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
