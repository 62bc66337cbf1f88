//! Bytes that no honest client sends.

mod http1;
mod http2;
