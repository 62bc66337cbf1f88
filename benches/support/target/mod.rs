//! What is measured: a process of its own, told where its events come from, asked where it listens.
//!
//! One file for each: how it is configured and started, and how events come to it. Who does not
//! fetch them from an upstream has them published.

mod home;
pub(crate) mod kind;
mod nchan;
mod pushpin;
mod relay;
pub(crate) mod running;
mod spawn;
pub(crate) mod start;
