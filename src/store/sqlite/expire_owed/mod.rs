//! Turns owed deliveries into dead letters in the transaction in which retention deletes their
//! events.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use rusqlite::{Connection, Row, params};

use super::{
    error::FileFault,
    rows::{read_scope, read_unsigned, signed},
    schema::{entry_key, position_of},
};
use crate::event::{Kind, Only, Scope, SessionId};

/// Deliveries that one webhook was owed for too long.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ExpiredDeliveries {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Number of new dead letters.
    pub(crate) dead_letters: u64,
    /// Number of owed deliveries whose event the file never had. They are deleted.
    pub(crate) lost: u64,
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
        let dead_letters = webhook.insert_owed_dead_letters(connection, product, through, now)?;
        let dead_letters = dead_letters
            + webhook.insert_unreached_dead_letters(connection, product, through, now)?;
        let (had_owed, lost) = webhook.delete_owed(connection, through)?;
        if dead_letters > 0 || had_owed || webhook.position < through {
            expired.push(ExpiredDeliveries { id: webhook.id, dead_letters, lost });
        }
    }
    let mut update = connection
        .prepare_cached("UPDATE webhooks SET position = ?2 WHERE product = ?1 AND position < ?2")?;
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
        now: i64,
    ) -> Result<u64, FileFault> {
        let mut insert = connection.prepare_cached(
            "INSERT INTO dead_letters (webhook, place, epoch, sequence, suffix, kind, session, created_at, died_at, \
             reason, requeued, attempts, payload) \
             SELECT webhook, place, owed.epoch, owed.sequence, owed.suffix, owed.kind, owed.session, created_at, ?4, \
             'expired', 0, attempts, payload \
             FROM owed CROSS JOIN entries ON entry = ?1 + place AND payload IS NOT NULL \
             WHERE webhook = ?2 AND place <= ?3 \
             ON CONFLICT (webhook, place) DO NOTHING",
        )?;
        Ok(insert.execute(params![entry_key(product, 0)?, self.number, signed(through), now])?
            as u64)
    }

    /// Inserts dead letters for events behind the webhook's position: all that the scope admits are
    /// owed. An event that is a dead letter already stays the dead letter that it is.
    fn insert_unreached_dead_letters(
        &self,
        connection: &Connection,
        product: u32,
        through: u64,
        now: i64,
    ) -> Result<u64, FileFault> {
        if self.position >= through {
            return Ok(0);
        }
        let range = [entry_key(product, self.position)?, entry_key(product, through)?];
        let mut headers = connection.prepare_cached(
            "SELECT entry, kind, session FROM entries WHERE entry > ?1 AND entry <= ?2 AND payload IS NOT NULL",
        )?;
        let mut insert = connection.prepare_cached(
            "INSERT INTO dead_letters (webhook, place, epoch, sequence, suffix, kind, session, created_at, died_at, \
             reason, requeued, attempts, payload) \
             SELECT ?1, ?2, epoch, sequence, suffix, kind, session, kept_at, ?4, 'expired', 0, '[]', payload \
             FROM entries WHERE entry = ?3 \
             ON CONFLICT (webhook, place) DO NOTHING",
        )?;
        let mut rows = headers.query(range)?;
        let mut dead_letters = 0;
        while let Some(row) = rows.next()? {
            let entry: i64 = row.get(0)?;
            if self.admits_row(row)? {
                dead_letters +=
                    insert.execute(params![self.number, signed(position_of(entry)), entry, now])?;
            }
        }
        Ok(dead_letters as u64)
    }

    /// Decides as [`Scope::admits`] does, for a row with a kind and a session.
    fn admits_row(&self, row: &Row<'_>) -> Result<bool, FileFault> {
        let kind = Kind::new(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
        let of_session = match &self.scope.sessions {
            Only::Everything => true,
            Only::These(these) => {
                let session = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
                session
                    .and_then(|it| SessionId::new(it).ok())
                    .is_some_and(|session| these.contains(&session))
            }
        };
        Ok(of_session && self.scope.kinds.admits(&kind))
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
