//! The index of a shard's subscribers, between the fan-out and their subscriptions: step by step,
//! and against a model.

mod harness;
mod queue;
mod schedules;
