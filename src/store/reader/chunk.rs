//! One chunk of entries while it is being read: entries that the scope admits and the limits allow.
//!
//! May use: `envelope`, `event`, `log`.

use std::sync::Arc;

use rusqlite::{CachedStatement, Row, types::ValueRef};

use crate::{
    envelope::user_in,
    event::{
        Entry, Event, Gap, GapReason, Kind, NarrowestLimit, Only, Scope, ScopeKey, SessionId,
        UserId,
    },
    log::{
        DamagedEvent, DamagedRow,
        backing::{ReadRequest, StoredChunk},
    },
    store::sqlite::{
        FileFault,
        checksum::{SummedPayload, find_damaged_payload},
        rows::read_event_id,
        schema::{entry_key, position_of},
    },
};

/// State of one read.
pub(super) struct ChunkBuilder<'a> {
    request: &'a ReadRequest,
    payload: CachedStatement<'a>,
    entries: Vec<Entry>,
    /// Payloads of `entries` that have not been compared with their sums: several are summed side
    /// by side.
    unverified: Vec<UnverifiedPayload>,
    bytes: usize,
    /// Last position that was examined: everything that the scope admits up to here is in
    /// `entries`.
    through: u64,
    /// Whether an admitted entry did not fit any more, or a row was damaged.
    pub(super) is_full: bool,
    damaged: Option<DamagedRow>,
    /// Whether an index names the rows that are added: each is a gap, or of a session of the scope,
    /// or of a user where the scope names no session.
    pub(super) is_indexed: bool,
}

impl<'a> ChunkBuilder<'a> {
    pub(super) fn new(request: &'a ReadRequest, payload: CachedStatement<'a>) -> Self {
        Self {
            request,
            payload,
            entries: Vec::new(),
            unverified: Vec::new(),
            bytes: 0,
            through: request.after,
            is_full: false,
            damaged: None,
            is_indexed: false,
        }
    }

    /// Returns the number of the product.
    pub(super) fn product_number(&self) -> u32 {
        self.request.product_number
    }

    /// Returns the last position that was examined.
    pub(super) fn through(&self) -> u64 {
        self.through
    }

    /// Records that nothing is to be read up to this position.
    pub(super) fn pass(&mut self, through: u64) {
        self.through = through;
    }

    /// Ends the chunk before positions whose rows are gone, and that were not erased.
    pub(super) fn end_before_missing(&mut self, first: u64, last: u64) {
        self.end_before(first, last, None);
        self.through = first - 1;
    }

    /// Adds the entry of a row if the scope admits it and it fits.
    ///
    /// # Errors
    ///
    /// `Damage` for a row that is not behind the one before: then its key is damaged, and the row
    /// that belongs here cannot be told.
    pub(super) fn add_row(&mut self, row: &Row<'_>) -> Result<(), FileFault> {
        let key = row.get(0)?;
        if key <= entry_key(self.request.product_number, self.through)? {
            return Err(FileFault::damage("its rows are not in order"));
        }
        let position = position_of(key);
        if let Some(entry) = self.read_admitted(row, position)? {
            let bytes = self.bytes + entry.encoded_len();
            if !self.entries.is_empty() && bytes > self.request.limits.bytes {
                self.is_full = true;
            } else {
                self.bytes = bytes;
                self.entries.push(entry);
            }
        }
        self.through = if self.is_full { position - 1 } else { position };
        Ok(())
    }

    /// Ends the chunk before damaged rows. Behind entries they are left to the next chunk, so that
    /// a reader gets those first.
    fn end_before(&mut self, first: u64, position: u64, event: Option<DamagedEvent>) {
        self.is_full = true;
        self.damaged = self.entries.is_empty().then_some(DamagedRow { first, position, event });
    }

    /// Returns the entry of a row if the scope admits it and one more may be added.
    fn read_admitted(&mut self, row: &Row<'_>, position: u64) -> Result<Option<Entry>, FileFault> {
        if RowFit::read(row)? != RowFit::Head {
            self.end_before(position, position, None);
            return Ok(None);
        }
        let mut header = RowHeader::read(row)?;
        if self.request.scope.users != Only::Everything && header.has_unread_user() {
            let Some(user) = self.read_user(row, position)? else { return Ok(None) };
            header.set_user(user);
        }
        if self.is_indexed && !header.is_indexed_for(&self.request.scope) {
            return Err(FileFault::damage("an index names a row of another session or user"));
        }
        if !header.is_admitted(&self.request.scope) {
            return Ok(None);
        }
        self.is_full = self.entries.len() >= self.request.limits.entries.max(1);
        if self.is_full {
            return Ok(None);
        }
        match header {
            RowHeader::Gap { reason, after } => {
                let (product, id) = (self.request.product.clone(), read_event_id(row, 1)?);
                Ok(Some(Entry::Gap(Arc::new(Gap {
                    product,
                    reason,
                    position,
                    id,
                    after,
                    before: None,
                }))))
            }
            RowHeader::Event { kind, session, user } => {
                let id = read_event_id(row, 1)?;
                if let ValueRef::Blob(payload) = row.get_ref(9)? {
                    return self.read_small(row, payload, |payload| {
                        let names = (session, user.in_payload(payload));
                        Event::restored(id, position, kind, names, payload)
                    });
                }
                let mut rows = self.payload.query([row.get::<_, i64>(0)?])?;
                let payload = rows
                    .next()?
                    .ok_or_else(|| FileFault::damage("a row is gone while it is read"))?;
                if payload.get(1)? {
                    let payload = read_payload(payload)?;
                    let names = (session, user.in_payload(payload));
                    let event = Event::restored(id, position, kind, names, payload);
                    return Ok(Some(Entry::Event(Arc::new(event))));
                }
                drop(rows);
                let event = DamagedEvent { id, kind, session };
                self.end_before(position, position, Some(event));
                Ok(None)
            }
        }
    }

    /// Returns the user of a row of a version that kept it in the payload alone. `None` if the
    /// payload is damaged: then the chunk ends before the row, because the scope may admit it.
    fn read_user(&mut self, row: &Row<'_>, position: u64) -> Result<Option<StoredUser>, FileFault> {
        let mut rows = self.payload.query([row.get::<_, i64>(0)?])?;
        let payload =
            rows.next()?.ok_or_else(|| FileFault::damage("a row is gone while it is read"))?;
        if payload.get(1)? {
            return Ok(Some(StoredUser::Known(user_in(read_payload(payload)?))));
        }
        drop(rows);
        self.end_before(position, position, None);
        Ok(None)
    }

    /// Returns the event of a payload that was read with its row. Its sum is compared later. `None`
    /// if the next chunk must begin with it.
    fn read_small(
        &mut self,
        row: &Row<'_>,
        payload: &[u8],
        event: impl FnOnce(&[u8]) -> Event,
    ) -> Result<Option<Entry>, FileFault> {
        let (key, sum) = (row.get(0)?, row.get(10)?);
        if memchr::memchr(b'\r', payload).is_some() {
            // Damage of the row if it does not fit its sum, else of the file. Rows before it count
            // first.
            let is_first = self.entries.is_empty();
            let fits = find_damaged_payload(&[SummedPayload { key, payload, sum }]).is_none();
            if is_first && fits {
                return Err(FileFault::damage(CARRIAGE_RETURN));
            }
            if !is_first {
                self.is_full = true;
                return Ok(None);
            }
        }
        self.unverified.push(UnverifiedPayload { index: self.entries.len(), key, sum });
        Ok(Some(Entry::Event(Arc::new(event(payload)))))
    }

    /// Compares payloads with their sums, and ends the chunk before the first that does not fit.
    /// Returns whether there is one. Called once, when all rows are read.
    pub(super) fn end_before_damaged_payload(&mut self) -> bool {
        let entries = &self.entries;
        let event_of = |row: &UnverifiedPayload| match entries.get(row.index) {
            Some(Entry::Event(event)) => Some(Arc::clone(event)),
            _ => None,
        };
        let payloads: Vec<SummedPayload<'_>> = (self.unverified.iter())
            .filter_map(|row| match entries.get(row.index) {
                Some(Entry::Event(event)) => Some(SummedPayload {
                    key: row.key,
                    payload: event.payload_slice(),
                    sum: row.sum,
                }),
                // The last row, which did not fit into the chunk any more.
                _ => None,
            })
            .collect();
        let damaged = find_damaged_payload(&payloads).and_then(|it| self.unverified.get(it));
        let Some((index, event)) = damaged.and_then(|row| Some((row.index, event_of(row)?))) else {
            return false;
        };
        self.entries.truncate(index);
        let (kind, session) = (event.kind().clone(), event.session().cloned());
        let damaged = DamagedEvent { id: event.id(), kind, session };
        self.end_before(event.position(), event.position(), Some(damaged));
        self.through = event.position() - 1;
        true
    }

    /// Returns the chunk. With `may_have_more`, rows behind the last one may not have been read.
    pub(super) fn finish(self, may_have_more: bool) -> StoredChunk {
        let end = self.request.through.max(self.request.after);
        let through = if self.is_full || may_have_more { self.through } else { end };
        StoredChunk { entries: self.entries, through, evicted_through: 0, damaged: self.damaged }
    }
}

/// Payload of an entry of the chunk that is still to be compared with its sum.
struct UnverifiedPayload {
    /// Index of the entry.
    index: usize,
    key: i64,
    sum: i64,
}

/// Part of a row that fits its checksum. Both sums hold the row's key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RowFit {
    /// Every column but the payload, of which nothing is known.
    Head,
    /// The payload and the key.
    Payload,
    /// Neither: the key may be another than the row was written under.
    Nothing,
}

impl RowFit {
    /// Reads a row of `SELECT_HEADER` or `SELECT_HEADERS`.
    ///
    /// # Errors
    ///
    /// When the column is no integer.
    pub(super) fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        Ok(match row.get(8)? {
            2 => Self::Head,
            1 => Self::Payload,
            _ => Self::Nothing,
        })
    }
}

/// Columns of a row but for its id and payload.
enum RowHeader {
    Gap { reason: GapReason, after: Option<Box<str>> },
    Event { kind: Kind, session: Option<SessionId>, user: StoredUser },
}

/// User of an event, as far as its row tells.
enum StoredUser {
    Known(Option<UserId>),
    /// The payload alone tells.
    Unread,
}

impl StoredUser {
    fn in_payload(self, payload: &[u8]) -> Option<UserId> {
        match self {
            Self::Known(user) => user,
            Self::Unread => user_in(payload),
        }
    }
}

impl RowHeader {
    /// Reads a row of `SELECT_HEADER` or `SELECT_HEADERS`.
    fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        if let Some(reason) = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            let reason = GapReason::parse(reason)
                .ok_or_else(|| FileFault::damage("a gap's reason is unknown"))?;
            return Ok(Self::Gap { reason, after: row.get(5)? });
        }
        let kind = row.get_ref(6)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = row.get_ref(7)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = session.map(SessionId::new).transpose();
        let user = match row.get_ref(5)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            None => StoredUser::Unread,
            Some("") => StoredUser::Known(None),
            Some(user) => StoredUser::Known(Some(
                UserId::new(user)
                    .map_err(|error| FileFault::Damage(format!("a user's name {error}").into()))?,
            )),
        };
        Ok(Self::Event {
            kind: Kind::new(kind.ok_or_else(|| FileFault::damage("an event has no kind"))?),
            session: session
                .map_err(|error| FileFault::Damage(format!("a session's name {error}").into()))?,
            user,
        })
    }

    fn has_unread_user(&self) -> bool {
        matches!(self, Self::Event { user: StoredUser::Unread, .. })
    }

    fn set_user(&mut self, read: StoredUser) {
        if let Self::Event { user, .. } = self {
            *user = read;
        }
    }

    /// Returns the parts that a scope judges the event by, or `None` for a gap.
    fn scope_key(&self) -> Option<ScopeKey<'_>> {
        let Self::Event { kind, session, user } = self else { return None };
        let user = match user {
            StoredUser::Known(user) => user.as_ref(),
            StoredUser::Unread => None,
        };
        Some(ScopeKey { session: session.as_ref(), user, kind })
    }

    /// Decides as [`Scope::admits`] does, before the payload is read.
    fn is_admitted(&self, scope: &Scope) -> bool {
        self.scope_key().is_none_or(|key| scope.includes(key))
    }

    /// Returns whether an index names the row rightly: it is a gap, or of a session of the scope,
    /// or of a user where the scope names no session.
    fn is_indexed_for(&self, scope: &Scope) -> bool {
        self.scope_key().is_none_or(|key| match scope.narrowest_limit() {
            NarrowestLimit::Sessions(_) => scope.sessions.admits_some(key.session),
            NarrowestLimit::Users(_) => scope.users.admits_some(key.user),
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => true,
        })
    }
}

/// Reads a row of `SELECT_PAYLOAD`.
fn read_payload<'a>(row: &'a Row<'_>) -> Result<&'a [u8], FileFault> {
    let payload = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    // The decoder lets no carriage return through, and the encoder would write a broken frame
    // (WHATWG HTML §9.2: it ends a line).
    match memchr::memchr(b'\r', payload) {
        None => Ok(payload),
        Some(_) => Err(FileFault::damage(CARRIAGE_RETURN)),
    }
}

const CARRIAGE_RETURN: &str = "a payload holds a carriage return";
