//! Connections that the relay opens: to upstreams and to webhook receivers.
//!
//! `client` opens event streams, `egress_guard` checks each address before it is dialled,
//! `networks` knows the special ones, and `idle_timeout` ends a connection that has gone silent.
//!
//! May use: no other module.

pub(crate) mod client;
pub(crate) mod egress_guard;
pub(crate) mod idle_timeout;
pub(crate) mod networks;
