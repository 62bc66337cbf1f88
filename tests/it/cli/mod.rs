//! The commands of the binary.

mod commands;
mod families;
mod output;
mod simulator;
