//! `demo`: simulator, relay and a sample webhook receiver in one process, on an embedded default.

use std::net::{Ipv4Addr, SocketAddr};

use super::{
    Failure, block_on, print,
    simulate::{DEFAULT_PRODUCT, DEFAULT_RATE, DEFAULT_SEED, DEFAULT_SESSIONS, Running},
};
use crate::{
    app::App,
    config::{AllowAnonymous, Config, Environment},
    error_chain::with_causes,
    shutdown::Signals,
    simulate::{Options, Receiver},
};

/// Run a simulator, a relay and a sample webhook receiver in one process, and print what to try.
///
/// The addresses can be changed by AUTOPLAY_RELAY__SERVER__LISTEN and AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let signals = Signals::listen()?;
        let options = Options {
            products: vec![DEFAULT_PRODUCT.to_owned()],
            rate: DEFAULT_RATE,
            sessions: DEFAULT_SESSIONS,
            payload_bytes: 0,
            token: Some(TOKEN.to_owned()),
            heartbeat: std::time::Duration::from_secs(30),
            seed: DEFAULT_SEED,
        };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let cannot_serve = |error| Failure::Other(with_causes(&error));
        let simulator = Running::start(loopback, options).map_err(cannot_serve)?;
        let receiver = Receiver::new(SECRET, print);
        let router = receiver.router();
        let receiver = Running::serve(loopback, router, |stopped| async move { receiver.run(stopped).await });
        let receiver = receiver.map_err(cannot_serve)?;
        let outcome = relay(simulator.address, receiver.address, signals).await;
        // In the order of the events' way: what is under way to the receiver is answered before that leaves.
        receiver.end().await;
        simulator.end().await;
        outcome
    })
}

async fn relay(upstream: SocketAddr, receiver: SocketAddr, signals: Signals) -> Result<(), Failure> {
    let text = CONFIG.replace("UPSTREAM", &upstream.to_string()).replace("RECEIVER", &receiver.to_string());
    let config = Config::parse(&text, "embedded default", &Environment::from_process(), AllowAnonymous::OnLoopback)?;
    let app = App::start(config)?;
    print(&greeting(app.address(), app.admin_address()));
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
const TOKEN: &str = "demo-token";

/// What relay and receiver sign and check with.
const SECRET: &str = "demo-secret";

/// What `serve` would be given in a file. UPSTREAM is the simulator's address, RECEIVER that of the sample receiver.
const CONFIG: &str = r#"
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
