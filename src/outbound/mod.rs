//! Connections that the relay opens: event streams of upstreams, and deliveries to webhooks'
//! endpoints.
//!
//! ```text
//! upstream, cli ─► client ─► event_stream                 HTTP/1.1, one connection for each stream
//! webhook sender ─► egress_guard ─► idle_timeout ─► TCP    public addresses only, unless allowed;
//!                                                          answer_budget bounds received bytes
//! both ─► tls ─► server_verifier                           roots of trust
//! ```
//!
//! May use: no other module.

pub(crate) mod answer_budget;
pub(crate) mod client;
pub(crate) mod egress_guard;
pub(crate) mod event_stream;
pub(crate) mod header_spelling;
mod http_connection;
pub(crate) mod idle_timeout;
pub(crate) mod interim_answers;
pub(crate) mod networks;
mod server_verifier;
pub(crate) mod tls;
pub(crate) mod tls_problem;
