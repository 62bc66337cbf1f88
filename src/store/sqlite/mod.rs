//! The store's file: one SQLite database for all products, and the one connection that writes to
//! it.
//!
//! ```text
//! relay.db        schema and format: see `schema`
//! relay.db-wal    commits not yet moved into relay.db
//! relay.db-shm    SQLite's index of the former; worthless once all have closed it
//! ```
//!
//! A commit survives the end of the process at once, and the end of the machine once the
//! write-ahead log has been synced: by the syncer, or by a commit with [`SyncMode::Full`]. Every
//! call waits for the disk and belongs on a thread of its own.
//!
//! May use: no other module.

mod append;
mod commit;
mod dead_letters;
mod erase;
mod error;
mod expire_owed;
mod file;
mod files;
mod products;
mod retention;
pub(super) mod rows;
pub(super) mod schema;
#[cfg(test)]
pub(super) mod tests;
mod webhooks;

pub(crate) use self::{
    append::AppendBatch,
    dead_letters::{DEAD_LETTER_STEP_ROWS, DeadLetterBound, RetiredDeadLetters},
    error::{FileError, FileFault},
    expire_owed::ExpiredDeliveries,
    file::{IN_MEMORY_PATH, StoreFile, SyncMode},
    files::{CHECKPOINT_WAL_BYTES, set_aside, wal_bytes, wal_path},
    webhooks::DeadLetterCounts,
};
