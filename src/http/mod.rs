//! HTTP: the public listener's routes, and the admin and probe listeners'.
//!
//! In: requests. Out: subscriptions, pages, problems (RFC 9457). Events reach this module through
//! `feed`; it does not know their upstream.
//!
//! ```text
//! public/   router, credentials, requests; SSE, WebSocket, pages, publishing
//! admin/    admin API, operator tails, console
//! state     what public routes share: Relay, Product
//! problem   problem details      memory_quota   shares per address      host_guard   Host checks
//! query     names in a query     methods        lists of methods      request_head Host, framing
//! refusals  counted, logged once a minute       bounded_body   bodies up to a limit
//! ```
//!
//! May use: no other module.

pub(crate) mod admin;
mod bounded_body;
pub(crate) mod host_guard;
pub(crate) mod memory_quota;
mod methods;
pub(crate) mod problem;
pub(crate) mod public;
pub(crate) mod query;
pub(crate) mod refusals;
mod request_head;
mod state;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use self::public::{
    request::{MAX_FILTER_VALUES, SubscriptionRequest, accepts_event_stream},
    ws::message::{encode_subscribed, parse_subscribe},
};
pub(crate) use self::state::{Product, Relay};
