//! Deliveries in pages: what is owed and was accepted is the worker's, dead letters are the store's.
//!
//! May use: `delivery`, `log`, the registry and its workers.

use super::{DeliveryState, Listed, Page, WebhookError, Webhooks, worker::Order};
use crate::{store::Letters, webhook_delivery::DeadLetter};

impl Webhooks {
    /// Deliveries of one state, newest first: at most `most` of those behind the mark `before`, which is that of a page's
    /// `next`.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be read.
    pub(crate) async fn deliveries(
        &self,
        id: &str,
        state: DeliveryState,
        before: Option<u64>,
        most: usize,
    ) -> Result<Page, WebhookError> {
        let letters_before = before.filter(|mark| *mark >= LETTERS).map(|mark| mark - LETTERS);
        match state {
            DeliveryState::Delivered => self.listed(id, state, before, most).await,
            DeliveryState::Dead => self.letters(id, Letters::Dead, before, most).await,
            DeliveryState::Pending if letters_before.is_some() => {
                self.letters(id, Letters::Requeued, letters_before.filter(|it| *it > 0), most).await.map(Page::marked)
            }
            DeliveryState::Pending => {
                let mut page = self.listed(id, state, before, most).await?;
                if page.next.is_none() {
                    // What is delivered again comes behind what never was.
                    let room = most.saturating_sub(page.deliveries.len()).max(1);
                    let again = self.letters(id, Letters::Requeued, None, room).await?.marked();
                    match page.deliveries.len() + again.deliveries.len() > most {
                        true => page.next = Some(LETTERS),
                        false => {
                            page.deliveries.extend(again.deliveries);
                            page.next = again.next;
                        }
                    }
                }
                Ok(page)
            }
        }
    }

    async fn listed(
        &self,
        id: &str,
        state: DeliveryState,
        before: Option<u64>,
        most: usize,
    ) -> Result<Page, WebhookError> {
        self.order(id, |answer| Order::List { state, before, most, answer }).await
    }

    async fn letters(&self, id: &str, which: Letters, before: Option<u64>, most: usize) -> Result<Page, WebhookError> {
        self.known(id)?;
        let letters = self.desk().dead_letters(id, which, before, most).await.map_err(|_| WebhookError::Store)?;
        // Fewer than were asked for may be all that fits one page.
        let next = match letters.last() {
            Some((last, _)) => self.letter_before(id, which, *last).await?,
            None => None,
        };
        let listed = |letter: DeadLetter| match which {
            Letters::Dead => Listed::Dead(letter),
            Letters::Requeued => Listed::Pending(letter.delivery, None),
        };
        Ok(Page { deliveries: letters.into_iter().map(|(_, letter)| listed(letter)).collect(), next })
    }

    /// The mark behind which a page begins that follows the letter `last`, if there are more.
    async fn letter_before(&self, id: &str, which: Letters, last: u64) -> Result<Option<u64>, WebhookError> {
        let more = self.desk().dead_letters(id, which, Some(last), 1).await.map_err(|_| WebhookError::Store)?;
        Ok((!more.is_empty()).then_some(last))
    }
}

impl Page {
    /// The same with a mark that tells letters from what never was one.
    fn marked(self) -> Self {
        Self { next: self.next.map(|mark| mark + LETTERS), ..self }
    }
}

/// Marks in lists from here on are those of letters: no place is as high.
const LETTERS: u64 = 1 << 62;
