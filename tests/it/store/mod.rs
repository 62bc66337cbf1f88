//! The log on disk: durability, damage, full disks, erasure.

mod clock;
mod damage;
mod disk;
mod durable;
mod erasure;
mod lost_ids;
mod outside_reader;
mod rows;
mod turns;
