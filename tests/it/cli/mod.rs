//! The commands of the binary.

mod commands;
mod families;
mod simulator;
