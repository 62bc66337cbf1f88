//! Which addresses webhooks may reach, and the connector that dials no others.
//!
//! May use: `config` (networks).
