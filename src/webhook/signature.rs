//! The headers that prove where a delivery comes from: the connector's, and those of Standard Webhooks.
//!
//! May use: `config` (secrets).
