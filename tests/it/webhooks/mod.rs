//! Webhooks: registration, delivery, failing receivers, durability.

mod api;
mod circuit;
mod delivery;
mod durable;
mod faults;
mod heads;
mod idle;
mod shutdown;
