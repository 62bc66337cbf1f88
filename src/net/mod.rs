//! Listening sockets and their connections: accept loop, HTTP/1.1 and HTTP/2, TLS, deadlines on
//! every wait.
//!
//! In: connections. Out: requests to a router, each with a [`Connection`] among its extensions. A
//! peer that sends no request in time, or that takes no bytes in time, is cut off.
//!
//! ```text
//!                  first byte         handshake              request
//! TLS     socket ─► peek ─► DeadlineSocket ─► rustls ─► ALPN ─► hyper, HTTP/1.1 or 2 ─► detach
//! no TLS  socket ─► peek, preface? ─► DeadlineSocket ─────────► hyper, HTTP/1.1 or 2 ─► detach
//!                  └ head_timeout ┘└───── head_timeout ──────┘└ head_timeout ┘
//! ```
//!
//! `accept` is the loop, `displacement` makes room for newcomers by the `activity` of connections,
//! `deadline_socket` and `stream_deadline` hold the deadlines of a socket and of one HTTP/2 stream,
//! `detach` and `detached` take a connection out of hyper, `write_coalescing` gathers what h2
//! writes, `refused_head` gives hyper's own refusals a body, `request_framing` looks at the framing
//! of requests, `request_body` and `lingering_close` see to it that an answer arrives although its
//! request was not read to the end, `shutdown` ends the connections.
//!
//! May use: no other module.

mod accept;
mod activity;
mod connection;
mod connection_limit;
mod deadline_socket;
mod detach;
mod detached;
mod displacement;
mod forced_close;
mod handshake_turns;
mod http1;
mod http2;
mod lingering_close;
mod listener;
mod open_streams;
mod refused_head;
mod request_body;
mod request_framing;
mod routes;
mod shutdown;
mod stream_deadline;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod write_coalescing;

pub(crate) use self::accept::serve;
pub(crate) use self::connection::{Connection, ShedConnection, UpgradedConnection};
pub(crate) use self::connection_limit::{AcceptedSocket, ConnectionPermit};
pub(crate) use self::detached::{DetachedConnection, Written};
pub(crate) use self::displacement::{ConnectionShares, Exemption};
pub(crate) use self::forced_close::ForcedClose;
pub(crate) use self::listener::{BindError, Listener, local_address};
pub(crate) use self::request_framing::AmbiguousFraming;
pub(crate) use self::routes::{ConnectionSettings, Routes};
pub(crate) use self::stream_deadline::Http2StreamState;
pub(crate) use self::tls::ReloadableTls;
#[cfg(test)]
pub(crate) use self::tls::TlsSession;
