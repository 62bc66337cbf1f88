//! The public side: subscribers, and what all of its routes share.
//!
//! In: requests. Out: views of the log. Knows nothing of where events come from.
//!
//! May use: `auth`, `config`, `delivery`, `envelope`, `event`, `fanout`, `log`, `metrics`, `net`, `rejected`, `sse`, `status`, `webhook`,
//! `wheel`.

pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod host_guard;
mod memory_quota;
pub(crate) mod problem;
pub(crate) mod public;
mod state;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use self::public::{
    request::{MAX_FILTER_VALUES, SubscriptionRequest, accepts_event_stream},
    ws::message::{encode_subscribed, parse_subscribe},
};
pub(crate) use self::state::{Product, Relay};
