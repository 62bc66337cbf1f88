//! A stand-in connector: `GET /stream/{product_id}` as the real one serves it, filled with
//! simulated sessions.
//!
//! In: which products, how much traffic. Out: routes to serve, and a future that makes the traffic
//! until it is stopped. Like the real connector it keeps nothing, knows no resume, and drops events
//! for a client whose queue is full.
//!
//! ```text
//! site → visit → person → people → run → audience → stream
//!  what there is   who     when   to whom    over HTTP
//! ```
//!
//! Beside it, `receiver`: a stand-in for whoever receives webhooks.
//!
//! May use: no other module.

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

pub(crate) use self::receiver::SampleReceiver;
use self::{population::Population, stream::SimulatedConnector};

/// What to simulate. The caller has checked it.
pub(crate) struct SimulationOptions {
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
    options: SimulationOptions,
    connector: Arc<SimulatedConnector>,
}

impl Simulator {
    /// A connector that is silent until it runs.
    pub(crate) fn new(options: SimulationOptions) -> Simulator {
        let connector =
            SimulatedConnector::new(&options.products, options.token.as_deref(), options.heartbeat);
        Simulator { options, connector: Arc::new(connector) }
    }

    /// What to serve.
    pub(crate) fn router(&self) -> Router {
        stream::router(self.connector.clone())
    }

    /// Makes every product's traffic until `stop` is cancelled; then ends all streams, so that a
    /// server can drain, and answers new ones with 503.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the traffic but leaves the streams open.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut products = JoinSet::new();
        for product in self.options.products.iter().collect::<BTreeSet<_>>() {
            let SimulationOptions { rate, sessions, payload_bytes, seed, .. } = self.options;
            let population = Population::new(seed, product, sessions, payload_bytes);
            products.spawn(run_product(
                self.connector.clone(),
                product.clone(),
                population,
                EventPacer::new(rate),
                stop.clone(),
            ));
        }
        while let Some(finished) = products.join_next().await {
            if let Err(error) = finished {
                error!(%error, "the traffic of a simulated product broke off");
            }
        }
        stop.cancelled().await; // without products there was nothing to wait for yet
    }
}

/// Tells a product's audience what its crowd does, at an even pace, until stopped; then closes the
/// audience.
async fn run_product(
    connector: Arc<SimulatedConnector>,
    product: String,
    mut population: Population,
    mut pace: EventPacer,
    stop: CancellationToken,
) {
    let Some(clients) = connector.clients(&product) else {
        return;
    };
    while let Some(events) = stop.run_until_cancelled(pace.tick()).await {
        for _ in 0..events {
            clients.broadcast(&encode_frame(&population.next_payload(unix_seconds())));
        }
        // When ticks were missed the next one is due already; clients take their turn in between.
        yield_now().await;
    }
    clients.close();
}

/// When events are due: one a tick, or several where ticks would have to be closer than a timer can
/// tell apart.
struct EventPacer {
    ticks: Interval,
    per_tick: f64,
    /// What earlier ticks left over: less than one event.
    carry: f64,
}

impl EventPacer {
    fn new(rate: f64) -> EventPacer {
        // A rate too small for a `Duration` is a very long time, and so is the longest allowed.
        let between_events = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(MAX_TICK);
        let period = between_events.clamp(MIN_TICK, MAX_TICK);
        let per_tick = if between_events < MIN_TICK { rate * MIN_TICK.as_secs_f64() } else { 1.0 };
        // By default an interval catches up with missed ticks in a burst, so the rate holds on a
        // busy machine.
        EventPacer { ticks: interval(period), per_tick, carry: 0.0 }
    }

    /// Waits for the next tick: how many events are due.
    async fn tick(&mut self) -> u32 {
        self.ticks.tick().await;
        self.carry += self.per_tick;
        let due = self.carry.floor();
        self.carry -= due;
        due as u32
    }
}

/// A payload as it goes over the wire: encoded once, shared by all clients.
fn encode_frame(payload: &str) -> Bytes {
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
const MIN_TICK: Duration = Duration::from_millis(1);
/// Long enough to mean never, short enough to be added to an instant.
const MAX_TICK: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
