//! `demo`: simulator, relay and a sample webhook receiver in one process, on an embedded default.
//!
//! May use: `app`, `config`, `error_chain`, `shutdown`, `simulate`.

use std::net::{Ipv4Addr, SocketAddr};

use super::{
    CliError, CommandRuntime, print_line,
    simulate::{BackgroundServer, DEFAULT_PRODUCT, DEFAULT_RATE, DEFAULT_SEED, DEFAULT_SESSIONS},
};
use crate::{
    app::App,
    config::{AllowAnonymous, Config, Environment},
    error_chain::error_chain,
    shutdown::Signals,
    simulate::{SampleReceiver, SimulationOptions},
};

/// Run a simulator, a relay and a sample webhook receiver in one process, and print what to try.
///
/// The addresses can be changed by AUTOPLAY_RELAY__SERVER__LISTEN and
/// AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {}

pub(super) fn run(_: &DemoArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    runtime.serve(|signals| async move {
        let options = SimulationOptions {
            products: vec![DEFAULT_PRODUCT.to_owned()],
            rate: DEFAULT_RATE,
            sessions: DEFAULT_SESSIONS,
            payload_bytes: 0,
            token: Some(DEMO_TOKEN.to_owned()),
            heartbeat: std::time::Duration::from_secs(30),
            seed: DEFAULT_SEED,
        };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let serve_error = |error| CliError::Other(error_chain(&error));
        let simulator = BackgroundServer::start(loopback, options).map_err(serve_error)?;
        let receiver = SampleReceiver::new(DEMO_SECRET, print_line);
        let router = receiver.router();
        let receiver = BackgroundServer::serve(loopback, router, |stopped| async move {
            receiver.run(stopped).await;
        });
        let receiver = receiver.map_err(serve_error)?;
        let outcome = run_relay(simulator.address, receiver.address, signals).await;
        // In the order of the events' way: what is under way to the receiver is answered before
        // that leaves.
        receiver.shut_down().await;
        simulator.shut_down().await;
        outcome
    })
}

async fn run_relay(
    upstream: SocketAddr,
    receiver: SocketAddr,
    signals: Signals,
) -> Result<(), CliError> {
    let text = DEMO_CONFIG
        .replace("UPSTREAM", &upstream.to_string())
        .replace("RECEIVER", &receiver.to_string());
    let config = Config::parse(
        &text,
        "embedded default",
        &Environment::from_process(),
        AllowAnonymous::OnLoopback,
    )?;
    let app = App::start(config)?;
    print_line(&greeting(app.address(), app.admin_address()));
    Ok(app.run(signals, None).await?)
}

fn greeting(relay: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "A simulated connector streams {DEFAULT_PRODUCT}; the relay holds one connection to it. In another terminal:

  curl -N http://{relay}/stream/{DEFAULT_PRODUCT}                       every event, live
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?type=summary'        only summaries
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?last_event_id=0'     everything kept, then live
  autoplay-relay tail http://{relay}/stream/{DEFAULT_PRODUCT}           the same, readably; resumes by itself
  http://{admin}/                                         the console, in a browser: all of it, live
  curl http://{admin}/api/v1/status                            upstreams, subscribers, log
  curl http://{admin}/metrics                                  for Prometheus

The relay also pushes to two webhooks of a sample receiver, which checks the signatures and tells here what it gets.
The one at /flaky fails for the first 20 s of every 90 s: watch what is owed to it wait, and come when it is back.

  curl http://{admin}/api/v1/webhooks                          both, and how they stand
  curl '{flaky}/deliveries?state=pending'      what waits, with all attempts
  curl '{flaky}/deliveries?state=delivered'    what came in the end
  curl -X POST {flaky}/test                    one signed sample, and the answer

Ctrl-C ends it.",
        flaky = format_args!("http://{admin}/api/v1/webhooks/flaky"),
    )
}

/// The simulator's token: the relay must show one, as it must to a real connector.
const DEMO_TOKEN: &str = "demo-token";

/// What relay and receiver sign and check with.
const DEMO_SECRET: &str = "demo-secret";

/// What `serve` would be given in a file. UPSTREAM is the simulator's address, RECEIVER that of the
/// sample receiver.
const DEMO_CONFIG: &str = r#"
[server]
listen = "127.0.0.1:8080"
admin_listen = "127.0.0.1:9090"
drain_window = "1s"

[[upstreams]]
product_id = "prod_demo"
url = "http://UPSTREAM/stream/prod_demo"
token = "demo-token"

[auth]
allow_anonymous = true

[[webhooks]]
id = "sample"
product_id = "prod_demo"
url = "http://RECEIVER/good"
secret = "demo-secret"

[[webhooks]]
id = "flaky"
product_id = "prod_demo"
url = "http://RECEIVER/flaky"
secret = "demo-secret"
max_retries = 20
initial_backoff = "500ms"
max_backoff = "5s"

[egress]
allow_networks = ["127.0.0.0/8"]
"#;
