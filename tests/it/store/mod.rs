//! The log on disk: durability, damage, full disks, erasure.

mod clock;
mod damage;
mod disk;
mod displaced;
mod durable;
mod erasure;
mod lost_ids;
mod missing_rows;
mod outside_reader;
mod releases;
mod rows;
mod turns;
