//! The file's format: its tables, how it is recognized, and the settings of every connection to it.
//!
//! `migrations` draws the tables.
//!
//! Epochs and sequences are `u64`, stored bit for bit in SQLite's `i64`. Times are Unix
//! milliseconds.
//!
//! May use: no other module.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, config::DbConfig};

use super::{
    checksum, error::FileFault, files::CHECKPOINT_WAL_BYTES, former_index, migrations::MIGRATIONS,
    unread_users,
};

/// Application id of a store in the SQLite header: "apRl".
pub(crate) const APPLICATION_ID: i64 = 0x6170_526C;

/// Newest version of the schema that is known here.
pub(crate) const NEWEST_VERSION: usize = MIGRATIONS.len();

/// Identity of an opened file.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum SchemaIdentity {
    /// The file is empty.
    Fresh,
    /// The file is a store with the schema of this version.
    Ours(usize),
}

/// Identifies the file without changing it.
///
/// # Errors
///
/// `Foreign`, `Newer` and `UnknownVersion` for a file that must not be changed, others when it
/// cannot be read.
pub(crate) fn identify(connection: &Connection) -> Result<SchemaIdentity, FileFault> {
    let application_id: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let is_blank = (application_id, version, tables) == (0, 0, 0);
    let known = NEWEST_VERSION as i64;
    match usize::try_from(version) {
        _ if is_blank => Ok(SchemaIdentity::Fresh),
        _ if application_id != APPLICATION_ID => Err(FileFault::Foreign(application_id)),
        Ok(found @ 1..=NEWEST_VERSION) => Ok(SchemaIdentity::Ours(found)),
        Ok(1..) => Err(FileFault::Newer { found: version, known }),
        _ if tables == 0 => Err(FileFault::damage("it has no table")),
        _ => Err(FileFault::UnknownVersion { found: version, known }),
    }
}

/// Migrates the schema of a store from `version` to the newest. The index by session of a former
/// version stays until the writer has copied it, see `former_index`, and so does the mark of rows
/// whose users are still to be read, see `unread_users`.
///
/// # Errors
///
/// When a script fails; the file keeps the version before it.
pub(super) fn migrate_to_newest(
    connection: &mut Connection,
    version: usize,
) -> Result<(), FileFault> {
    migrate(connection, version, MIGRATIONS)?;
    former_index::drop_if_empty(connection)?;
    unread_users::drop_if_empty(connection)
}

/// Checks that every table, index, trigger and view of the newest version is there, as its scripts
/// make it. Objects that an operator has added are left alone.
///
/// # Errors
///
/// `Damage` with the name of the first that differs; others when the schema cannot be read.
pub(super) fn require_complete(connection: &Connection) -> Result<(), FileFault> {
    let mut reference = Connection::open_in_memory()?;
    checksum::register(&reference)?;
    unread_users::register(&reference)?;
    migrate_to_newest(&mut reference, 0)?;
    let found = read_schema(connection)?;
    match read_schema(&reference)?.iter().find(|object| !found.contains(object)) {
        None => Ok(()),
        Some((kind, name, _)) => {
            Err(FileFault::Damage(format!("its {kind} {name} is missing or altered").into()))
        }
    }
}

/// Returns type, name and definition of every object of the schema.
fn read_schema(
    connection: &Connection,
) -> Result<Vec<(String, String, Option<String>)>, FileFault> {
    let mut statement = connection.prepare("SELECT type, name, sql FROM sqlite_schema")?;
    let objects =
        statement.query_and_then([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    objects.collect()
}

/// Migrates the schema from `version` to that of the last script, each script in a transaction of
/// its own.
///
/// # Errors
///
/// When a script fails; the file keeps the version before it.
pub(super) fn migrate(
    connection: &mut Connection,
    version: usize,
    scripts: &[&str],
) -> Result<(), FileFault> {
    for (next_version, script) in (1_i64..).zip(scripts).skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", next_version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Applies the settings of every connection and makes the checksum known to it, without reading or
/// writing the file.
///
/// # Errors
///
/// When SQLite refuses one.
pub(crate) fn configure(connection: &Connection, cache_kibibytes: i64) -> Result<(), FileFault> {
    checksum::register(connection)?;
    unread_users::register(connection)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -cache_kibibytes)?;
    Ok(())
}

/// Applies the settings of the connection that writes, and gives a fresh file a write-ahead log.
///
/// # Errors
///
/// When SQLite refuses one, or cannot write the file.
pub(super) fn configure_writer(connection: &Connection) -> Result<(), FileFault> {
    // Before the journal mode: SQLite applies a page size only to a file that is still empty.
    connection.pragma_update(None, "page_size", DATABASE_PAGE_BYTES)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(FileFault::Refused("its file system does not support a write-ahead log"));
    }
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", CHECKPOINT_WAL_BYTES.cast_signed())?;
    // Checkpoints are left to the syncer: with automatic ones, some commit would wait for the disk.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // Set before the first write: rows that retention deletes must not leave their bytes in free
    // pages, because a later erasure cannot find them.
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(())
}

/// Returns the primary key of an entry.
///
/// # Errors
///
/// When the product's number or the position has more bits than the key has for it.
pub(crate) fn entry_key(product_number: u32, position: u64) -> Result<i64, FileFault> {
    if product_number > MAX_PRODUCT_NUMBER {
        return Err(FileFault::Refused("a product's number is beyond 4194303"));
    }
    if position > MAX_POSITION {
        return Err(FileFault::Refused("an entry's position is beyond 1099511627775"));
    }
    Ok((i64::from(product_number) << POSITION_BITS) | position.cast_signed())
}

/// Returns the position of the entry with this primary key.
pub(crate) fn position_of(key: i64) -> u64 {
    key.cast_unsigned() & MAX_POSITION
}

const POSITION_BITS: u32 = 40;

/// Highest position: 35 years of a thousand entries a second.
pub(crate) const MAX_POSITION: u64 = (1 << POSITION_BITS) - 1;

/// Highest number of a product: leaves the sign bit of the key unset, with a bit to spare.
pub(crate) const MAX_PRODUCT_NUMBER: u32 = (1 << 22) - 1;

/// Page size of the database: a page holds a few events of usual size.
const DATABASE_PAGE_BYTES: i64 = 8192;

/// Wait for a lock of another connection. Readers and the writer do not block one another; recovery
/// and an operator's own writes are short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Capacity of the cache of prepared statements: more than there are statements, so that each is
/// prepared once.
const STATEMENT_CACHE_CAPACITY: usize = 64;
