//! From an event that came in to the subscribers that asked for it.

mod detach;
mod limits;
mod publish;
mod shards;
mod slow;
mod stream;
mod unread;
