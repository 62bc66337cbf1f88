//! Hostile clients, and hostile peers of the connections that the relay opens.

mod framing;
mod http1;
mod http2;
mod peers;
mod receivers;
mod tls;
mod upstreams;
