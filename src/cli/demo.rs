//! `demo`: simulator, relay and sample webhook receiver in one process, with an embedded
//! configuration.
//!
//! May use: `app`, `config`, `error_chain`, `shutdown`, `simulate`.

use std::net::{Ipv4Addr, SocketAddr};

use parking_lot::Mutex;
use tokio::sync::oneshot;

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

/// Run a simulator, a relay and a sample webhook receiver in one process, and print commands to
/// try.
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
        let (print_failed, mut print_failure) = oneshot::channel();
        let print_failed = Mutex::new(Some(print_failed));
        let print = move |line: &str| {
            let Err(error) = print_line(line) else { return };
            let sender = print_failed.lock().take();
            if let Some(sender) = sender {
                // The receiving end is gone only when the demo ends anyway.
                let _ = sender.send(error);
            }
        };
        let receiver = SampleReceiver::new(DEMO_SECRET, Box::new(print));
        let router = receiver.router();
        let receiver = BackgroundServer::serve(loopback, router, |stopped| async move {
            receiver.run(stopped).await;
        });
        let receiver = receiver.map_err(serve_error)?;
        let outcome = tokio::select! {
            outcome = run_relay(simulator.address, receiver.address, signals) => outcome,
            Ok(error) = &mut print_failure => Err(error),
        };
        // The receiver ends before the simulator: deliveries in flight are answered first.
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
    print_line(&greeting(app.address(), app.admin_address()))?;
    Ok(app.run(signals, None).await?)
}

fn greeting(relay: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "A simulated connector streams {DEFAULT_PRODUCT}; the relay holds one connection to it. In another terminal:

  curl -N http://{relay}/stream/{DEFAULT_PRODUCT}                       every event, live
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?type=summary'        only summaries
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?last_event_id=0'     all kept events, then live
  autoplay-relay tail http://{relay}/stream/{DEFAULT_PRODUCT}           the same in readable lines; reconnects and resumes
  http://{admin}/                                         the console, in a browser: the state of the relay, live
  curl http://{admin}/api/v1/status                            upstreams, subscribers, log
  curl http://{admin}/metrics                                  for Prometheus

The relay also pushes to two webhooks of a sample receiver, which verifies the signatures and prints here what it gets.
The webhook at /flaky fails for the first 20 s of every 90 s: its deliveries wait, and arrive when it answers again.

  curl http://{admin}/api/v1/webhooks                          both webhooks and their states
  curl '{flaky}/deliveries?state=pending'      waiting deliveries with all attempts
  curl '{flaky}/deliveries?state=delivered'    completed deliveries with all attempts
  curl -X POST {flaky}/test                    one signed sample event, and the answer

Ctrl-C ends it.",
        flaky = format_args!("http://{admin}/api/v1/webhooks/flaky"),
    )
}

/// Token of the simulator: the relay must send one, as to a real connector.
const DEMO_TOKEN: &str = "demo-token";

/// Secret that the relay signs with and the receiver verifies with.
const DEMO_SECRET: &str = "demo-secret";

/// The configuration that `serve` would read from a file. UPSTREAM is replaced by the address of
/// the simulator, RECEIVER by that of the sample receiver.
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
allow_networks = ["127.0.0.0/8", "::1/128"]
"#;
