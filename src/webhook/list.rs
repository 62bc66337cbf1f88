//! Pages of deliveries for the admin API.
//!
//! The worker has owed and accepted deliveries, the store has dead letters. A page of pending
//! deliveries is both: owed deliveries first, requeued dead letters after them.
//!
//! May use: `store`, `webhook_delivery`.

use super::{
    DeliveryPage, DeliveryState, ListedDelivery, WebhookError, Webhooks, worker::WebhookCommand,
};
use crate::{store::DeadLetterState, webhook_delivery::DeadLetter};

impl Webhooks {
    /// Returns up to `limit` deliveries of one state, newest first, behind the cursor `before`,
    /// which is the `next_cursor` of another page.
    ///
    /// # Errors
    ///
    /// If no webhook has this id, the worker has ended, or the store cannot be read.
    pub(crate) async fn deliveries(
        &self,
        id: &str,
        state: DeliveryState,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeliveryPage, WebhookError> {
        let dead_letter_cursor = before
            .filter(|cursor| *cursor >= DEAD_LETTER_CURSOR_BASE)
            .map(|cursor| cursor - DEAD_LETTER_CURSOR_BASE);
        match state {
            DeliveryState::Delivered => self.worker_deliveries(id, state, before, limit).await,
            DeliveryState::Dead => {
                self.dead_letters(id, DeadLetterState::Dead, before, limit).await
            }
            // The base itself is the cursor in front of the first dead letter.
            DeliveryState::Pending if dead_letter_cursor.is_some() => self
                .dead_letters(
                    id,
                    DeadLetterState::Requeued,
                    dead_letter_cursor.filter(|it| *it > 0),
                    limit,
                )
                .await
                .map(DeliveryPage::with_dead_letter_cursor),
            DeliveryState::Pending => {
                let mut page = self.worker_deliveries(id, state, before, limit).await?;
                if page.next_cursor.is_none() {
                    // Owed deliveries are exhausted: requeued dead letters follow. At least one is
                    // asked for, which tells a full page whether another page follows.
                    let remaining = limit.saturating_sub(page.deliveries.len()).max(1);
                    let requeued = self
                        .dead_letters(id, DeadLetterState::Requeued, None, remaining)
                        .await?
                        .with_dead_letter_cursor();
                    match page.deliveries.len() + requeued.deliveries.len() > limit {
                        true => page.next_cursor = Some(DEAD_LETTER_CURSOR_BASE),
                        false => {
                            page.deliveries.extend(requeued.deliveries);
                            page.next_cursor = requeued.next_cursor;
                        }
                    }
                }
                Ok(page)
            }
        }
    }

    async fn worker_deliveries(
        &self,
        id: &str,
        state: DeliveryState,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeliveryPage, WebhookError> {
        self.send_command(id, |reply| WebhookCommand::List { state, before, limit, reply }).await
    }

    async fn dead_letters(
        &self,
        id: &str,
        which: DeadLetterState,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeliveryPage, WebhookError> {
        self.handle(id)?;
        let dead_letters = self
            .store()
            .dead_letters(id, which, before, limit)
            .await
            .map_err(|_| WebhookError::StoreUnavailable)?;
        // The store bounds a page by bytes too, so a short page does not mean the end.
        let next = match dead_letters.last() {
            Some((last, _)) => self.next_dead_letter_cursor(id, which, *last).await?,
            None => None,
        };
        let listed = |dead_letter: DeadLetter| match which {
            DeadLetterState::Dead => ListedDelivery::Dead(dead_letter),
            DeadLetterState::Requeued => ListedDelivery::Pending(dead_letter.delivery, None),
        };
        Ok(DeliveryPage {
            deliveries: dead_letters
                .into_iter()
                .map(|(_, dead_letter)| listed(dead_letter))
                .collect(),
            next_cursor: next,
        })
    }

    /// Returns the cursor behind the dead letter `last`, if more follow.
    async fn next_dead_letter_cursor(
        &self,
        id: &str,
        which: DeadLetterState,
        last: u64,
    ) -> Result<Option<u64>, WebhookError> {
        let more = self
            .store()
            .dead_letters(id, which, Some(last), 1)
            .await
            .map_err(|_| WebhookError::StoreUnavailable)?;
        Ok((!more.is_empty()).then_some(last))
    }
}

impl DeliveryPage {
    /// Marks the cursor as one of dead letters: see [`DEAD_LETTER_CURSOR_BASE`].
    fn with_dead_letter_cursor(self) -> Self {
        Self {
            next_cursor: self.next_cursor.map(|cursor| cursor + DEAD_LETTER_CURSOR_BASE),
            ..self
        }
    }
}

/// Cursors from here on belong to dead letters, lower ones to owed deliveries. No position reaches
/// 2⁶², so one number tells the two apart.
const DEAD_LETTER_CURSOR_BASE: u64 = 1 << 62;
