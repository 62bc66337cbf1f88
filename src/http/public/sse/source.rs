//! Source of a subscription: a request to the public listener, or an operator tail.
//!
//! May use: `admission`, `auth`, `shard`, `timer_wheel`.

use std::{sync::Arc, time::Duration};

use crate::{
    admission::Subscribers,
    auth::{CredentialHolder, CredentialProof, Grant, StreamExpiry},
    http::state::Relay,
    shard::ShardPlacement,
    timer_wheel::TimerWheel,
};

/// Source of a subscription: what differs between the public and the admin listener.
#[derive(Debug)]
pub(crate) struct SubscriptionSource<'a> {
    /// Admission that issues the permit.
    pub(crate) subscribers: &'a Arc<Subscribers>,
    /// Timer of the listener's runtime.
    pub(crate) wheel: &'a Arc<TimerWheel>,
    /// Name of the key, for the list of subscribers.
    pub(crate) key: Arc<str>,
    /// Holder that the subscriber counts for in limits.
    pub(crate) holder: CredentialHolder,
    /// Credential that must stay valid while the stream is open.
    pub(crate) proof: Arc<CredentialProof>,
    /// Age at about which the stream is rotated.
    pub(crate) max_age: Option<Duration>,
    /// End of the stream with its token, if there is one.
    pub(crate) expiry: Option<StreamExpiry>,
    /// Shards that write the stream; with `None`, hyper does.
    pub(crate) shards: Option<&'a Arc<ShardPlacement>>,
    /// The stream is an operator tail: not counted as a subscriber, and ended at once when it
    /// gets a disconnect reason.
    pub(crate) is_operator_tail: bool,
}

impl<'a> SubscriptionSource<'a> {
    /// Returns the source of a request with this grant.
    pub(super) fn public(relay: &'a Relay, grant: &Grant, can_detach: bool) -> Self {
        Self {
            subscribers: &relay.subscribers,
            wheel: &relay.wheel,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            max_age: relay.max_connection_age,
            expiry: grant.stream_expiry(),
            shards: can_detach.then_some(&relay.shards),
            is_operator_tail: false,
        }
    }
}
