//! The file's row per product: number, counters and ranges.
//!
//! May use: `event`, `log`.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    FileError, StoreFile, SyncMode,
    error::FileFault,
    rows::{read_bits, read_event_id, read_unsigned, require_whole},
    schema::entry_key,
};
use crate::{
    event::ProductId,
    log::{EmptyEpoch, Hole, IdSpan, PersistedLog},
};

impl StoreFile {
    /// Returns the persisted log of this product. A product without a row gets one, with a number.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub(crate) fn find_or_add_product(
        &mut self,
        id: &ProductId,
    ) -> Result<PersistedLog, FileError> {
        let persisted = self.in_transaction(SyncMode::Normal, |connection| {
            match read_product(connection, id)? {
                Some(persisted) => Ok(persisted),
                None => {
                    insert_product(connection, id)?;
                    read_product(connection, id)?
                        .ok_or_else(|| FileFault::damage("a product's row is missing"))
                }
            }
        });
        persisted.map_err(|fault| fault.at(&self.path, "look up a product in"))
    }

    /// Returns the number of a product, if the file has the product.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn product_number(&self, product: &ProductId) -> Result<Option<u32>, FileError> {
        product_number(&self.connection, product)
            .map_err(|fault| fault.at(&self.path, "look up a product in"))
    }
}

/// Returns the number of a product, if the file has the product.
///
/// # Errors
///
/// When the file cannot be read.
pub(super) fn product_number(
    connection: &Connection,
    product: &ProductId,
) -> Result<Option<u32>, FileFault> {
    let mut statement = connection.prepare_cached("SELECT number FROM products WHERE id = ?1")?;
    Ok(statement.query_row([product.as_str()], |row| row.get(0)).optional()?)
}

/// Inserts a product under the next number.
///
/// # Errors
///
/// When the file cannot be written.
pub(super) fn insert_product(connection: &Connection, id: &ProductId) -> Result<(), FileFault> {
    let number: i64 =
        connection
            .query_row("SELECT coalesce(max(number), 0) + 1 FROM products", [], |row| row.get(0))?;
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    entry_key(number, 0)?;
    connection.execute(
        "INSERT INTO products VALUES (?1, ?2, 0, 0, 0, 0, 0, row_sum(?1, ?2, 0, 0, 0, 0, 0))",
        params![number, id.as_str()],
    )?;
    Ok(())
}

fn read_product(
    connection: &Connection,
    id: &ProductId,
) -> Result<Option<PersistedLog>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, newest, evicted_through, events, bytes, highest_epoch, \
         sum IS row_sum(number, id, newest, evicted_through, events, bytes, highest_epoch) \
         FROM products WHERE id = ?1",
    )?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    require_whole(row, 6, "a product's row")?;
    let product_number = row.get(0)?;
    let select_spans = "SELECT place, epoch, sequence, suffix, sum IS row_sum(product, place, epoch, sequence, suffix) \
                        FROM spans WHERE product = ?1 ORDER BY place";
    let select_holes = "SELECT first, last, sum IS row_sum(product, first, last) \
                        FROM missing WHERE product = ?1 ORDER BY first";
    let select_epochs = "SELECT epoch, place, sum IS row_sum(product, epoch, place) \
                         FROM empty_epochs WHERE product = ?1 ORDER BY epoch";
    Ok(Some(PersistedLog {
        product_number,
        newest: read_unsigned(row, 1)?,
        evicted_through: read_unsigned(row, 2)?,
        events: read_unsigned(row, 3)?,
        bytes: read_unsigned(row, 4)?,
        highest_epoch: read_bits(row, 5)?,
        spans: read_all(connection, select_spans, product_number, |row| {
            require_whole(row, 4, "a span's row")?;
            Ok(IdSpan { first_position: read_unsigned(row, 0)?, first_id: read_event_id(row, 1)? })
        })?,
        holes: read_all(connection, select_holes, product_number, |row| {
            require_whole(row, 2, "a hole's row")?;
            Ok(Hole { first: read_unsigned(row, 0)?, last: read_unsigned(row, 1)? })
        })?,
        empty_epochs: read_all(connection, select_epochs, product_number, |row| {
            require_whole(row, 2, "the row of an epoch without entries")?;
            Ok(EmptyEpoch { epoch: read_bits(row, 0)?, after: read_unsigned(row, 1)? })
        })?,
    }))
}

fn read_all<T>(
    connection: &Connection,
    query: &str,
    product_number: u32,
    read: impl FnMut(&Row<'_>) -> Result<T, FileFault>,
) -> Result<Vec<T>, FileFault> {
    connection.prepare_cached(query)?.query_and_then([product_number], read)?.collect()
}
