//! `demo`: simulator and relay in one process, on an embedded default.

use std::net::{Ipv4Addr, SocketAddr};

use super::{
    Failure, block_on, print,
    simulate::{DEFAULT_PRODUCT, DEFAULT_RATE, DEFAULT_SEED, DEFAULT_SESSIONS, Running},
};
use crate::{
    app::App,
    causes::with_causes,
    config::{AllowAnonymous, Config, Environment},
    shutdown::Signals,
    simulate::Options,
};

/// Run a simulator and a relay in one process, and print what to try.
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
        let simulator = Running::start(loopback, options).map_err(|error| Failure::Other(with_causes(&error)))?;
        let outcome = relay(simulator.address, signals).await;
        simulator.end().await;
        outcome
    })
}

async fn relay(upstream: SocketAddr, signals: Signals) -> Result<(), Failure> {
    let text = CONFIG.replace("UPSTREAM", &upstream.to_string());
    let config = Config::parse(&text, "embedded default", &Environment::from_process(), AllowAnonymous::OnLoopback)?;
    let app = App::start(&config)?;
    print(&greeting(app.address(), app.admin_address()));
    Ok(app.run(signals).await?)
}

fn greeting(relay: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "A simulated connector streams {DEFAULT_PRODUCT}; the relay holds one connection to it. In another terminal:

  curl -N http://{relay}/stream/{DEFAULT_PRODUCT}                       every event, live
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?type=summary'        only summaries
  curl -N 'http://{relay}/stream/{DEFAULT_PRODUCT}?last_event_id=0'     everything kept, then live
  autoplay-relay tail http://{relay}/stream/{DEFAULT_PRODUCT}           the same, readably; resumes by itself
  curl http://{admin}/api/v1/status                            upstreams, subscribers, log
  curl http://{admin}/metrics                                  for Prometheus

Ctrl-C ends it."
    )
}

/// The simulator's token: the relay must show one, as it must to a real connector.
const TOKEN: &str = "demo-token";

/// What `serve` would be given in a file. UPSTREAM is the simulator's address.
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
"#;
