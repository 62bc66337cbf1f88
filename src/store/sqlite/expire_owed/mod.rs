//! Turns owed deliveries into dead letters in the transaction in which retention deletes their
//! events.
//!
//! May use: `event`, `webhook_delivery`.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use rusqlite::{Connection, Row, params};

use super::{
    checksum::entry_sum,
    dead_letters::insert_dead_letter,
    entry_row::{EntryHead, EntryRow},
    error::FileFault,
    rows::{read_delivery, read_scope, read_unsigned, signed},
    schema::{entry_key, position_of},
    unread_users::entry_user,
};
use crate::{
    event::{Kind, Only, Scope, ScopeKey, SessionId, UserId},
    webhook_delivery::{DeadLetter, DeadLetterReason, Delivery},
};

/// Deliveries that one webhook was owed for too long.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ExpiredDeliveries {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Number of new dead letters.
    pub(crate) dead_letters: u64,
    /// Number of further dead letters, without a body: the event's row did not fit its checksum.
    pub(crate) damaged: u64,
    /// Number of owed deliveries whose event the file never had, or whose rows do not say what they
    /// were. They are deleted.
    pub(crate) lost: u64,
}

/// Dead letters that were inserted, by kind, and deliveries that could not become any.
#[derive(Default)]
struct NewDeadLetters {
    expired: u64,
    damaged: u64,
    lost: u64,
}

impl NewDeadLetters {
    /// Inserts a dead letter, unless the webhook has one of this position.
    fn insert(
        &mut self,
        connection: &Connection,
        webhook: i64,
        delivery: Delivery,
        payload: Option<Bytes>,
        died_at: u64,
    ) -> Result<(), FileFault> {
        let position = delivery.position;
        let mut known = connection
            .prepare_cached("SELECT 1 FROM dead_letters WHERE webhook = ?1 AND place = ?2")?;
        if known.exists(params![webhook, signed(position)])? {
            return Ok(());
        }
        let (count, reason) = match payload {
            Some(_) => (&mut self.expired, DeadLetterReason::Expired),
            None => (&mut self.damaged, DeadLetterReason::Damaged),
        };
        *count += 1;
        let payload = payload.unwrap_or_default();
        let dead_letter = DeadLetter { delivery, reason, died_at, payload };
        insert_dead_letter(connection, webhook, position, &dead_letter)
    }

    fn and(self, other: &Self) -> Self {
        Self {
            expired: self.expired + other.expired,
            damaged: self.damaged + other.damaged,
            lost: self.lost + other.lost,
        }
    }
}

/// Returns the delivery of an event that has not been attempted.
fn delivery_of(position: u64, head: EntryHead) -> Delivery {
    let EntryHead { id, kind, session, kept_at } = head;
    Delivery { position, event_id: id, kind, session, created_at: kept_at, attempts: Vec::new() }
}

/// Returns the number of webhooks that have not passed `through` in this product, or are owed a
/// delivery up to there. [`expire_owed`] does nothing for the others.
///
/// # Errors
///
/// When the file cannot be read.
pub(super) fn count_affected_webhooks(
    connection: &Connection,
    product: u32,
    through: u64,
) -> Result<u64, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FROM webhooks WHERE product = ?1 \
         AND (position < ?2 OR EXISTS (SELECT 1 FROM owed WHERE webhook = number AND place <= ?2))",
    )?;
    let mut rows = statement.query(params![product, signed(through)])?;
    rows.next()?.map_or(Ok(0), |row| read_unsigned(row, 0))
}

/// Makes dead letters, at `now`, of the deliveries that are owed of a product's entries up to
/// `through`, and moves every webhook's position there. Returns the webhooks whose rows changed.
///
/// Called before the entries are deleted, in the same transaction: the payloads come from them.
///
/// # Errors
///
/// When a part of it cannot be written; the caller rolls the transaction back.
pub(super) fn expire_owed(
    connection: &Connection,
    product: u32,
    through: u64,
    now: i64,
) -> Result<Vec<ExpiredDeliveries>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, id, scope, position FROM webhooks WHERE product = ?1 \
         AND (position < ?2 OR EXISTS (SELECT 1 FROM owed WHERE webhook = number AND place <= ?2))",
    )?;
    let affected =
        statement.query_and_then(params![product, signed(through)], ExpiringWebhook::read)?;
    let webhooks: Result<Vec<ExpiringWebhook>, FileFault> = affected.collect();
    let mut expired = Vec::new();
    for webhook in webhooks? {
        let died_at = now.max(0).cast_unsigned();
        let owed = webhook.insert_owed_dead_letters(connection, product, through, died_at)?;
        let unreached =
            webhook.insert_unreached_dead_letters(connection, product, through, died_at)?;
        let (had_owed, lost) = webhook.delete_owed(connection, through)?;
        let new = owed.and(&unreached);
        if new.expired + new.damaged + new.lost > 0 || had_owed || webhook.position < through {
            expired.push(ExpiredDeliveries {
                id: webhook.id,
                dead_letters: new.expired,
                damaged: new.damaged,
                lost: lost + new.lost,
            });
        }
    }
    let mut update = connection.prepare_cached(
        "UPDATE webhooks SET position = ?2, sum = row_sum(id, product, scope, definition, ?2) \
         WHERE product = ?1 AND position < ?2",
    )?;
    update.execute(params![product, signed(through)])?;
    Ok(expired)
}

struct ExpiringWebhook {
    number: i64,
    id: String,
    scope: Scope,
    position: u64,
}

impl ExpiringWebhook {
    fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        let scope = read_scope(row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?)?;
        Ok(Self { number: row.get(0)?, id: row.get(1)?, scope, position: read_unsigned(row, 3)? })
    }

    /// Inserts dead letters for deliveries that the webhook has passed and not settled. A delivery
    /// that is a dead letter already, marked for redelivery, stays the dead letter that it is.
    fn insert_owed_dead_letters(
        &self,
        connection: &Connection,
        product: u32,
        through: u64,
        now: u64,
    ) -> Result<NewDeadLetters, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT place, epoch, sequence, suffix, kind, session, created_at, attempts, \
             sum IS row_sum(webhook, place, epoch, sequence, suffix, kind, session, created_at, next_attempt_at, \
             attempts) FROM owed WHERE webhook = ?1 AND place <= ?2",
        )?;
        let mut rows = statement.query(params![self.number, signed(through)])?;
        let mut new = NewDeadLetters::default();
        while let Some(row) = rows.next()? {
            let position = read_unsigned(row, 0)?;
            let Some(entry) = EntryRow::find(connection, entry_key(product, position)?)? else {
                continue;
            };
            let is_whole: bool = row.get(8)?;
            let delivery = match (is_whole, entry.head) {
                (true, _) => read_delivery(row)?,
                (false, Some(head)) => delivery_of(position, head),
                // Neither row says what is owed: the delivery counts as lost.
                (false, None) => continue,
            };
            new.insert(connection, self.number, delivery, entry.payload, now)?;
        }
        Ok(new)
    }

    /// Inserts dead letters for events behind the webhook's position: all that the scope admits are
    /// owed. An event that is a dead letter already stays the dead letter that it is.
    fn insert_unreached_dead_letters(
        &self,
        connection: &Connection,
        product: u32,
        through: u64,
        now: u64,
    ) -> Result<NewDeadLetters, FileFault> {
        let mut new = NewDeadLetters::default();
        if self.position >= through {
            return Ok(new);
        }
        let range = [entry_key(product, self.position)?, entry_key(product, through)?];
        let mut headers = connection.prepare_cached(concat!(
            "SELECT entry, kind, session, head_sum IS ",
            entry_sum!(),
            ", ",
            entry_user!(),
            ", after_or_user IS NULL AND payload_sum IS NOT row_sum(entry, payload) \
             FROM entries WHERE entry > ?1 AND entry <= ?2 AND payload IS NOT NULL"
        ))?;
        let mut rows = headers.query(range)?;
        while let Some(row) = rows.next()? {
            let entry: i64 = row.get(0)?;
            let is_user_unknown = self.scope.users != Only::Everything && row.get(5)?;
            if !row.get::<_, bool>(3)? || is_user_unknown {
                // The scope may have admitted it: its columns do not tell.
                new.lost += 1;
                continue;
            }
            if self.admits_row(row)?
                && let Some(EntryRow { head: Some(head), payload }) =
                    EntryRow::find(connection, entry)?
            {
                let delivery = delivery_of(position_of(entry), head);
                new.insert(connection, self.number, delivery, payload, now)?;
            }
        }
        Ok(new)
    }

    /// Decides as [`Scope::admits`] does, for a row with a kind, a session and a user.
    fn admits_row(&self, row: &Row<'_>) -> Result<bool, FileFault> {
        let kind = Kind::new(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
        let session = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let user = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = session.and_then(|it| SessionId::new(it).ok());
        let user = user.and_then(|it| UserId::new(it).ok());
        let key = ScopeKey { session: session.as_ref(), user: user.as_ref(), kind: &kind };
        Ok(self.scope.includes(key))
    }

    /// Deletes the owed deliveries up to `through`. Returns whether there were any, and how many of
    /// them did not become dead letters because the file had no event.
    fn delete_owed(&self, connection: &Connection, through: u64) -> Result<(bool, u64), FileFault> {
        let key = params![self.number, signed(through)];
        let mut lost = connection.prepare_cached(
            "SELECT count(*) FROM owed WHERE webhook = ?1 AND place <= ?2 AND NOT EXISTS ( \
                 SELECT 1 FROM dead_letters WHERE webhook = owed.webhook AND place = owed.place)",
        )?;
        let mut rows = lost.query(key)?;
        let lost = rows.next()?.map_or(Ok(0), |row| read_unsigned(row, 0))?;
        let mut delete =
            connection.prepare_cached("DELETE FROM owed WHERE webhook = ?1 AND place <= ?2")?;
        Ok((delete.execute(key)? > 0, lost))
    }
}
