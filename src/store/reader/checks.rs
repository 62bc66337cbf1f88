//! Checks of a whole file on a reader's connection: its structure, its indices and its counters.
//!
//! May use: no other module.

use rusqlite::params;

use super::{MAX_ROWS_PER_READ, StoreReader, require};
use crate::store::sqlite::{FileError, FileFault, checksum::entry_sum, unread_users::entry_user};

impl StoreReader {
    /// Checks the structure of the file by SQLite's `quick_check`. Reads all of it.
    ///
    /// # Errors
    ///
    /// `Damaged` with the first finding; other errors when the file cannot be read or
    /// [`StoreReader::interrupt_handle`] was used.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        self.try_check("PRAGMA quick_check(1)").map_err(|fault| fault.at(&self.path, "check"))
    }

    /// Checks the table of dead letters and its indices by SQLite's `integrity_check`. Reads all of
    /// them.
    ///
    /// # Errors
    ///
    /// As [`StoreReader::check`].
    pub(crate) fn check_dead_letters(&self) -> Result<(), FileError> {
        self.try_check("PRAGMA integrity_check('dead_letters')")
            .map_err(|fault| fault.at(&self.path, "check"))
    }

    fn try_check(&self, pragma: &str) -> Result<(), FileFault> {
        let finding: String = self.connection.query_row(pragma, [], |row| row.get(0))?;
        if finding == "ok" { Ok(()) } else { Err(FileFault::Damage(finding.into())) }
    }

    /// Looks for some of the entries behind `after` in the indices by session, by user and of gaps.
    /// Returns the last of them, if there are more.
    ///
    /// # Errors
    ///
    /// `Damaged` for an entry that an index does not have; others when the file cannot be read.
    pub(crate) fn check_indices(&self, after: i64) -> Result<Option<i64>, FileError> {
        self.try_check_indices(after).map_err(|fault| fault.at(&self.path, "check"))
    }

    fn try_check_indices(&self, after: i64) -> Result<Option<i64>, FileFault> {
        // One state of the file for both: the writer moves entries from the tail to the index.
        let _snapshot = self.connection.unchecked_transaction()?;
        let is_extent_damaged = self.connection.prepare_cached(SELECT_DAMAGED_EXTENT)?.exists([])?;
        require(!is_extent_damaged, "the extent of an index is unknown")?;
        let mut statement = self.connection.prepare_cached(SELECT_INDEXED)?;
        let mut rows = statement.query(params![after, MAX_ROWS_PER_READ as i64])?;
        let (mut last, mut count) = (after, 0);
        while let Some(row) = rows.next()? {
            require(row.get(1)?, "an index leaves out a row")?;
            let key: i64 = row.get(0)?;
            // A damaged key must not make this an endless loop.
            (last, count) = (last.max(key), count + 1);
        }
        Ok((count == MAX_ROWS_PER_READ && last > after).then_some(last))
    }

    /// Returns whether each position of each product has a row, or is recorded as erased or lost.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn compare_row_counts(&self) -> Result<bool, FileError> {
        self.exists(SELECT_INCOMPLETE).map(|is_incomplete| !is_incomplete)
    }

    fn exists(&self, query: &str) -> Result<bool, FileError> {
        let exists = self.connection.prepare_cached(query).and_then(|mut it| it.exists([]));
        exists.map_err(|error| FileFault::from(error).at(&self.path, "check"))
    }

    /// Returns whether the counters of dead letters are those of the rows.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn compare_counters(&self) -> Result<bool, FileError> {
        self.exists(SELECT_WRONG_COUNTERS).map(|is_any_wrong| !is_any_wrong)
    }
}

/// Products with fewer rows than their positions need that are neither erased nor lost.
const SELECT_INCOMPLETE: &str = "SELECT 1 FROM products \
     WHERE newest - evicted_through > ( \
         SELECT count(*) FROM entries \
         WHERE entry > (number << 40) + evicted_through AND entry <= (number << 40) + newest \
     ) + ( \
         SELECT ifnull(sum(min(last, newest) - max(first, evicted_through + 1) + 1), 0) FROM erased \
         WHERE product = number AND last > evicted_through AND sum IS row_sum(product, first, last) \
     ) + ( \
         SELECT ifnull(sum(min(last, newest) - max(first, evicted_through + 1) + 1), 0) FROM missing \
         WHERE product = number AND last > evicted_through \
     )";

/// Products of which the file does not tell how far the indices by session and by user go.
const SELECT_DAMAGED_EXTENT: &str =
    "SELECT 1 FROM indexed_through WHERE sum IS NOT row_sum(product, position)";

/// Entries, and whether the indices have them; those by session and by user have none of the tail
/// yet. A row that does not fit its checksum says nothing about the indices.
const SELECT_INDEXED: &str = concat!(
    "SELECT entry, head_sum IS NOT ",
    entry_sum!(),
    " OR iif(gap IS NULL, \
         entry & 1099511627775 > ifnull( \
             (SELECT position FROM indexed_through WHERE product = entries.entry >> 40), 0) \
         OR ((session IS NULL OR EXISTS ( \
             SELECT 1 FROM session_index \
             WHERE session_index.session = entries.session AND session_index.entry = entries.entry)) \
         AND ifnull((SELECT EXISTS ( \
             SELECT 1 FROM user_index WHERE user_index.user = named.user AND user_index.entry = named.entry) \
             FROM (SELECT ",
    entry_user!(),
    " AS user, entries.entry AS entry) AS named WHERE named.user IS NOT NULL), 1)), \
         EXISTS ( \
             SELECT 1 FROM entries AS other INDEXED BY gaps \
             WHERE other.gap IS NOT NULL AND other.entry = entries.entry)) \
     FROM entries WHERE entry > ?1 ORDER BY entry LIMIT ?2"
);

/// Webhooks whose counters are not those of their dead letters.
const SELECT_WRONG_COUNTERS: &str = "SELECT 1 FROM webhooks LEFT JOIN ( \
         SELECT webhook, sum(NOT requeued) AS dead, sum(requeued) AS requeued, sum(bytes) AS bytes \
         FROM dead_letters GROUP BY webhook) AS counted ON counted.webhook = webhooks.number \
     WHERE webhooks.dead <> ifnull(counted.dead, 0) OR webhooks.requeued <> ifnull(counted.requeued, 0) \
     OR webhooks.dead_bytes <> ifnull(counted.bytes, 0)";
