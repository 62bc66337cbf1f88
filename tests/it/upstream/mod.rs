//! The connection to the connector, and the data that it sends.

mod connection;
mod decoding;
mod redirects;
mod registration;
mod rejected;
