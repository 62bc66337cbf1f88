//! Coming back, and what is told of a loss.

mod gaps;
mod ids;
