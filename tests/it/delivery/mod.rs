//! Delivery of events to the subscribers that requested them.

mod detach;
mod filters;
mod limits;
mod publish;
mod shards;
mod slow;
mod stream;
mod unread;
