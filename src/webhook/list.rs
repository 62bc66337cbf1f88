//! Pages of deliveries for the admin API.
//!
//! The worker has owed and accepted deliveries, the store has dead letters. A page of pending
//! deliveries is both: owed deliveries first, requeued dead letters after them.
//!
//! May use: `delivery`, `log`, the registry and its workers.

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
        let letter_cursor = before
            .filter(|cursor| *cursor >= LETTER_CURSOR_BASE)
            .map(|cursor| cursor - LETTER_CURSOR_BASE);
        match state {
            DeliveryState::Delivered => self.worker_deliveries(id, state, before, limit).await,
            DeliveryState::Dead => {
                self.dead_letters(id, DeadLetterState::Dead, before, limit).await
            }
            DeliveryState::Pending if letter_cursor.is_some() => self
                .dead_letters(
                    id,
                    DeadLetterState::Requeued,
                    letter_cursor.filter(|it| *it > 0),
                    limit,
                )
                .await
                .map(DeliveryPage::with_letter_cursor),
            DeliveryState::Pending => {
                let mut page = self.worker_deliveries(id, state, before, limit).await?;
                if page.next_cursor.is_none() {
                    // Owed deliveries are exhausted: requeued dead letters follow. At least one is
                    // asked for, which tells a full page whether another page follows.
                    let remaining = limit.saturating_sub(page.deliveries.len()).max(1);
                    let requeued = self
                        .dead_letters(id, DeadLetterState::Requeued, None, remaining)
                        .await?
                        .with_letter_cursor();
                    match page.deliveries.len() + requeued.deliveries.len() > limit {
                        true => page.next_cursor = Some(LETTER_CURSOR_BASE),
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
        let letters = self
            .store()
            .dead_letters(id, which, before, limit)
            .await
            .map_err(|_| WebhookError::StoreUnavailable)?;
        // The store bounds a page by bytes too, so a short page does not mean the end.
        let next = match letters.last() {
            Some((last, _)) => self.next_letter_cursor(id, which, *last).await?,
            None => None,
        };
        let listed = |letter: DeadLetter| match which {
            DeadLetterState::Dead => ListedDelivery::Dead(letter),
            DeadLetterState::Requeued => ListedDelivery::Pending(letter.delivery, None),
        };
        Ok(DeliveryPage {
            deliveries: letters.into_iter().map(|(_, letter)| listed(letter)).collect(),
            next_cursor: next,
        })
    }

    /// Returns the cursor behind the dead letter `last`, if more follow.
    async fn next_letter_cursor(
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
    /// Marks the cursor as one of dead letters: see [`LETTER_CURSOR_BASE`].
    fn with_letter_cursor(self) -> Self {
        Self { next_cursor: self.next_cursor.map(|cursor| cursor + LETTER_CURSOR_BASE), ..self }
    }
}

/// Cursors from here on belong to dead letters, lower ones to owed deliveries. No position reaches
/// 2⁶², so one number tells the two apart.
const LETTER_CURSOR_BASE: u64 = 1 << 62;
