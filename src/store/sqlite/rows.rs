//! Row codec: converts columns of the store's tables to values, and values to columns.
//!
//! May use: `event`, `webhook_delivery`.

use std::collections::BTreeSet;

use rusqlite::Row;

use super::error::FileFault;
use crate::{
    event::{EventId, Kind, Only, Scope, SessionId, UserId},
    webhook_delivery::{Attempt, Delivery},
};

/// Reads a column that holds a count, a position or a time.
///
/// # Errors
///
/// When the column is no integer or negative.
pub(crate) fn read_unsigned(row: &Row<'_>, column: usize) -> Result<u64, FileFault> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| FileFault::damage("a count is negative"))
}

/// Reads a column that holds an epoch or a sequence: a `u64`, bit for bit.
///
/// # Errors
///
/// When the column is no integer.
pub(super) fn read_bits(row: &Row<'_>, column: usize) -> Result<u64, FileFault> {
    row.get::<_, i64>(column).map(i64::cast_unsigned).map_err(FileFault::from)
}

/// Checks the column that says whether a row fits its checksum.
///
/// # Errors
///
/// `Damage` that names the row, when it does not.
pub(super) fn require_whole(row: &Row<'_>, column: usize, what: &str) -> Result<(), FileFault> {
    if row.get(column)? {
        Ok(())
    } else {
        Err(FileFault::Damage(format!("{what} does not fit its checksum").into()))
    }
}

/// Returns a number as it is stored, or the largest that can be stored.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Reads an id from three columns, beginning with `column`.
///
/// # Errors
///
/// When the columns hold no id.
pub(crate) fn read_event_id(row: &Row<'_>, column: usize) -> Result<EventId, FileFault> {
    Ok(EventId {
        epoch: read_bits(row, column)?,
        sequence: read_bits(row, column + 1)?,
        suffix: row.get(column + 2)?,
    })
}

/// Reads a delivery from a row's first eight columns: position, three of the id, kind, session,
/// time, attempts.
///
/// # Errors
///
/// When a column holds a value that this crate never writes.
pub(super) fn read_delivery(row: &Row<'_>) -> Result<Delivery, FileFault> {
    let session = row.get_ref(5)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    Ok(Delivery {
        position: read_unsigned(row, 0)?,
        event_id: read_event_id(row, 1)?,
        kind: Kind::new(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?),
        session: session
            .map(SessionId::new)
            .transpose()
            .map_err(|_| FileFault::damage("a session's name is invalid"))?,
        created_at: read_unsigned(row, 6)?,
        attempts: serde_json::from_str(row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(|_| FileFault::damage("a delivery's attempts are invalid"))?,
    })
}

/// Returns attempts as they are stored.
///
/// # Errors
///
/// When they cannot be serialized, which no value of the type is known to cause.
pub(super) fn write_attempts(attempts: &[Attempt]) -> Result<String, FileFault> {
    serde_json::to_string(attempts).map_err(|_| FileFault::Refused("attempts cannot be serialized"))
}

/// Scope as it is stored, as JSON. `None` is no limit.
#[derive(serde::Deserialize, serde::Serialize)]
struct ScopeText {
    sessions: Option<BTreeSet<String>>,
    /// Absent in a file that was written before webhooks could be limited to users.
    #[serde(default)]
    users: Option<BTreeSet<String>>,
    kinds: Option<BTreeSet<String>>,
}

/// Returns a scope as it is stored.
///
/// # Errors
///
/// When it cannot be serialized, which no value of the type is known to cause.
pub(super) fn write_scope(scope: &Scope) -> Result<String, FileFault> {
    let text = ScopeText {
        sessions: limit_as_texts(&scope.sessions, SessionId::as_str),
        users: limit_as_texts(&scope.users, UserId::as_str),
        kinds: limit_as_texts(&scope.kinds, Kind::as_str),
    };
    serde_json::to_string(&text).map_err(|_| FileFault::Refused("a scope cannot be serialized"))
}

fn limit_as_texts<T>(only: &Only<T>, text: impl Fn(&T) -> &str) -> Option<BTreeSet<String>> {
    match only {
        Only::Everything => None,
        Only::These(these) => Some(these.iter().map(|it| text(it).to_owned()).collect()),
    }
}

/// Reads a scope from the text that [`write_scope`] returned.
///
/// # Errors
///
/// When the text is no such scope.
pub(super) fn read_scope(text: &str) -> Result<Scope, FileFault> {
    let text: ScopeText = serde_json::from_str(text)
        .map_err(|_| FileFault::damage("a webhook's scope is invalid"))?;
    let sessions = text
        .sessions
        .map(|these| these.iter().map(|it| SessionId::new(it)).collect::<Result<_, _>>());
    let sessions =
        sessions.transpose().map_err(|_| FileFault::damage("a session's name is invalid"))?;
    let users =
        text.users.map(|these| these.iter().map(|it| UserId::new(it)).collect::<Result<_, _>>());
    let users = users.transpose().map_err(|_| FileFault::damage("a user's name is invalid"))?;
    let kinds = text.kinds.map(|these| these.iter().map(|it| Kind::new(it)).collect());
    Ok(Scope {
        sessions: sessions.map_or(Only::Everything, Only::These),
        users: users.map_or(Only::Everything, Only::These),
        kinds: kinds.map_or(Only::Everything, Only::These),
    })
}
