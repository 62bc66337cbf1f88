//! One event's row, for the writer: its columns, as far as they fit their checksums.
//!
//! May use: `event`.

use bytes::Bytes;
use rusqlite::{Connection, Row};

use super::{
    checksum::entry_sum,
    error::FileFault,
    rows::{read_event_id, read_unsigned},
};
use crate::event::{EventId, Kind, SessionId};

/// Row of an event.
#[derive(Debug)]
pub(super) struct EntryRow {
    /// All columns but the payload; `None` if they do not fit their checksum.
    pub(super) head: Option<EntryHead>,
    /// Payload; `None` if it does not fit its checksum.
    pub(super) payload: Option<Bytes>,
}

/// Columns of an event's row but for its payload.
#[derive(Debug)]
pub(super) struct EntryHead {
    /// Id of the event.
    pub(super) id: EventId,
    /// Type of the event.
    pub(super) kind: Kind,
    /// Session of the event, if any.
    pub(super) session: Option<SessionId>,
    /// Time since which the event is kept, in Unix milliseconds.
    pub(super) kept_at: u64,
}

impl EntryRow {
    /// Returns the row of the event with this key. A gap is no event.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn find(connection: &Connection, key: i64) -> Result<Option<Self>, FileFault> {
        let mut statement = connection.prepare_cached(concat!(
            "SELECT epoch, sequence, suffix, kind, session, kept_at, head_sum IS ",
            entry_sum!(),
            ", payload_sum IS row_sum(entry, payload), payload \
             FROM entries WHERE entry = ?1 AND payload IS NOT NULL"
        ))?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(Self::read).transpose()
    }

    fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        let head = if row.get(6)? { Some(EntryHead::read(row)?) } else { None };
        let payload = if row.get(7)? {
            let bytes = row.get_ref(8)?.as_blob().map_err(rusqlite::Error::from)?;
            Some(Bytes::copy_from_slice(bytes))
        } else {
            None
        };
        Ok(Self { head, payload })
    }
}

impl EntryHead {
    fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        let session = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        Ok(Self {
            id: read_event_id(row, 0)?,
            kind: Kind::new(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?),
            session: session
                .map(SessionId::new)
                .transpose()
                .map_err(|_| FileFault::damage("a session's name is invalid"))?,
            kept_at: read_unsigned(row, 5)?,
        })
    }
}
