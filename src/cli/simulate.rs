//! `simulate`: a stand-in connector.
//!
//! May use: `error_chain`, `net`, `simulate`, `timer_wheel`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{CliError, CommandRuntime, parse_duration};
use crate::{
    error_chain::error_chain,
    net::{self, BindError, ConnectionSettings, Listener, Routes},
    simulate::{SimulationOptions, Simulator},
    timer_wheel::TimerWheel,
};

/// Run a stand-in connector: GET /stream/{product_id} with made-up people using a made-up product.
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
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
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    heartbeat: Duration,
    /// The same seed makes the same people do the same things.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    seed: u64,
}

pub(super) fn run(args: SimulateArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    if !(args.rate > 0.0 && args.rate <= MAX_EVENT_RATE) {
        return Err(CliError::Usage(format!(
            "--rate {}: must be above 0 and at most {MAX_EVENT_RATE}",
            args.rate
        )));
    }
    if args.sessions == 0 || args.sessions > MAX_SIMULATED_SESSIONS {
        return Err(CliError::Usage(format!(
            "--sessions {}: must be from 1 to {MAX_SIMULATED_SESSIONS}",
            args.sessions
        )));
    }
    if args.payload_bytes > MAX_PADDED_PAYLOAD_BYTES {
        return Err(CliError::Usage(format!(
            "--payload-bytes {}: at most {MAX_PADDED_PAYLOAD_BYTES}",
            args.payload_bytes
        )));
    }
    if args.heartbeat.is_zero() {
        return Err(CliError::Usage("--heartbeat: must be longer than 0s".to_owned()));
    }
    let options = SimulationOptions {
        products: args.products,
        rate: args.rate,
        sessions: args.sessions,
        payload_bytes: args.payload_bytes,
        token: args.token,
        heartbeat: args.heartbeat,
        seed: args.seed,
    };
    runtime.serve(|mut signals| async move {
        let server = BackgroundServer::start(args.listen, options)
            .map_err(|error| CliError::Other(error_chain(&error)))?;
        info!(listen = %server.address, "simulating");
        signals.shutdown_requested().await;
        signals.absorb_repeats().await;
        tokio::select! {
            () = server.shut_down() => Ok(()),
            () = signals.shutdown_requested() => Err(CliError::Other("ended by a second signal".to_owned())),
        }
    })
}

/// A stand-in for somebody else, which serves.
#[derive(Debug)]
pub(super) struct BackgroundServer {
    /// Where it listens.
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl BackgroundServer {
    /// Binds the address and begins to simulate a connector.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub(super) fn start(listen: SocketAddr, options: SimulationOptions) -> Result<Self, BindError> {
        let simulator = Arc::new(Simulator::new(options));
        Self::serve(
            listen,
            simulator.router(),
            |stopped| async move { simulator.run(stopped).await },
        )
    }

    /// Binds the address and serves these routes, while what `run` makes goes on until it is
    /// stopped.
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
        let listener = Listener::bind(listen, SIMULATED_SOCKET_TIMEOUT)?;
        let address = listener.address();
        let (stop, wheel) = (CancellationToken::new(), TimerWheel::new());
        let settings = ConnectionSettings {
            head_timeout: SIMULATED_SOCKET_TIMEOUT,
            write_timeout: SIMULATED_SOCKET_TIMEOUT,
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
            if let Err(error) =
                net::serve(listener, Routes::new(router), settings, stopped, |_| {}).await
            {
                tracing::error!(%error, %address, "cannot serve what is simulated");
            }
        });
        Ok(Self { address, stop, tasks })
    }

    /// Ends it and waits until it has ended.
    pub(super) async fn shut_down(mut self) {
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
const MAX_EVENT_RATE: f64 = 100_000.0;

/// Keeps the made-up crowd within some hundred megabytes.
const MAX_SIMULATED_SESSIONS: usize = 1_000_000;

/// Above the largest event a relay can be told to accept.
const MAX_PADDED_PAYLOAD_BYTES: usize = 128 << 20;

/// The connector's own patience is not known; this is the relay's.
const SIMULATED_SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
