//! State that the admin routes share, and the texts of times in their answers.
//!
//! May use: `admission`, `auth`, `config`, `event`, `rejected`, `upstream`, `webhook`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::{
    admission::Subscribers,
    auth::ListenerKey,
    config::format_duration,
    event::ProductId,
    http::{Relay, problem::Problem},
    rejected::RejectedFrames,
    upstream::status::UpstreamStatus,
    webhook::{WebhookError, WebhookSummary, Webhooks},
};

/// State of the admin listener under one configuration. A reload builds another one for later
/// requests, as with [`Relay`].
#[derive(Clone, Debug)]
pub(crate) struct AdminState {
    /// State of the public side.
    pub(crate) relay: Arc<Relay>,
    /// Status of each upstream connection.
    pub(crate) upstreams: Vec<(ProductId, Arc<UpstreamStatus>)>,
    /// Key that the API demands.
    pub(crate) key: ListenerKey,
    /// Admission of operator tails, apart from the subscribers.
    pub(crate) operator_tails: Arc<Subscribers>,
    /// Registry of the webhooks.
    pub(crate) webhooks: Arc<Webhooks>,
    /// Latest upstream frames that were rejected.
    pub(crate) rejected: Arc<RejectedFrames>,
    /// Products that were registered for streaming.
    pub(crate) stream_registrations: Arc<StreamRegistrations>,
    /// Time at which the relay was started.
    pub(crate) started: SystemTime,
    /// Time from which on the replay of an upstream relay does not keep this relay from being
    /// ready.
    pub(crate) replay_grace_end: Instant,
}

/// Products that were registered for streaming, which a second registration answers by 409. Nothing
/// else depends on them, so they are in memory only: after a restart the call is answered by 201
/// once more.
#[derive(Debug, Default)]
pub(crate) struct StreamRegistrations(Mutex<BTreeSet<ProductId>>);

impl StreamRegistrations {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeSet<ProductId>> {
        self.0.lock()
    }
}

/// Returns the webhook of this id.
///
/// # Errors
///
/// 404 if there is none.
pub(super) fn find_webhook(admin: &AdminState, id: &str) -> Result<WebhookSummary, Problem> {
    admin.webhooks.get(id).ok_or_else(|| WebhookError::Unknown.into())
}

/// Formats a time as RFC 3339 in UTC, to the millisecond.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Formats Unix milliseconds as RFC 3339 in UTC.
pub(super) fn rfc3339_from_unix(milliseconds: u64) -> String {
    rfc3339(
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.min(MAX_RFC3339_UNIX_MILLIS)),
    )
}

/// Formats a duration as the configuration writes it, to the millisecond.
pub(super) fn format_to_millis(duration: Duration) -> String {
    format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// Time after the start for which the replay of an upstream relay keeps this relay from being
/// ready. Enough for the replay of a log of usual size. A relay that never ends its replay must not
/// keep the other products from their subscribers.
pub(crate) const REPLAY_GRACE: Duration = Duration::from_secs(30);

/// Last millisecond of the year 9999. RFC 3339 has four digits for the year, and `humantime` fails
/// to format later times.
const MAX_RFC3339_UNIX_MILLIS: u64 = 253_402_300_799_999;
