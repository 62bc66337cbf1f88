//! Rows of versions before 4, whose users stand in their payloads alone: reading them for the index
//! by user, and the SQL expression of a row's user.
//!
//! The rows stay as they are until retention deletes them. Writing them anew would make each
//! longer, and so split every page of the table.
//!
//! May use: `envelope`, `event`.

use rusqlite::{
    Connection, OptionalExtension,
    functions::{Context, FunctionFlags},
    params,
    types::ValueRef,
};

use super::error::FileFault;
use crate::{envelope::user_in, event::UserId};

/// The user of a row of `entries`, null for none. The payload is read only in a row of a version
/// before 4, and counts only if it fits its sum.
macro_rules! entry_user {
    () => {
        "iif(gap IS NULL, nullif(ifnull(after_or_user, \
             iif(payload_sum IS row_sum(entry, payload), payload_user(payload), '')), ''), NULL)"
    };
}

pub(crate) use entry_user;

/// Makes `payload_user` known to a connection: the user that a payload names.
///
/// # Errors
///
/// When SQLite refuses it.
pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    // Direct: a schema of another author must not call it.
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("payload_user", 1, flags, |values| Ok(payload_user(values)))
}

fn payload_user(values: &Context<'_>) -> Option<String> {
    let user = match values.get_raw(0) {
        ValueRef::Blob(payload) | ValueRef::Text(payload) => user_in(payload),
        _ => None,
    };
    user.as_ref().map(UserId::as_str).map(str::to_owned)
}

/// Returns whether there are rows whose users are still to be read.
///
/// # Errors
///
/// When the schema cannot be read.
pub(super) fn exist(connection: &Connection) -> Result<bool, FileFault> {
    let query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'unread_users'";
    Ok(connection.prepare(query)?.exists([])?)
}

/// Adds the users of the next rows to the index, in the order of the rows. Returns whether there
/// are more rows; the mark is dropped behind the last.
///
/// # Errors
///
/// When the rows cannot be read, or the file cannot be written.
pub(super) fn read_step(connection: &Connection) -> Result<bool, FileFault> {
    // Without a row the mark begins anew: a user that is in the index already is not added again.
    let through: Option<i64> = connection
        .query_row("SELECT through FROM unread_users", [], |row| row.get(0))
        .optional()?;
    let mut lengths = connection.prepare_cached(
        "SELECT entry, ifnull(octet_length(payload), 0) FROM entries WHERE entry > ?1 ORDER BY entry LIMIT ?2",
    )?;
    let first = through.unwrap_or(0);
    let mut rows = lengths.query(params![first, READ_STEP_ROWS])?;
    let (mut last, mut count, mut bytes) = (first, 0, 0);
    while let Some(row) = rows.next()?
        && bytes < READ_STEP_BYTES
    {
        last = row.get(0)?;
        bytes += row.get::<_, i64>(1)?;
        count += 1;
    }
    drop(rows);
    // Rows that come from now on have their users in their own column.
    let is_last = count < READ_STEP_ROWS && bytes < READ_STEP_BYTES;
    let mut insert = connection.prepare_cached(concat!(
        "INSERT OR IGNORE INTO user_index SELECT user, entry FROM ( \
             SELECT ",
        entry_user!(),
        " AS user, entry FROM entries WHERE entry > ?1 AND entry <= ?2) \
         WHERE user IS NOT NULL ORDER BY user, entry"
    ))?;
    insert.execute([first, last])?;
    if is_last {
        drop_mark(connection)?;
    } else {
        connection.execute("DELETE FROM unread_users", [])?;
        connection.execute("INSERT INTO unread_users VALUES (?1)", [last])?;
    }
    Ok(!is_last)
}

/// Drops the mark at once if there are no rows, as in a new file.
///
/// # Errors
///
/// When the file cannot be read or written.
pub(super) fn drop_if_empty(connection: &Connection) -> Result<(), FileFault> {
    match connection.prepare("SELECT 1 FROM entries LIMIT 1")?.exists([])? {
        true => Ok(()),
        false => drop_mark(connection),
    }
}

/// Drops the mark.
///
/// # Errors
///
/// When the file cannot be written.
pub(super) fn drop_mark(connection: &Connection) -> Result<(), FileFault> {
    Ok(connection.execute_batch("DROP TABLE IF EXISTS unread_users")?)
}

/// Rows that one step reads, at most.
const READ_STEP_ROWS: i64 = 2048;

/// Bytes of payloads after which a step ends: some ten milliseconds for reading, summing and
/// parsing them.
const READ_STEP_BYTES: i64 = 4 << 20;
