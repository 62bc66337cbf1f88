//! `simulate`: a stand-in connector.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Failure, block_on, duration};
use crate::{
    error_chain::with_causes,
    net::{self, BindError, Listener, Manners, Routes},
    shutdown::Signals,
    simulate::{Options, Simulator},
    timer_wheel::Wheel,
};

/// Run a stand-in connector: GET /stream/{product_id} with made-up people using a made-up product.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// A product to stream; may be given several times.
    #[arg(long = "product", value_name = "ID", default_values_t = [DEFAULT_PRODUCT.to_owned()])]
    products: Vec<String>,
    /// Events per second and product.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE)]
    rate: f64,
    /// Sessions active at one time, in each product.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SESSIONS)]
    sessions: usize,
    /// Pad each payload to about this many bytes; 0 leaves them as they are.
    #[arg(long, value_name = "N", default_value_t = 0)]
    payload_bytes: usize,
    /// The bearer token to demand; without it everybody is let in.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// Time between heartbeats.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    heartbeat: Duration,
    /// The same seed makes the same people do the same things.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    seed: u64,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    if !(arguments.rate > 0.0 && arguments.rate <= MAX_RATE) {
        return Err(Failure::Usage(format!("--rate {}: must be above 0 and at most {MAX_RATE}", arguments.rate)));
    }
    if arguments.sessions == 0 || arguments.sessions > MAX_SESSIONS {
        return Err(Failure::Usage(format!("--sessions {}: must be from 1 to {MAX_SESSIONS}", arguments.sessions)));
    }
    if arguments.payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(Failure::Usage(format!(
            "--payload-bytes {}: at most {MAX_PAYLOAD_BYTES}",
            arguments.payload_bytes
        )));
    }
    if arguments.heartbeat.is_zero() {
        return Err(Failure::Usage("--heartbeat: must be longer than 0s".to_owned()));
    }
    let options = Options {
        products: arguments.products,
        rate: arguments.rate,
        sessions: arguments.sessions,
        payload_bytes: arguments.payload_bytes,
        token: arguments.token,
        heartbeat: arguments.heartbeat,
        seed: arguments.seed,
    };
    block_on(async {
        let mut signals = Signals::listen()?;
        let running = Running::start(arguments.listen, options).map_err(|error| Failure::Other(with_causes(&error)))?;
        info!(listen = %running.address, "simulating");
        signals.stop_requested().await;
        signals.settle().await;
        tokio::select! {
            () = running.end() => Ok(()),
            () = signals.stop_requested() => Err(Failure::Other("ended by a second signal".to_owned())),
        }
    })
}

/// A stand-in for somebody else, which serves.
#[derive(Debug)]
pub(super) struct Running {
    /// Where it listens.
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    /// Binds the address and begins to simulate a connector.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub(super) fn start(listen: SocketAddr, options: Options) -> Result<Self, BindError> {
        let simulator = Arc::new(Simulator::new(options));
        Self::serve(listen, simulator.router(), |stopped| async move { simulator.run(stopped).await })
    }

    /// Binds the address and serves these routes, while what `run` makes goes on until it is stopped.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub(super) fn serve<F>(
        listen: SocketAddr,
        router: Router,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Result<Self, BindError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = Listener::bind(listen, PATIENCE)?;
        let address = listener.address();
        let (stop, wheel) = (CancellationToken::new(), Wheel::new());
        let manners = Manners {
            head_timeout: PATIENCE,
            write_timeout: PATIENCE,
            wheel: Arc::clone(&wheel),
            max_connections: usize::MAX,
            tls: None,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(run(stop.clone()));
        let stopped = stop.clone();
        tasks.spawn(async move { wheel.run(stopped).await });
        let stopped = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = net::serve(listener, Routes::new(router), manners, stopped, |_| {}).await {
                tracing::error!(%error, %address, "cannot serve what is simulated");
            }
        });
        Ok(Self { address, stop, tasks })
    }

    /// Ends it and waits until it has ended.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The product of `simulate` and `demo`.
pub(super) const DEFAULT_PRODUCT: &str = "prod_demo";

/// Fast enough to watch, slow enough to read.
pub(super) const DEFAULT_RATE: f64 = 5.0;

/// A small product's afternoon.
pub(super) const DEFAULT_SESSIONS: usize = 20;

/// Any number: what matters is that it stays the same.
pub(super) const DEFAULT_SEED: u64 = 1;

/// What one thread can make up.
const MAX_RATE: f64 = 100_000.0;

/// Keeps the made-up crowd within some hundred megabytes.
const MAX_SESSIONS: usize = 1_000_000;

/// Above the largest event a relay can be told to accept.
const MAX_PAYLOAD_BYTES: usize = 128 << 20;

/// The connector's own patience is not known; this is the relay's.
const PATIENCE: Duration = Duration::from_secs(30);
