//! Resuming, and the notices of a loss.

mod gaps;
mod ids;
