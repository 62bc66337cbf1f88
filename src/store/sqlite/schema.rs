//! The file's format: its tables, how it is recognized, and the settings of every connection to it.
//!
//! ```text
//! products      number, id                 one row per product, with counters
//! entries       entry = number << 40 | place, id, kept_at, …, payload
//!               session -> entry           index, of events with a session
//!               entry                      index, of gaps
//! spans         product, place, id         id of this position; the positions behind count on from it
//! missing       product, first, last       holes: positions that were never persisted
//! webhooks      number, id, product, position, …      one row per webhook, with counters of dead letters
//! owed          webhook, place, id, attempts, …       owed although the webhook has passed the position
//! dead_letters  number, webhook, place, …, payload    given up, numbered in that order; `requeued` if
//!                                                     marked for redelivery
//! state         is_open, needs_scrub, …    one row; `syncs` makes each commit that must reach the disk
//!                                          change a page
//! log           view of all entries, for people
//! ```
//!
//! A column `place` holds a position: columns keep the names of the first release of the format.
//! Triggers maintain the counters of dead letters for every statement. `bytes` of a
//! dead letter is its share of the file, which `log.dead_letter_bytes` bounds: whole pages for a
//! large one, an even share of a page for a small one.
//!
//! Epochs and sequences are `u64`, stored bit for bit in SQLite's `i64`. Times are Unix
//! milliseconds.
//!
//! May use: no other module.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, config::DbConfig};

use super::{error::FileFault, files::CHECKPOINT_WAL_BYTES};

/// Application id of a store in the SQLite header: "apRl".
pub(crate) const APPLICATION_ID: i64 = 0x6170_526C;

/// Migrations of the schema: the n-th script turns version n - 1 into version n. A script that was
/// released never changes.
pub(crate) const MIGRATIONS: &[&str] = &[VERSION_1];

/// `payload` is the last column, so that a scan of the others does not follow a long row into its
/// overflow pages. Every SQLite index holds the row's key, so `by_session` is ordered by `entry`
/// within a session. `gaps` includes the reason only to be a covering index.
///
/// The webhooks' rows are indexed by session, too, so that erasing a session is no scan of all
/// rows. Dead letters are listed by number, redelivered by position, and named by their event's id.
const VERSION_1: &str = "
CREATE TABLE products (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    newest INTEGER NOT NULL,
    evicted_through INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    highest_epoch INTEGER NOT NULL
) STRICT;
CREATE TABLE entries (
    entry INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kept_at INTEGER NOT NULL,
    gap TEXT,
    after TEXT,
    kind TEXT,
    session TEXT,
    payload BLOB
) STRICT;
CREATE INDEX by_session ON entries (session) WHERE session IS NOT NULL;
CREATE INDEX gaps ON entries (entry, gap) WHERE gap IS NOT NULL;
CREATE TABLE spans (
    product INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    PRIMARY KEY (product, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE missing (
    product INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (product, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE webhooks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    product INTEGER NOT NULL,
    scope TEXT NOT NULL,
    definition TEXT NOT NULL,
    position INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    requeued INTEGER NOT NULL,
    dead_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE owed (
    webhook INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    created_at INTEGER NOT NULL,
    next_attempt_at INTEGER,
    attempts TEXT NOT NULL,
    PRIMARY KEY (webhook, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_by_session ON owed (session) WHERE session IS NOT NULL;
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY,
    webhook INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    created_at INTEGER NOT NULL,
    died_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requeued INTEGER NOT NULL,
    attempts TEXT NOT NULL,
    payload BLOB NOT NULL,
    size INTEGER AS (
        octet_length(payload) + octet_length(attempts) + octet_length(kind) + 2 * ifnull(octet_length(session), 0) + 192
    ) VIRTUAL,
    bytes INTEGER AS (iif(size > 8192, (size + 8191) / 8192 * 8192, 8192 / (8192 / size))) VIRTUAL
) STRICT;
CREATE UNIQUE INDEX dead_by_place ON dead_letters (webhook, place);
CREATE INDEX dead_by_state ON dead_letters (webhook, requeued, place);
CREATE INDEX dead_by_number ON dead_letters (webhook, requeued);
CREATE INDEX dead_by_sequence ON dead_letters (webhook, sequence);
CREATE INDEX dead_by_session ON dead_letters (session) WHERE session IS NOT NULL;
CREATE TRIGGER one_more_is_dead AFTER INSERT ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + 1 - new.requeued, requeued = requeued + new.requeued, dead_bytes = dead_bytes + new.bytes
    WHERE number = new.webhook;
END;
CREATE TRIGGER one_less_is_dead AFTER DELETE ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead - 1 + old.requeued, requeued = requeued - old.requeued, dead_bytes = dead_bytes - old.bytes
    WHERE number = old.webhook;
END;
CREATE TRIGGER one_is_requeued AFTER UPDATE OF requeued ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + old.requeued - new.requeued, requeued = requeued - old.requeued + new.requeued
    WHERE number = new.webhook;
END;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    is_open INTEGER NOT NULL,
    synced_at INTEGER NOT NULL,
    syncs INTEGER NOT NULL,
    needs_scrub INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0, 0);
CREATE VIEW log (product, id, time, type, session, gap, payload) AS
SELECT
    products.id,
    format('%u-%u', epoch, sequence) || iif(suffix = 0, '', '.' || suffix),
    strftime('%Y-%m-%dT%H:%M:%fZ', kept_at / 1000.0, 'unixepoch'),
    kind,
    session,
    gap,
    CAST(payload AS TEXT)
FROM products CROSS JOIN entries ON entry BETWEEN number << 40 AND (number << 40) + 1099511627775;
";

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
/// `Foreign` and `Newer` for a file that must not be changed, others when it cannot be read.
pub(crate) fn identify(connection: &Connection) -> Result<SchemaIdentity, FileFault> {
    let application_id: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    // A crash between the switch to WAL and the first migration leaves a header and nothing else.
    let is_blank = (application_id, version, tables) == (0, 0, 0);
    match usize::try_from(version) {
        _ if is_blank => Ok(SchemaIdentity::Fresh),
        _ if application_id != APPLICATION_ID => Err(FileFault::Foreign(application_id)),
        Ok(known) if known <= MIGRATIONS.len() => Ok(SchemaIdentity::Ours(known)),
        _ => Err(FileFault::Newer { found: version, known: MIGRATIONS.len() as i64 }),
    }
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

/// Applies the settings of every connection, without reading or writing the file.
///
/// # Errors
///
/// When SQLite refuses one.
pub(crate) fn configure(connection: &Connection, cache_kibibytes: i64) -> Result<(), FileFault> {
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
