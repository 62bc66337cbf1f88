//! The admin listener: health, metrics, status, subscribers.

mod status;
mod subscribers;
