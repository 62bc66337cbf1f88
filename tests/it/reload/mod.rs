//! Configuration changes at run time.

mod configuration;
mod storm;
mod upstreams;
mod webhooks;
