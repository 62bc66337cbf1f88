//! Rows of the store that do not fit their checksum, as their readers report them.
//!
//! A reader of such a row gets a gap, `not_kept`, as where the store has a hole. The first report
//! of a row is counted and logged, however many readers come to it, up to [`MAX_LINES`] a minute.
//!
//! May use: `event`.

use std::{collections::BTreeMap, mem, time::Duration};

use tokio::time::Instant;

use crate::event::{EventId, Kind, SessionId};

/// Row of the store that does not fit its checksum, or rows that are gone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DamagedRow {
    /// First position that has no readable entry.
    pub(crate) first: u64,
    /// Last such position: that of the entry, if it is one.
    pub(crate) position: u64,
    /// Event of the row; `None` if its columns, too, do not fit, and of rows that are gone.
    pub(crate) event: Option<DamagedEvent>,
}

/// Event whose payload is damaged, and nothing else of its row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DamagedEvent {
    /// Id of the event.
    pub(crate) id: EventId,
    /// Type of the event.
    pub(crate) kind: Kind,
    /// Session of the event, if any.
    pub(crate) session: Option<SessionId>,
}

/// Damaged rows that were found since the start, the newest of them if there are too many.
#[derive(Debug, Default)]
pub(super) struct DamagedRows {
    events: BTreeMap<u64, Option<DamagedEvent>>,
    /// Begin of the minute that `lines` counts in.
    minute_began: Option<Instant>,
    /// Lines of this minute.
    lines: u32,
    /// Reports since the last line.
    unlogged: u64,
}

impl DamagedRows {
    /// Adds a row, and returns whether it was not known.
    pub(super) fn add(&mut self, row: DamagedRow) -> bool {
        let is_new = self.events.insert(row.position, row.event).is_none();
        if self.events.len() > MAX_DAMAGED_ROWS {
            self.events.pop_first();
        }
        is_new
    }

    /// Counts a new row, and returns how many there have been since the last line if a line is to
    /// be written.
    pub(super) fn begin_line(&mut self) -> Option<u64> {
        let now = Instant::now();
        let is_over = |began| now.saturating_duration_since(began) >= LINES_INTERVAL;
        if self.minute_began.is_none_or(is_over) {
            (self.minute_began, self.lines) = (Some(now), 0);
        }
        self.unlogged += 1;
        if self.lines == MAX_LINES {
            return None;
        }
        self.lines += 1;
        Some(mem::take(&mut self.unlogged))
    }

    /// Returns the event at a position, if its row was found damaged and its other columns whole.
    pub(super) fn event_at(&self, position: u64) -> Option<DamagedEvent> {
        self.events.get(&position).cloned().flatten()
    }
}

/// Maximum number of damaged rows that are remembered. A disk with more of them is logged again for
/// some of its rows.
const MAX_DAMAGED_ROWS: usize = 4096;

/// Maximum number of lines about damaged rows of one product in [`LINES_INTERVAL`]: enough to see
/// which they are, while a disk with thousands of them, or clients that read them again and again,
/// cannot fill the log.
const MAX_LINES: u32 = 16;

/// Time in which [`MAX_LINES`] are written.
const LINES_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_new_once_and_the_number_remembered_is_bounded() {
        let row = |position| DamagedRow { first: position, position, event: None };
        let mut rows = DamagedRows::default();
        assert_eq!([rows.add(row(7)), rows.add(row(7)), rows.add(row(8))], [true, false, true]);
        assert!((10..10_000).all(|position| rows.add(row(position))));
        assert_eq!(rows.events.len(), MAX_DAMAGED_ROWS);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_the_next_one_tells_how_many_rows_there_were() {
        let mut rows = DamagedRows::default();
        assert!((0..MAX_LINES).all(|_| rows.begin_line() == Some(1)));
        assert!((0..1000).all(|_| rows.begin_line().is_none()));
        tokio::time::advance(LINES_INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(rows.begin_line(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([rows.begin_line(), rows.begin_line()], [Some(1002), Some(1)]);
    }
}
