//! The store's file: one SQLite database for all products, and the one connection that writes to
//! it.
//!
//! ```text
//! relay.db        schema and format: see `schema`
//! relay.db-wal    write-ahead log: commits not yet moved into relay.db
//! relay.db-shm    SQLite's index of the write-ahead log; worthless once every connection is closed
//! ```
//!
//! A commit survives the end of the process at once. It survives the end of the machine once the
//! write-ahead log has been synced, by the syncer or by a commit with [`SyncMode::Full`]. Every
//! call may block on the disk, so the file's callers are threads of their own.
//!
//! `file` holds the connection; the other files add methods to it, a subject each.
//!
//! May use: no other module.

mod append;
mod audit;
pub(super) mod checksum;
mod commit;
mod dead_letters;
mod entry_row;
mod erase;
mod error;
mod expire_owed;
mod file;
mod files;
mod former_index;
mod migrations;
pub(super) mod name_index;
mod products;
mod repair;
mod retention;
pub(super) mod rows;
pub(super) mod schema;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod unread_users;
mod webhooks;

pub(crate) use self::{
    append::AppendBatch,
    dead_letters::{DEAD_LETTER_STEP_ROWS, DeadLetterBound, RetiredDeadLetters},
    erase::{Indices, UserTraces},
    error::{FileError, FileFault},
    expire_owed::ExpiredDeliveries,
    file::{CheckpointProgress, IN_MEMORY_PATH, StoreFile, SyncMode},
    files::{
        CHECKPOINT_WAL_BYTES, FilesInPlace, MAX_WAL_BYTES, remove_stale_wal, set_aside, wal_bytes,
        wal_path,
    },
    name_index::INDEX_STEP_ROWS,
    repair::CorrectedCounters,
    webhooks::DeadLetterCounts,
};
