//! The commands of the binary.

mod commands;
mod output;
mod simulator;
