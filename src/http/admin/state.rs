//! State that the admin routes share, and how they write times.
//!
//! May use: `auth`, `config`, `event`, `http`, `rejected`, `timer_wheel`, `upstream`, `webhook`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{
    auth::ListenerKey,
    config::format_duration,
    event::ProductId,
    http::{Relay, admission::Subscribers, problem::Problem},
    rejected::RejectedFrames,
    timer_wheel::TimerWheel,
    upstream::status::UpstreamStatus,
    webhook::{WebhookError, WebhookSummary, Webhooks},
};

/// What the admin routes share.
#[derive(Clone, Debug)]
pub(crate) struct AdminState {
    /// The public side.
    pub(crate) relay: Arc<Relay>,
    /// What the upstreams say of themselves.
    pub(crate) upstreams: Vec<(ProductId, Arc<UpstreamStatus>)>,
    /// The key of the API.
    pub(crate) key: ListenerKey,
    /// Operators who look on.
    pub(crate) operator_tails: Arc<Subscribers>,
    /// The timer of the admin side's connections.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Who is pushed to.
    pub(crate) webhooks: Arc<Webhooks>,
    /// What the upstreams sent that could not be understood.
    pub(crate) rejected: Arc<RejectedFrames>,
    /// Which products were registered for streaming.
    pub(crate) stream_registrations: Arc<StreamRegistrations>,
    /// When the relay was started.
    pub(crate) started: SystemTime,
}

/// The products that were registered for streaming. There is nothing else to remember of that, and
/// a restart forgets it: the call is then answered by 201 once more.
#[derive(Debug, Default)]
pub(crate) struct StreamRegistrations(Mutex<BTreeSet<ProductId>>);

impl StreamRegistrations {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeSet<ProductId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One webhook.
///
/// # Errors
///
/// 404.
pub(super) fn find_webhook(admin: &AdminState, id: &str) -> Result<WebhookSummary, Problem> {
    admin.webhooks.get(id).ok_or_else(|| WebhookError::Unknown.into())
}

/// RFC 3339 in UTC.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// The same of Unix milliseconds.
pub(super) fn rfc3339_from_unix(milliseconds: u64) -> String {
    rfc3339(
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.min(MAX_RFC3339_UNIX_MILLIS)),
    )
}

/// As durations stand in the configuration, to the millisecond.
pub(super) fn format_to_millis(duration: Duration) -> String {
    format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// The last millisecond of the year 9999: later ones cannot be written.
const MAX_RFC3339_UNIX_MILLIS: u64 = 253_402_300_799_999;
