//! Stand-in connector: `GET /stream/{product_id}` as the real connector serves it, with the events
//! of simulated sessions.
//!
//! In: products and rates. Out: routes to serve, and a future that generates the traffic until it
//! is stopped. Like the real connector, the simulator keeps no events, has no resume, and drops
//! events for a client whose queue is full.
//!
//! ```text
//! site ─► visit ─► person ─► population ─► run ─► viewers ─► stream
//! pages   actions  payloads  all sessions  pace   queues     HTTP
//! ```
//!
//! `receiver` is a stand-in for a receiver of webhooks.
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

/// Options of the simulation. The caller has checked them.
pub(crate) struct SimulationOptions {
    /// Products that are registered; repeated ones count once.
    pub(crate) products: Vec<String>,
    /// Events per second in each product: more than 0, at most 100 000.
    pub(crate) rate: f64,
    /// Sessions that are active at one time in each product, at least 1.
    pub(crate) sessions: usize,
    /// Minimum size of every payload in bytes; 0 adds no padding.
    pub(crate) payload_bytes: usize,
    /// Bearer token that clients must send, if any.
    pub(crate) token: Option<String>,
    /// Time between the heartbeats of one stream, more than 0.
    pub(crate) heartbeat: Duration,
    /// Seed of the traffic. With the same seed, each product still has its own traffic.
    pub(crate) seed: u64,
}

/// Stand-in connector. Serve [`Simulator::router`] while [`Simulator::run`] generates the traffic.
pub(crate) struct Simulator {
    options: SimulationOptions,
    connector: Arc<SimulatedConnector>,
}

impl Simulator {
    /// Creates a connector that sends no events until it runs.
    pub(crate) fn new(options: SimulationOptions) -> Simulator {
        let connector =
            SimulatedConnector::new(&options.products, options.token.as_deref(), options.heartbeat);
        Simulator { options, connector: Arc::new(connector) }
    }

    /// Returns the routes to serve.
    pub(crate) fn router(&self) -> Router {
        stream::router(self.connector.clone())
    }

    /// Generates the traffic of every product until `stop` is cancelled. Then it ends all streams,
    /// so that a server can drain, and new requests get 503.
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
                error!(%error, "the traffic of a simulated product failed");
            }
        }
        stop.cancelled().await; // without products, no task has waited for it
    }
}

/// Sends the events of a population to the clients of its product, at an even pace, until `stop`;
/// then closes the clients' queues.
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
        // After missed ticks the next tick is due already; without this, clients would get no turn
        // in between.
        yield_now().await;
    }
    clients.close();
}

/// Pace of events: one event per tick, or several if ticks would have to be closer than the
/// resolution of the timer.
struct EventPacer {
    ticks: Interval,
    per_tick: f64,
    /// Remainder of earlier ticks: less than one event.
    carry: f64,
}

impl EventPacer {
    fn new(rate: f64) -> EventPacer {
        // A rate whose interval does not fit a `Duration` gets the longest tick.
        let between_events = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(MAX_TICK);
        let period = between_events.clamp(MIN_TICK, MAX_TICK);
        let per_tick = if between_events < MIN_TICK { rate * MIN_TICK.as_secs_f64() } else { 1.0 };
        // By default an interval catches up with missed ticks in a burst, so the rate holds on a
        // busy machine.
        EventPacer { ticks: interval(period), per_tick, carry: 0.0 }
    }

    /// Waits for the next tick, and returns how many events are due.
    async fn tick(&mut self) -> u32 {
        self.ticks.tick().await;
        self.carry += self.per_tick;
        let due = self.carry.floor();
        self.carry -= due;
        due as u32
    }
}

/// Encodes a payload as a frame, once for all clients.
fn encode_frame(payload: &str) -> Bytes {
    let mut frame = String::with_capacity("data: \n\n".len() + payload.len());
    for part in ["data: ", payload, "\n\n"] {
        frame.push_str(part);
    }
    Bytes::from(frame)
}

/// Returns the current time as the connector writes it. A clock before 1970 counts as 1970.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Resolution of tokio's timer.
const MIN_TICK: Duration = Duration::from_millis(1);
/// Long enough to mean "never", and short enough to be added to an `Instant`.
const MAX_TICK: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
