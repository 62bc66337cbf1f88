//! What the file keeps of webhooks before they give anything up: who they are, how far each has come, what is owed to it.
//!
//! May use: `delivery`, `event`, the outbox's words.

#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeSet;

use rusqlite::{Connection, Row, params};

use super::{
    File, FileError, Sync, dead_letters,
    error::Fault,
    products::{insert_product, number_of},
    read_id,
    schema::{address, count, signed},
    set_synced,
};
use crate::{
    event::{Kind, Only, ProductId, Scope, SessionId},
    store::webhook_rows::{Changes, Fate, KeptWebhook, Owed, Registration},
    webhook_delivery::{Attempt, Delivery},
};

/// How a webhook stands in the file once it is registered.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Registered {
    /// The file had none of this id and product.
    pub(crate) is_new: bool,
    /// Dead letters and what was owed to one of the same id and another product: gone.
    pub(crate) forgotten: u64,
    /// Everything up to this place is settled, owed or dead. If it is new, no further than the file has the log.
    pub(crate) position: u64,
}

/// How many dead letters a webhook has.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Counts {
    /// Whose.
    pub(crate) id: String,
    /// Those that stay.
    pub(crate) dead: u64,
    /// Those that wait to be delivered again.
    pub(crate) requeued: u64,
}

impl File {
    /// Keeps a webhook, or changes what is kept of it but its position. On the disk when it returns.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn register(&mut self, webhook: &Registration, now: u64) -> Result<Registered, FileError> {
        let registered = self.commit(Sync::Full, |connection| {
            set_synced(connection, now)?;
            register(connection, webhook)
        });
        registered.map_err(|fault| fault.at(&self.path, "register a webhook in"))
    }

    /// Forgets a webhook, what is owed to it and its dead letters, a part of it at a time. Tells whether nothing is left; if
    /// not, call it again.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn unregister(&mut self, id: &str, now: u64) -> Result<bool, FileError> {
        let forgotten = self.commit(Sync::Full, |connection| {
            set_synced(connection, now)?;
            match find(connection, id)? {
                Some(webhook) => {
                    Ok(forget_some(connection, webhook.number)? == 0 && forget(connection, webhook.number)?)
                }
                None => Ok(true),
            }
        });
        forgotten.map_err(|fault| fault.at(&self.path, "unregister a webhook in"))
    }

    /// Every webhook there is, with what is owed to it.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn webhooks(&self) -> Result<Vec<KeptWebhook>, FileError> {
        read_webhooks(&self.connection).map_err(|fault| fault.at(&self.path, "read webhooks from"))
    }

    /// The dead letters of every webhook.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn counts(&self) -> Result<Vec<Counts>, FileError> {
        read_counts(&self.connection).map_err(|fault| fault.at(&self.path, "count dead letters in"))
    }
}

/// What the file knows of one webhook by itself.
struct Known {
    number: i64,
    product: u32,
    position: u64,
    /// Whether it has any dead letters.
    has_dead: bool,
}

fn find(connection: &Connection, id: &str) -> Result<Option<Known>, Fault> {
    let mut statement = connection
        .prepare_cached("SELECT number, product, position, dead + requeued > 0 FROM webhooks WHERE id = ?1")?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Known { number: row.get(0)?, product: row.get(1)?, position: count(row, 2)?, has_dead: row.get(3)? }))
}

fn register(connection: &Connection, webhook: &Registration) -> Result<Registered, Fault> {
    if number_of(connection, &webhook.product)?.is_none() {
        insert_product(connection, &webhook.product)?;
    }
    let product = number_of(connection, &webhook.product)?.ok_or_else(|| Fault::found("a product's row is gone"))?;
    let scope = write_scope(&webhook.scope)?;
    let known = find(connection, &webhook.id)?;
    if let Some(Known { number, position, .. }) = known.as_ref().filter(|known| known.product == product) {
        let mut update =
            connection.prepare_cached("UPDATE webhooks SET scope = ?2, definition = ?3 WHERE number = ?1")?;
        update.execute(params![number, scope, webhook.definition])?;
        return Ok(Registered { is_new: false, forgotten: 0, position: *position });
    }
    // Places mean nothing in another product's log.
    let forgotten = known.map(|known| forget_all(connection, known.number)).transpose()?.unwrap_or(0);
    let mut insert = connection.prepare_cached(
        "INSERT INTO webhooks (id, product, scope, definition, position, dead, requeued, dead_bytes) \
         VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, 0)",
    )?;
    // What has been shown to others and is not in the file yet may never be. Then other events stand there.
    let position = webhook.position.min(newest(connection, product)?);
    insert.execute(params![&*webhook.id, product, scope, webhook.definition, signed(position)])?;
    Ok(Registered { is_new: true, forgotten, position })
}

/// The place up to which the file has a product's log.
fn newest(connection: &Connection, product: u32) -> Result<u64, Fault> {
    let mut statement = connection.prepare_cached("SELECT newest FROM products WHERE number = ?1")?;
    let mut rows = statement.query([product])?;
    rows.next()?.map_or(Ok(0), |row| count(row, 0))
}

fn forget_all(connection: &Connection, number: i64) -> Result<u64, Fault> {
    let mut forgotten = 0;
    loop {
        match forget_some(connection, number)? {
            0 => break,
            some => forgotten += some,
        }
    }
    forget(connection, number)?;
    Ok(forgotten)
}

/// Forgets some of what a webhook has, and returns how much that was.
fn forget_some(connection: &Connection, number: i64) -> Result<u64, Fault> {
    let mut forgotten = 0;
    for delete in [
        "DELETE FROM dead_letters WHERE number IN (SELECT number FROM dead_letters WHERE webhook = ?1 LIMIT ?2)",
        "DELETE FROM owed WHERE webhook = ?1 AND place IN (SELECT place FROM owed WHERE webhook = ?1 LIMIT ?2)",
    ] {
        forgotten += connection.prepare_cached(delete)?.execute(params![number, dead_letters::STEP])?;
    }
    Ok(forgotten as u64)
}

/// Forgets a webhook that has nothing any more.
fn forget(connection: &Connection, number: i64) -> Result<bool, Fault> {
    connection.execute("DELETE FROM webhooks WHERE number = ?1", [number])?;
    Ok(true)
}

fn read_counts(connection: &Connection) -> Result<Vec<Counts>, Fault> {
    let mut statement = connection.prepare_cached("SELECT id, dead, requeued FROM webhooks")?;
    let read = |row: &Row<'_>| Ok(Counts { id: row.get(0)?, dead: count(row, 1)?, requeued: count(row, 2)? });
    statement.query_and_then([], read)?.collect()
}

fn read_webhooks(connection: &Connection) -> Result<Vec<KeptWebhook>, Fault> {
    let mut statement = connection.prepare(
        "SELECT webhooks.number, webhooks.id, products.id, definition, position \
         FROM webhooks JOIN products ON products.number = product ORDER BY webhooks.number",
    )?;
    let mut rows = statement.query([])?;
    let mut webhooks = Vec::new();
    while let Some(row) = rows.next()? {
        let product = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        webhooks.push(KeptWebhook {
            id: row.get(1)?,
            product: ProductId::new(product).map_err(|_| Fault::found("a product's id is none"))?,
            definition: row.get(3)?,
            position: count(row, 4)?,
            owed: read_owed(connection, row.get(0)?)?,
        });
    }
    Ok(webhooks)
}

fn read_owed(connection: &Connection, number: i64) -> Result<Vec<Owed>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT place, epoch, sequence, suffix, kind, session, created_at, attempts, next_attempt_at \
         FROM owed WHERE webhook = ?1 ORDER BY place",
    )?;
    let read = |row: &Row<'_>| {
        let next_attempt_at = row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned);
        Ok(Owed { delivery: read_delivery(row)?, next_attempt_at })
    };
    statement.query_and_then([number], read)?.collect()
}

/// The delivery that stands in a row's first eight columns: place, three of the id, kind, session, time, attempts.
pub(super) fn read_delivery(row: &Row<'_>) -> Result<Delivery, Fault> {
    let session = row.get_ref(5)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    Ok(Delivery {
        place: count(row, 0)?,
        event_id: read_id(row, 1)?,
        kind: Kind::new(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?),
        session: session.map(SessionId::new).transpose().map_err(|_| Fault::found("a session's name is none"))?,
        created_at: count(row, 6)?,
        attempts: serde_json::from_str(row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(|_| Fault::found("a delivery's attempts are none"))?,
    })
}

/// Attempts as they are stored.
///
/// # Errors
///
/// Never, as far as anybody knows.
pub(super) fn write_attempts(attempts: &[Attempt]) -> Result<String, Fault> {
    serde_json::to_string(attempts).map_err(|_| Fault::Refused("attempts have no text"))
}

/// Writes what has happened to a webhook, within the caller's transaction. Tells whether its dead letters have changed. Of one
/// that the file does not have, nothing is written: the caller sees to that.
///
/// # Errors
///
/// When some of it cannot be written; the caller undoes the rest.
pub(super) fn write_journal(connection: &Connection, id: &str, changes: &Changes) -> Result<bool, Fault> {
    let Some(webhook) = find(connection, id)? else { return Ok(false) };
    if changes.position > webhook.position {
        let mut update = connection.prepare_cached("UPDATE webhooks SET position = ?2 WHERE number = ?1")?;
        update.execute(params![webhook.number, signed(changes.position)])?;
    }
    let mut has_changed = false;
    for (place, fate) in &changes.fates {
        has_changed |= match fate {
            Fate::Settled => webhook.settle(connection, *place)?,
            _ if webhook.is_erased(connection, *place)? => webhook.settle(connection, *place)?,
            Fate::Owed(owed) => webhook.owe(connection, *place, owed)?,
            Fate::Dead(letter) => {
                webhook.settle(connection, *place)?;
                dead_letters::write(connection, webhook.number, *place, letter)?;
                true
            }
        };
    }
    Ok(has_changed)
}

impl Known {
    /// Tells whether a dead letter has gone with it.
    fn settle(&self, connection: &Connection, place: u64) -> Result<bool, Fault> {
        let key = params![self.number, signed(place)];
        connection.prepare_cached("DELETE FROM owed WHERE webhook = ?1 AND place = ?2")?.execute(key)?;
        // Most webhooks have none: then nobody looks for one.
        let delete = "DELETE FROM dead_letters WHERE webhook = ?1 AND place = ?2";
        Ok(self.has_dead && connection.prepare_cached(delete)?.execute(key)? > 0)
    }

    /// What retention has taken away is dead already, whether or not the worker has heard of it.
    fn owe(&self, connection: &Connection, place: u64, owed: &Owed) -> Result<bool, Fault> {
        let Owed { delivery, next_attempt_at } = owed;
        let mut upsert = connection.prepare_cached(
            "INSERT OR REPLACE INTO owed \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM products WHERE number = ?11 AND evicted_through < ?2",
        )?;
        upsert.execute(params![
            self.number,
            signed(place),
            delivery.event_id.epoch.cast_signed(),
            delivery.event_id.sequence.cast_signed(),
            delivery.event_id.suffix,
            delivery.kind.as_str(),
            delivery.session.as_ref().map(SessionId::as_str),
            signed(delivery.created_at),
            next_attempt_at.map(signed),
            write_attempts(&delivery.attempts)?,
            self.product,
        ])?;
        Ok(false)
    }

    /// Whether the event of a place has been erased since the worker took it: what should be in the file and is not. Then the
    /// worker's copy must not bring it back.
    fn is_erased(&self, connection: &Connection, place: u64) -> Result<bool, Fault> {
        let mut statement = connection.prepare_cached(
            "SELECT 1 FROM products WHERE number = ?1 AND ?2 > evicted_through AND ?2 <= newest \
             AND NOT EXISTS (SELECT 1 FROM entries WHERE entry = ?3) \
             AND NOT EXISTS (SELECT 1 FROM missing WHERE product = ?1 AND ?2 BETWEEN first AND last)",
        )?;
        Ok(statement.exists(params![self.product, signed(place), address(self.product, place)?])?)
    }
}

/// A scope as it is stored. None is no limit.
#[derive(serde::Deserialize, serde::Serialize)]
struct ScopeText {
    sessions: Option<BTreeSet<String>>,
    kinds: Option<BTreeSet<String>>,
}

fn write_scope(scope: &Scope) -> Result<String, Fault> {
    let text =
        ScopeText { sessions: texts(&scope.sessions, SessionId::as_str), kinds: texts(&scope.kinds, Kind::as_str) };
    serde_json::to_string(&text).map_err(|_| Fault::Refused("a scope has no text"))
}

fn texts<T>(only: &Only<T>, text: impl Fn(&T) -> &str) -> Option<BTreeSet<String>> {
    match only {
        Only::Everything => None,
        Only::These(these) => Some(these.iter().map(|it| text(it).to_owned()).collect()),
    }
}

/// Reads what [`write_scope`] has written.
///
/// # Errors
///
/// When it has not.
pub(super) fn read_scope(text: &str) -> Result<Scope, Fault> {
    let text: ScopeText = serde_json::from_str(text).map_err(|_| Fault::found("a webhook's scope is none"))?;
    let sessions = text.sessions.map(|these| these.iter().map(|it| SessionId::new(it)).collect::<Result<_, _>>());
    let sessions = sessions.transpose().map_err(|_| Fault::found("a session's name is none"))?;
    let kinds = text.kinds.map(|these| these.iter().map(|it| Kind::new(it)).collect());
    Ok(Scope {
        sessions: sessions.map_or(Only::Everything, Only::These),
        kinds: kinds.map_or(Only::Everything, Only::These),
    })
}
