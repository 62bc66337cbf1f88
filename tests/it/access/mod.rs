//! Access: keys, tokens, hosts and origins, and the secrecy of secrets.

mod keys;
mod matrix;
mod minting;
mod refusals;
mod secrecy;
mod sockets;
mod token_sources;
mod tokens;

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    http::Answer,
    relay::{KEYS, Relay, Setup},
    subscriber::Subscriber,
    token::jwt,
};

fn setup(jwt_lines: &str, server: &str) -> Setup {
    Setup::new()
        .upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "")
        .upstream("prod_xyz", "http://127.0.0.1:1/stream/prod_xyz", "")
        .auth(&format!("{}\n{KEYS}", jwt(jwt_lines)))
        .server(server)
}

/// Starts a relay whose upstreams never connect.
fn relay_without_upstream(jwt_lines: &str, server: &str) -> Relay {
    setup(jwt_lines, server).start()
}

fn relay_with_upstream(jwt_lines: &str, server: &str) -> (Connector, Link, Relay) {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).auth(&jwt(jwt_lines)).server(server).start();
    let link = connector.stream();
    relay.wait_for_upstream("connected");
    (connector, link, relay)
}

fn open(relay: &Relay, path: &str, authorization: &str) -> Subscriber {
    Subscriber::open(relay.public, path, &[("Authorization", authorization)])
}

/// Returns every part of a response by which a client can distinguish it from others.
fn answer(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let fields = answer.head.fields.iter().filter(|(name, _)| name != "date").cloned().collect();
    (answer.status(), fields, answer.text())
}
