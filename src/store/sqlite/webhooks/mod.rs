//! The file's rows of webhooks: registrations, positions, and owed deliveries.
//!
//! May use: `event`, `webhook_delivery`.

#[cfg(test)]
pub(super) mod tests;

use rusqlite::{Connection, Row, params};

use super::{
    FileError, StoreFile, SyncMode, dead_letters,
    entry_row::{EntryHead, EntryRow},
    error::FileFault,
    file::set_synced,
    products::{insert_product, product_number},
    rows::{read_delivery, read_unsigned, require_whole, signed, write_attempts, write_scope},
    schema::entry_key,
};
use crate::{
    event::{ProductId, SessionId},
    store::webhook_rows::{
        DeliveryChange, OwedDelivery, StoredWebhook, WebhookChanges, WebhookRegistration,
    },
    webhook_delivery::Delivery,
};

/// Result of [`StoreFile::register`].
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct RegistrationOutcome {
    /// Whether the file had no webhook of this id and product.
    pub(crate) is_new: bool,
    /// Number of dead letters and owed deliveries that were deleted, because the webhook of this id
    /// belonged to another product.
    pub(crate) forgotten: u64,
    /// Position up to which every event is settled, owed or dead. A new webhook's position is no
    /// higher than the newest position that the file has of the log.
    pub(crate) position: u64,
}

/// Numbers of one webhook's dead letters.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct DeadLetterCounts {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Number of dead letters that are not marked for redelivery.
    pub(crate) dead: u64,
    /// Number of dead letters that are marked for redelivery.
    pub(crate) requeued: u64,
}

impl StoreFile {
    /// Stores a webhook, or changes everything stored of it but its position. The change is on the
    /// disk when this returns.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn register(
        &mut self,
        webhook: &WebhookRegistration,
        now: u64,
    ) -> Result<RegistrationOutcome, FileError> {
        let registered = self.in_transaction(SyncMode::Full, |connection| {
            set_synced(connection, now)?;
            upsert_webhook(connection, webhook)
        });
        registered.map_err(|fault| fault.at(&self.path, "register a webhook in"))
    }

    /// Deletes a webhook, its owed deliveries and its dead letters, a step at a time. Returns
    /// whether nothing is left; if not, the caller calls again.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn unregister(&mut self, id: &str, now: u64) -> Result<bool, FileError> {
        let forgotten = self.in_transaction(SyncMode::Full, |connection| {
            set_synced(connection, now)?;
            match find_webhook(connection, id)? {
                Some(webhook) => Ok(delete_some_rows(connection, webhook.number)? == 0
                    && delete_webhook(connection, webhook.number)?),
                None => Ok(true),
            }
        });
        forgotten.map_err(|fault| fault.at(&self.path, "unregister a webhook in"))
    }

    /// Returns every webhook with its owed deliveries.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn webhooks(&self) -> Result<Vec<StoredWebhook>, FileError> {
        read_webhooks(&self.connection).map_err(|fault| fault.at(&self.path, "read webhooks from"))
    }

    /// Returns the numbers of every webhook's dead letters.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn dead_letter_counts(&self) -> Result<Vec<DeadLetterCounts>, FileError> {
        read_dead_letter_counts(&self.connection)
            .map_err(|fault| fault.at(&self.path, "count dead letters in"))
    }
}

/// Row of one webhook.
struct WebhookRow {
    number: i64,
    product: u32,
    position: u64,
    /// Whether the webhook has dead letters, requeued or not.
    has_dead: bool,
}

fn find_webhook(connection: &Connection, id: &str) -> Result<Option<WebhookRow>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, product, position, dead + requeued > 0 FROM webhooks WHERE id = ?1",
    )?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(WebhookRow {
        number: row.get(0)?,
        product: row.get(1)?,
        position: read_unsigned(row, 2)?,
        has_dead: row.get(3)?,
    }))
}

fn upsert_webhook(
    connection: &Connection,
    webhook: &WebhookRegistration,
) -> Result<RegistrationOutcome, FileFault> {
    if product_number(connection, &webhook.product)?.is_none() {
        insert_product(connection, &webhook.product)?;
    }
    let product = product_number(connection, &webhook.product)?
        .ok_or_else(|| FileFault::damage("a product's row is missing"))?;
    let scope = write_scope(&webhook.scope)?;
    let existing = find_webhook(connection, &webhook.id)?;
    if let Some(WebhookRow { number, position, .. }) =
        existing.as_ref().filter(|known| known.product == product)
    {
        let mut update = connection.prepare_cached(
            "UPDATE webhooks SET scope = ?2, definition = ?3, sum = row_sum(id, product, ?2, ?3, position) \
             WHERE number = ?1",
        )?;
        update.execute(params![number, scope, webhook.definition])?;
        return Ok(RegistrationOutcome { is_new: false, forgotten: 0, position: *position });
    }
    // Positions of one product's log mean nothing in another's, so the old rows are deleted.
    let forgotten = existing
        .map(|known| delete_webhook_and_rows(connection, known.number))
        .transpose()?
        .unwrap_or(0);
    let mut insert = connection.prepare_cached(
        "INSERT INTO webhooks (id, product, scope, definition, position, dead, requeued, dead_bytes, sum) \
         VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, 0, row_sum(?1, ?2, ?3, ?4, ?5))",
    )?;
    // Entries behind the file's newest position may be lost in a crash although readers have seen
    // them. Their positions are then given to other events, which a webhook with a higher position
    // would skip.
    let position = webhook.position.min(newest_position(connection, product)?);
    insert.execute(params![&*webhook.id, product, scope, webhook.definition, signed(position)])?;
    Ok(RegistrationOutcome { is_new: true, forgotten, position })
}

/// Returns the newest position that the file has of a product's log.
fn newest_position(connection: &Connection, product: u32) -> Result<u64, FileFault> {
    let mut statement =
        connection.prepare_cached("SELECT newest FROM products WHERE number = ?1")?;
    let mut rows = statement.query([product])?;
    rows.next()?.map_or(Ok(0), |row| read_unsigned(row, 0))
}

fn delete_webhook_and_rows(connection: &Connection, number: i64) -> Result<u64, FileFault> {
    let mut forgotten = 0;
    loop {
        match delete_some_rows(connection, number)? {
            0 => break,
            some => forgotten += some,
        }
    }
    delete_webhook(connection, number)?;
    Ok(forgotten)
}

/// Deletes some of a webhook's rows, and returns their number: a step that takes milliseconds.
fn delete_some_rows(connection: &Connection, number: i64) -> Result<u64, FileFault> {
    let mut forgotten = 0;
    for delete in [
        "DELETE FROM dead_letters WHERE number IN (SELECT number FROM dead_letters WHERE webhook = ?1 LIMIT ?2)",
        "DELETE FROM owed WHERE webhook = ?1 AND place IN (SELECT place FROM owed WHERE webhook = ?1 LIMIT ?2)",
    ] {
        forgotten += connection
            .prepare_cached(delete)?
            .execute(params![number, dead_letters::DEAD_LETTER_STEP_ROWS])?;
    }
    Ok(forgotten as u64)
}

/// Deletes a webhook that has no other rows. Returns true, for [`StoreFile::unregister`].
fn delete_webhook(connection: &Connection, number: i64) -> Result<bool, FileFault> {
    connection.execute("DELETE FROM webhooks WHERE number = ?1", [number])?;
    Ok(true)
}

fn read_dead_letter_counts(connection: &Connection) -> Result<Vec<DeadLetterCounts>, FileFault> {
    let mut statement = connection.prepare_cached("SELECT id, dead, requeued FROM webhooks")?;
    let read = |row: &Row<'_>| {
        Ok(DeadLetterCounts {
            id: row.get(0)?,
            // Under no checksum: the check corrects one that is damaged.
            dead: row.get::<_, i64>(1)?.max(0).cast_unsigned(),
            requeued: row.get::<_, i64>(2)?.max(0).cast_unsigned(),
        })
    };
    statement.query_and_then([], read)?.collect()
}

fn read_webhooks(connection: &Connection) -> Result<Vec<StoredWebhook>, FileFault> {
    let mut statement = connection.prepare(
        "SELECT webhooks.number, webhooks.id, products.id, definition, position, product, \
         webhooks.sum IS row_sum(webhooks.id, product, scope, definition, position) \
         FROM webhooks LEFT JOIN products ON products.number = product ORDER BY webhooks.number",
    )?;
    let mut rows = statement.query([])?;
    let mut webhooks = Vec::new();
    while let Some(row) = rows.next()? {
        require_whole(row, 6, "a webhook's row")?;
        let product = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        webhooks.push(StoredWebhook {
            id: row.get(1)?,
            product: ProductId::new(product)
                .map_err(|_| FileFault::damage("a product's id is invalid"))?,
            definition: row.get(3)?,
            position: read_unsigned(row, 4)?,
            owed: read_owed(connection, row.get(0)?, row.get(5)?)?,
        });
    }
    Ok(webhooks)
}

/// Reads what a webhook is owed. A row that does not fit its checksum is made again from its event:
/// only its attempts are forgotten. One of which nothing is known is left out, and counted as lost
/// by retention.
fn read_owed(
    connection: &Connection,
    number: i64,
    product: u32,
) -> Result<Vec<OwedDelivery>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT place, epoch, sequence, suffix, kind, session, created_at, attempts, next_attempt_at, \
         sum IS row_sum(webhook, place, epoch, sequence, suffix, kind, session, created_at, next_attempt_at, \
         attempts), key_sum IS row_sum(webhook, place) FROM owed WHERE webhook = ?1 ORDER BY place",
    )?;
    let mut rows = statement.query([number])?;
    let (mut owed, mut rebuilt, mut unknown) = (Vec::new(), 0, 0);
    while let Some(row) = rows.next()? {
        if row.get(9)? {
            let next_attempt_at = row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned);
            owed.push(OwedDelivery { delivery: read_delivery(row)?, next_attempt_at });
            continue;
        }
        let is_key_whole: bool = row.get(10)?;
        let event = match is_key_whole {
            true => rebuild_owed(connection, product, read_unsigned(row, 0)?)?,
            false => None,
        };
        (rebuilt, unknown) = match event {
            Some(_) => (rebuilt + 1, unknown),
            None => (rebuilt, unknown + 1),
        };
        owed.extend(event);
    }
    if rebuilt > 0 {
        tracing::error!(
            deliveries = rebuilt,
            "deliveries that are owed do not fit their checksum: their attempts are forgotten"
        );
    }
    if unknown > 0 {
        tracing::error!(
            deliveries = unknown,
            "deliveries that are owed are damaged, and so are their events: they are lost"
        );
    }
    Ok(owed)
}

/// Returns the delivery of an event whose owed row is damaged, unless the event's row is, too.
fn rebuild_owed(
    connection: &Connection,
    product: u32,
    position: u64,
) -> Result<Option<OwedDelivery>, FileFault> {
    let entry = EntryRow::find(connection, entry_key(product, position)?)?;
    let Some(EntryHead { id, kind, session, kept_at }) = entry.and_then(|entry| entry.head) else {
        return Ok(None);
    };
    let delivery = Delivery {
        position,
        event_id: id,
        kind,
        session,
        created_at: kept_at,
        attempts: Vec::new(),
    };
    Ok(Some(OwedDelivery { delivery, next_attempt_at: None }))
}

/// Writes a webhook's journal within the caller's transaction, and returns whether its dead letters
/// changed. Writes nothing for a webhook without a row; the writer rejects such journals before.
///
/// # Errors
///
/// When a part of it cannot be written; the caller rolls the transaction back.
pub(super) fn write_journal(
    connection: &Connection,
    id: &str,
    changes: &WebhookChanges,
) -> Result<bool, FileFault> {
    let Some(webhook) = find_webhook(connection, id)? else { return Ok(false) };
    if changes.position > webhook.position {
        let mut update = connection.prepare_cached(
            "UPDATE webhooks SET position = ?2, sum = row_sum(id, product, scope, definition, ?2) WHERE number = ?1",
        )?;
        update.execute(params![webhook.number, signed(changes.position)])?;
    }
    let mut has_changed = false;
    for (position, change) in &changes.deliveries {
        has_changed |= match change {
            DeliveryChange::Settled => webhook.delete_delivery(connection, *position)?,
            _ if webhook.event_is_erased(connection, *position)? => {
                webhook.delete_delivery(connection, *position)?
            }
            DeliveryChange::Owed(owed) => webhook.upsert_owed(connection, *position, owed)?,
            DeliveryChange::Dead(dead_letter) => {
                webhook.delete_delivery(connection, *position)?;
                dead_letters::insert_dead_letter(
                    connection,
                    webhook.number,
                    *position,
                    dead_letter,
                )?;
                true
            }
        };
    }
    Ok(has_changed)
}

impl WebhookRow {
    /// Deletes a delivery, and returns whether a dead letter was deleted with it.
    fn delete_delivery(&self, connection: &Connection, position: u64) -> Result<bool, FileFault> {
        let key = params![self.number, signed(position)];
        connection
            .prepare_cached("DELETE FROM owed WHERE webhook = ?1 AND place = ?2")?
            .execute(key)?;
        // Most webhooks have no dead letters: one look-up in an index less per delivery.
        let delete = "DELETE FROM dead_letters WHERE webhook = ?1 AND place = ?2";
        Ok(self.has_dead && connection.prepare_cached(delete)?.execute(key)? > 0)
    }

    /// Stores an owed delivery, unless retention has deleted its event: the delivery is a dead
    /// letter then, even if the worker has not taken the notice yet.
    fn upsert_owed(
        &self,
        connection: &Connection,
        position: u64,
        owed: &OwedDelivery,
    ) -> Result<bool, FileFault> {
        let OwedDelivery { delivery, next_attempt_at } = owed;
        let mut upsert = connection.prepare_cached(
            "INSERT OR REPLACE INTO owed \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, row_sum(?1, ?2), \
             row_sum(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
             FROM products WHERE number = ?11 AND evicted_through < ?2",
        )?;
        upsert.execute(params![
            self.number,
            signed(position),
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

    /// Returns whether the event at a position has been erased since the worker read it. The
    /// worker's copy must not bring the event back then.
    fn event_is_erased(&self, connection: &Connection, position: u64) -> Result<bool, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT 1 FROM ( \
                 SELECT last FROM erased WHERE product = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1) \
             WHERE last >= ?2",
        )?;
        Ok(statement.exists(params![self.product, signed(position)])?)
    }
}
