//! `simulate`: a stand-in connector.
//!
//! May use: `error_chain`, `net`, `simulate`, `timer_wheel`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{CliError, CommandRuntime, parse_duration, print_line};
use crate::{
    error_chain::error_chain,
    net::{self, BindError, ConnectionSettings, ConnectionShares, Listener, Routes},
    simulate::{SimulationOptions, Simulator},
    timer_wheel::TimerWheel,
};

/// Run a stand-in connector: GET /stream/{product_id} streams the events of simulated users.
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Product to stream; may be given several times.
    #[arg(long = "product", value_name = "ID", default_values_t = [DEFAULT_PRODUCT.to_owned()])]
    products: Vec<String>,
    /// Events per second in each product.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE)]
    rate: f64,
    /// Sessions that are active at one time in each product.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SESSIONS)]
    sessions: usize,
    /// Pad each payload to about this many bytes; 0 adds no padding.
    #[arg(long, value_name = "N", default_value_t = 0)]
    payload_bytes: usize,
    /// Bearer token that clients must send; without this option, clients need no token.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// Time between heartbeats.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    heartbeat: Duration,
    /// Seed of the simulation; the same seed gives the same events.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    seed: u64,
}

pub(super) fn run(args: SimulateArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    if !(args.rate > 0.0 && args.rate <= MAX_EVENT_RATE) {
        return Err(CliError::Usage(format!(
            "--rate: {} must be above 0 and at most {MAX_EVENT_RATE}",
            args.rate
        )));
    }
    if args.sessions == 0 || args.sessions > MAX_SIMULATED_SESSIONS {
        return Err(CliError::Usage(format!(
            "--sessions: {} must be from 1 to {MAX_SIMULATED_SESSIONS}",
            args.sessions
        )));
    }
    if args.payload_bytes > MAX_PADDED_PAYLOAD_BYTES {
        return Err(CliError::Usage(format!(
            "--payload-bytes: {} must be at most {MAX_PADDED_PAYLOAD_BYTES}",
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
        let products = options.products.clone();
        let server = BackgroundServer::start(args.listen, options)
            .map_err(|error| CliError::Other(error_chain(&error)))?;
        info!(listen = %server.address, "simulating");
        for product in products {
            print_line(&stream_url(server.address, &product))?;
        }
        signals.shutdown_requested().await;
        signals.absorb_repeats().await;
        tokio::select! {
            () = server.shut_down() => Ok(()),
            () = signals.shutdown_requested() => Err(CliError::Other("ended by a second signal".to_owned())),
        }
    })
}

/// Returns the URL of a product's stream, for a relay's `[[upstreams]]`.
fn stream_url(address: SocketAddr, product: &str) -> String {
    format!("http://{address}/stream/{}", utf8_percent_encode(product, BEYOND_UNRESERVED))
}

/// Server of a simulated connector or receiver, in tasks that it owns.
#[derive(Debug)]
pub(super) struct BackgroundServer {
    /// Address that it listens on.
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl BackgroundServer {
    /// Binds the address and starts a simulated connector.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub(super) fn start(listen: SocketAddr, options: SimulationOptions) -> Result<Self, BindError> {
        let simulator = Arc::new(Simulator::new(options));
        Self::serve(
            listen,
            simulator.router(),
            |stopped| async move { simulator.run(stopped).await },
        )
    }

    /// Binds the address, serves `router`, and runs the future of `run` until
    /// [`BackgroundServer::shut_down`] cancels its token.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
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
            first_byte_timeout: SIMULATED_SOCKET_TIMEOUT,
            max_connections: usize::MAX,
            max_over_limit: 0,
            shares: ConnectionShares::UNTIL_FULL,
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
                tracing::error!(%error, %address, "cannot serve the simulation");
            }
        });
        Ok(Self { address, stop, tasks })
    }

    /// Cancels the tasks and waits until they have ended.
    pub(super) async fn shut_down(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Characters that a path segment carries percent-encoded: all but RFC 3986's unreserved ones
/// (§2.3).
const BEYOND_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Product of `simulate` and `demo`.
pub(super) const DEFAULT_PRODUCT: &str = "prod_demo";

/// Default rate: fast enough to watch, slow enough to read.
pub(super) const DEFAULT_RATE: f64 = 5.0;

/// Default number of sessions: the afternoon of a small product.
pub(super) const DEFAULT_SESSIONS: usize = 20;

/// Default seed. Any number will do if it stays the same.
pub(super) const DEFAULT_SEED: u64 = 1;

/// Maximum rate that one thread can generate.
const MAX_EVENT_RATE: f64 = 100_000.0;

/// Keeps the simulated sessions within some hundred megabytes.
const MAX_SIMULATED_SESSIONS: usize = 1_000_000;

/// Above the largest event that a relay can be configured to accept.
const MAX_PADDED_PAYLOAD_BYTES: usize = 128 << 20;

/// Socket time-outs of the simulator. Those of the connector are not known; these are the defaults
/// of the relay.
const SIMULATED_SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
