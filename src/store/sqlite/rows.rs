//! Columns of the store's tables as values, and values as columns.
//!
//! May use: `event`, `webhook_delivery`.

use std::collections::BTreeSet;

use rusqlite::Row;

use super::error::FileFault;
use crate::{
    event::{EventId, Kind, Only, Scope, SessionId},
    webhook_delivery::{Attempt, Delivery},
};

/// A column that holds a count, a place or a time.
///
/// # Errors
///
/// When it is none or negative.
pub(crate) fn read_unsigned(row: &Row<'_>, column: usize) -> Result<u64, FileFault> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| FileFault::damage("a count is negative"))
}

/// A column that holds an epoch or a sequence.
///
/// # Errors
///
/// When it holds no integer.
pub(super) fn read_bits(row: &Row<'_>, column: usize) -> Result<u64, FileFault> {
    row.get::<_, i64>(column).map(i64::cast_unsigned).map_err(FileFault::from)
}

/// A number as it is stored, or the largest that can be.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The id that stands in three columns from `column` on.
///
/// # Errors
///
/// When it cannot be one that we wrote.
pub(crate) fn read_event_id(row: &Row<'_>, column: usize) -> Result<EventId, FileFault> {
    Ok(EventId {
        epoch: read_bits(row, column)?,
        sequence: read_bits(row, column + 1)?,
        suffix: row.get(column + 2)?,
    })
}

/// The delivery that stands in a row's first eight columns: place, three of the id, kind, session,
/// time, attempts.
pub(super) fn read_delivery(row: &Row<'_>) -> Result<Delivery, FileFault> {
    let session = row.get_ref(5)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    Ok(Delivery {
        position: read_unsigned(row, 0)?,
        event_id: read_event_id(row, 1)?,
        kind: Kind::new(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?),
        session: session
            .map(SessionId::new)
            .transpose()
            .map_err(|_| FileFault::damage("a session's name is none"))?,
        created_at: read_unsigned(row, 6)?,
        attempts: serde_json::from_str(row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(|_| FileFault::damage("a delivery's attempts are none"))?,
    })
}

/// Attempts as they are stored.
///
/// # Errors
///
/// Never, as far as anybody knows.
pub(super) fn write_attempts(attempts: &[Attempt]) -> Result<String, FileFault> {
    serde_json::to_string(attempts).map_err(|_| FileFault::Refused("attempts have no text"))
}

/// A scope as it is stored. None is no limit.
#[derive(serde::Deserialize, serde::Serialize)]
struct ScopeText {
    sessions: Option<BTreeSet<String>>,
    kinds: Option<BTreeSet<String>>,
}

pub(super) fn write_scope(scope: &Scope) -> Result<String, FileFault> {
    let text = ScopeText {
        sessions: limit_as_texts(&scope.sessions, SessionId::as_str),
        kinds: limit_as_texts(&scope.kinds, Kind::as_str),
    };
    serde_json::to_string(&text).map_err(|_| FileFault::Refused("a scope has no text"))
}

fn limit_as_texts<T>(only: &Only<T>, text: impl Fn(&T) -> &str) -> Option<BTreeSet<String>> {
    match only {
        Only::Everything => None,
        Only::These(these) => Some(these.iter().map(|it| text(it).to_owned()).collect()),
    }
}

/// Reads what [`write_scope`] has written.
///
/// # Errors
///
/// When it has not.
pub(super) fn read_scope(text: &str) -> Result<Scope, FileFault> {
    let text: ScopeText =
        serde_json::from_str(text).map_err(|_| FileFault::damage("a webhook's scope is none"))?;
    let sessions = text
        .sessions
        .map(|these| these.iter().map(|it| SessionId::new(it)).collect::<Result<_, _>>());
    let sessions =
        sessions.transpose().map_err(|_| FileFault::damage("a session's name is none"))?;
    let kinds = text.kinds.map(|these| these.iter().map(|it| Kind::new(it)).collect());
    Ok(Scope {
        sessions: sessions.map_or(Only::Everything, Only::These),
        kinds: kinds.map_or(Only::Everything, Only::These),
    })
}
