//! Damage between rows: small tables that SQLite finds damaged, and rows that belong to no other.
//!
//! A row has a checksum and cannot tell of another row that is gone. So tables whose rows depend on
//! one another are looked at together when the file is opened; what grows with the events is
//! checked beside the work, see `reader`.
//!
//! May use: no other module.

use rusqlite::{Connection, params};

use super::{
    error::FileFault,
    rows::read_unsigned,
    schema::{MAX_POSITION, entry_key, position_of},
};

/// Checks the tables that tell what the others hold: their structure, and that no row belongs to a
/// product or a webhook that is gone. Makes their indices anew if only those are damaged.
///
/// # Errors
///
/// `Damage` with the finding; others when the file cannot be read.
pub(super) fn require_consistent(connection: &Connection) -> Result<(), FileFault> {
    for table in SMALL_TABLES {
        if let Some(finding) = first_finding(connection, table)? {
            if !finding.contains("index") {
                return Err(FileFault::Damage(format!("its table {table}: {finding}").into()));
            }
            connection.execute_batch(&format!("REINDEX {table}"))?;
            if let Some(finding) = first_finding(connection, table)? {
                return Err(FileFault::Damage(format!("its table {table}: {finding}").into()));
            }
            tracing::error!(table, "an index of the store was damaged: it is made anew");
        }
    }
    require_products(connection)?;
    for table in ["owed", "dead_letters"] {
        require_webhooks(connection, table)?;
    }
    Ok(())
}

/// Returns the first finding of SQLite's check of one table and its indices.
fn first_finding(connection: &Connection, table: &str) -> Result<Option<String>, FileFault> {
    let pragma = format!("PRAGMA integrity_check({table})");
    let finding: String = connection.query_row(&pragma, [], |row| row.get(0))?;
    // The line before the first finding names the database.
    Ok((finding != "ok").then(|| finding.lines().last().unwrap_or_default().to_owned()))
}

/// Checks that each entry belongs to a product and lies within its range, and that a product with
/// entries has ids.
fn require_products(connection: &Connection) -> Result<(), FileFault> {
    let damage = |what: &str| Err(FileFault::damage(what));
    let mut next = connection.prepare("SELECT min(entry) FROM entries WHERE entry >= ?1")?;
    let mut last = connection.prepare("SELECT max(entry) FROM entries WHERE entry <= ?1")?;
    let mut products = connection.prepare("SELECT newest FROM products WHERE number = ?1")?;
    let mut from = 0_i64;
    while let Some(key) = next.query_row([from], |row| row.get::<_, Option<i64>>(0))? {
        let number = u32::try_from(key >> POSITION_BITS).unwrap_or(u32::MAX);
        let end = entry_key(number, MAX_POSITION)?;
        let newest: i64 = last.query_row([end], |row| row.get(0))?;
        let mut rows = products.query([number])?;
        match rows.next()? {
            None => return damage("it has entries of a product that is gone"),
            Some(row) if read_unsigned(row, 0)? < position_of(newest) => {
                return damage("it has entries behind the end of their product");
            }
            Some(_) => {}
        }
        from = end + 1;
    }
    let nameless = "SELECT 1 FROM products WHERE newest > 0 AND highest_epoch <> 0 AND NOT EXISTS ( \
                    SELECT 1 FROM spans WHERE product = number AND place <= newest)";
    match connection.prepare(nameless)?.exists([])? {
        true => damage("it has entries without ids"),
        false => Ok(()),
    }
}

/// Checks that the rows of a table belong to webhooks that are there, by one look-up for each.
fn require_webhooks(connection: &Connection, table: &str) -> Result<(), FileFault> {
    let next = format!("SELECT min(webhook) FROM {table} WHERE webhook > ?1");
    let mut next = connection.prepare(&next)?;
    let mut webhooks = connection.prepare("SELECT 1 FROM webhooks WHERE number = ?1")?;
    let mut after = i64::MIN;
    while let Some(webhook) = next.query_row([after], |row| row.get::<_, Option<i64>>(0))? {
        if !webhooks.exists(params![webhook])? {
            let damage = format!("its table {table} has rows of a webhook that is gone");
            return Err(FileFault::Damage(damage.into()));
        }
        after = webhook;
    }
    Ok(())
}

/// Tables that tell what the others hold, or what is owed. Their rows are few; checking them takes
/// milliseconds.
const SMALL_TABLES: [&str; 9] = [
    "products",
    "spans",
    "empty_epochs",
    "missing",
    "erased",
    "webhooks",
    "owed",
    "state",
    "indexed_through",
];

/// Bits of an entry's key that hold the position.
const POSITION_BITS: u32 = MAX_POSITION.trailing_ones();
