//! Delivery of events to the subscribers that requested them.

mod detach;
mod limits;
mod publish;
mod shards;
mod slow;
mod stream;
mod unread;
