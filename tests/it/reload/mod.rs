//! Another configuration while the relay runs.

mod configuration;
mod storm;
mod upstreams;
mod webhooks;
