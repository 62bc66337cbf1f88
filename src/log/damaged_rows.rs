//! Rows of the store that do not fit their checksum, as their readers report them.
//!
//! A reader of such a row gets a gap, `not_kept`, as where the store has a hole. The first report
//! of a row is counted and logged, however many readers come to it.
//!
//! May use: `event`.

use std::collections::BTreeMap;

use crate::event::{EventId, Kind, SessionId};

/// Row of the store that does not fit its checksum.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DamagedRow {
    /// Position of the entry.
    pub(crate) position: u64,
    /// Event of the row; `None` if its columns, too, do not fit.
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

    /// Returns the event at a position, if its row was found damaged and its other columns whole.
    pub(super) fn event_at(&self, position: u64) -> Option<DamagedEvent> {
        self.events.get(&position).cloned().flatten()
    }
}

/// Maximum number of damaged rows that are remembered. A disk with more of them is logged again for
/// some of its rows.
const MAX_DAMAGED_ROWS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_new_once_and_the_number_remembered_is_bounded() {
        let row = |position| DamagedRow { position, event: None };
        let mut rows = DamagedRows::default();
        assert_eq!([rows.add(row(7)), rows.add(row(7)), rows.add(row(8))], [true, false, true]);
        assert!((10..10_000).all(|position| rows.add(row(position))));
        assert_eq!(rows.events.len(), MAX_DAMAGED_ROWS);
    }
}
