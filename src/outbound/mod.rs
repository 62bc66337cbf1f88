//! Connections that the relay opens: event streams from upstreams, and webhook deliveries.

pub(crate) mod client;
pub(crate) mod egress_guard;
pub(crate) mod event_stream;
pub(crate) mod idle_timeout;
pub(crate) mod networks;
pub(crate) mod tls;
