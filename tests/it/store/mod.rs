//! The log on disk: what outlives a process, what damage and a full disk do, what is erased.

mod damage;
mod disk;
mod durable;
mod erasure;
