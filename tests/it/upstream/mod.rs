//! The connection to the connector, and what comes by it.

mod connection;
mod decoding;
mod redirects;
mod registration;
mod rejected;
