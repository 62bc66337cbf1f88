//! The commands of the binary.

mod commands;
mod simulator;
