//! What the file holds of each product as a whole.
//!
//! May use: `event`, `log`'s shared words.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    File, FileError, Sync,
    error::Fault,
    read_id,
    schema::{address, bits, count},
};
use crate::{
    event::ProductId,
    log::{Missing, Span},
};

/// What the file holds of one product.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Kept {
    /// By what the file knows it.
    pub(crate) number: u32,
    /// Place of the newest entry ever written or declared missing, 0 before the first.
    pub(crate) newest: u64,
    /// Retention has removed everything up to this place.
    pub(crate) evicted_through: u64,
    /// Rows: events and gaps.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions and kinds.
    pub(crate) bytes: u64,
    /// The highest epoch of any span there ever was, 0 for none.
    pub(crate) highest_epoch: u64,
    /// By place.
    pub(crate) spans: Vec<Span>,
    /// By their first place.
    pub(crate) missing: Vec<Missing>,
}

impl File {
    /// What the file holds of this product, to which it gives a number if it has none.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub(crate) fn product(&mut self, id: &ProductId) -> Result<Kept, FileError> {
        let known = self.commit(Sync::Normal, |connection| match read_product(connection, id)? {
            Some(kept) => Ok(kept),
            None => {
                insert_product(connection, id)?;
                read_product(connection, id)?.ok_or_else(|| Fault::found("a product's row is gone"))
            }
        });
        known.map_err(|fault| fault.at(&self.path, "look up a product in"))
    }

    /// By which number the file knows a product, if it does.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn number_of(&self, product: &ProductId) -> Result<Option<u32>, FileError> {
        number_of(&self.connection, product).map_err(|fault| fault.at(&self.path, "look up a product in"))
    }
}

/// By which number the file knows a product, if it does.
///
/// # Errors
///
/// When the file cannot be read.
pub(super) fn number_of(connection: &Connection, product: &ProductId) -> Result<Option<u32>, Fault> {
    let mut statement = connection.prepare_cached("SELECT number FROM products WHERE id = ?1")?;
    Ok(statement.query_row([product.as_str()], |row| row.get(0)).optional()?)
}

/// Gives a product the next number.
///
/// # Errors
///
/// When the file cannot be written.
pub(super) fn insert_product(connection: &Connection, id: &ProductId) -> Result<(), Fault> {
    let number: i64 =
        connection.query_row("SELECT coalesce(max(number), 0) + 1 FROM products", [], |row| row.get(0))?;
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    address(number, 0)?;
    connection.execute("INSERT INTO products VALUES (?1, ?2, 0, 0, 0, 0, 0)", params![number, id.as_str()])?;
    Ok(())
}

fn read_product(connection: &Connection, id: &ProductId) -> Result<Option<Kept>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, newest, evicted_through, events, bytes, highest_epoch FROM products WHERE id = ?1",
    )?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let number = row.get(0)?;
    let spans = "SELECT place, epoch, sequence, suffix FROM spans WHERE product = ?1 ORDER BY place";
    let missing = "SELECT first, last FROM missing WHERE product = ?1 ORDER BY first";
    Ok(Some(Kept {
        number,
        newest: count(row, 1)?,
        evicted_through: count(row, 2)?,
        events: count(row, 3)?,
        bytes: count(row, 4)?,
        highest_epoch: bits(row, 5)?,
        spans: read_all(connection, spans, number, |row| Ok(Span { place: count(row, 0)?, id: read_id(row, 1)? }))?,
        missing: read_all(connection, missing, number, |row| {
            Ok(Missing { first: count(row, 0)?, last: count(row, 1)? })
        })?,
    }))
}

fn read_all<T>(
    connection: &Connection,
    query: &str,
    number: u32,
    read: impl FnMut(&Row<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    connection.prepare_cached(query)?.query_and_then([number], read)?.collect()
}
