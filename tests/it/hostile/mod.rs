//! Hostile clients.

mod http1;
mod http2;
