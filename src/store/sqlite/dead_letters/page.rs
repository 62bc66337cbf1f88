//! Pages of dead letters, and the damaged rows among them.
//!
//! May use: `webhook_delivery`.

use rusqlite::{Connection, Row, ToSql};

use super::super::{
    error::FileFault,
    rows::{read_delivery, read_unsigned},
};
use crate::webhook_delivery::{DeadLetter, DeadLetterReason};

/// Columns of a dead letter, and whether they and its payload fit their checksums.
macro_rules! select_dead_letters {
    () => {
        concat!(
            "SELECT place, epoch, sequence, suffix, kind, session, created_at, attempts, number, died_at, \
             reason, payload, head_sum IS ",
            dead_letter_sum!(),
            ", payload_sum IS row_sum(webhook, place, payload) FROM dead_letters"
        )
    };
}

pub(super) use select_dead_letters;

/// Page of dead letters.
#[derive(Default)]
pub(super) struct DeadLetterRows {
    /// Dead letters with their numbers. One whose payload alone is damaged has no body.
    pub(super) dead_letters: Vec<(u64, DeadLetter)>,
    /// Numbers of damaged rows. A row whose other columns are damaged is no dead letter above,
    /// because its event is unknown.
    pub(super) damaged: Vec<i64>,
}

/// Reads dead letters by a query of [`select_dead_letters`], up to `limit` and to about 1 MiB of
/// payloads, but one if there is one.
///
/// # Errors
///
/// When the file cannot be read.
pub(super) fn read_page(
    connection: &Connection,
    query: &str,
    parameters: &[&dyn ToSql],
    limit: usize,
) -> Result<DeadLetterRows, FileFault> {
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(parameters)?;
    let (mut page, mut bytes) = (DeadLetterRows::default(), 0);
    while page.dead_letters.len() < limit
        && page.damaged.len() < MAX_DAMAGED_PER_PAGE
        && let Some(row) = rows.next()?
    {
        let (is_head_whole, is_payload_whole): (bool, bool) = (row.get(12)?, row.get(13)?);
        if !(is_head_whole && is_payload_whole) {
            page.damaged.push(row.get(8)?);
        }
        if !is_head_whole {
            continue;
        }
        let dead_letter = read_dead_letter(row, is_payload_whole)?;
        bytes += dead_letter.payload.len();
        if !page.dead_letters.is_empty() && bytes > DEAD_LETTER_PAGE_BYTES {
            break;
        }
        page.dead_letters.push((read_unsigned(row, 8)?, dead_letter));
    }
    Ok(page)
}

fn read_dead_letter(row: &Row<'_>, is_payload_whole: bool) -> Result<DeadLetter, FileFault> {
    let reason = row.get_ref(10)?.as_str().map_err(rusqlite::Error::from)?;
    let (reason, payload) = if is_payload_whole {
        let payload = row.get_ref(11)?.as_blob().map_err(rusqlite::Error::from)?;
        (DeadLetterReason::parse(reason), payload.to_vec())
    } else {
        (Some(DeadLetterReason::Damaged), Vec::new())
    };
    Ok(DeadLetter {
        delivery: read_delivery(row)?,
        reason: reason.ok_or_else(|| FileFault::damage("a dead letter's reason is unknown"))?,
        died_at: read_unsigned(row, 9)?,
        payload: payload.into(),
    })
}

/// Damaged rows after which a page ends: a damaged disk must not make one list a scan of all.
const MAX_DAMAGED_PER_PAGE: usize = 1000;

/// Bytes of payloads in one page.
const DEAD_LETTER_PAGE_BYTES: usize = 1 << 20;
