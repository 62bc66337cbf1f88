//! Webhooks: how they are set up, what they deliver, and what becomes of receivers that fail.

mod api;
mod circuit;
mod delivery;
mod durable;
mod faults;
mod heads;
mod shutdown;
