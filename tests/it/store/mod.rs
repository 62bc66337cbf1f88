//! The log on disk: durability, damage, full disks, erasure.

mod damage;
mod disk;
mod durable;
mod erasure;
mod turns;
