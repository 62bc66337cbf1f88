//! What operators see and do: health, metrics, status, who is connected.

mod status;
mod subscribers;
