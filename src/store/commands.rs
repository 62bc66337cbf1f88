//! What the writing thread is asked for beside keeping what the logs have: erasures, products that come and go, and everything
//! that webhooks need.
//!
//! ```text
//! admin API, webhooks ──► orders ───► one after the other, behind what has been committed by then
//! workers ──────────────► journals ─► all that wait in one transaction, with what the logs have for the store
//! ```
//!
//! Each is carried out whether or not anybody waits for the answer.
//!
//! May use: `delivery`, `event`, `metrics`, the logs, the desk, the outbox's words.

use std::{collections::VecDeque, mem, sync::Arc};

use tokio::sync::oneshot;

use super::webhook_rows::{Changes, KeptWebhook, Letters, Registration, Which};
use crate::{
    event::{EventId, ProductId, SessionId},
    log::{
        Bounds, Log,
        backing::{Desk, Unreadable, Unwritable},
    },
    metrics::LogMetrics,
    webhook_delivery::DeadLetter,
};

/// Something to do for the writing thread. Who drops one refuses it.
#[derive(Debug)]
pub(crate) enum Order {
    /// Take a session's events out of the store, and tell how many there were.
    Erase { product: ProductId, session: SessionId, answer: oneshot::Sender<u64> },
    /// Keep a webhook.
    Register { webhook: Box<Registration>, answer: oneshot::Sender<()> },
    /// Forget a webhook and all it has.
    Unregister { id: Box<str>, answer: oneshot::Sender<()> },
    /// Mark dead letters as waiting to be delivered again, and tell how many.
    Requeue { id: Box<str>, left: Left, marked: u64, answer: oneshot::Sender<u64> },
    /// List dead letters.
    DeadLetters { id: Box<str>, page: Page, answer: oneshot::Sender<Vec<(u64, DeadLetter)>> },
    /// List those behind this place that wait to be delivered again.
    Requeued { id: Box<str>, after: u64, most: usize, answer: oneshot::Sender<Vec<DeadLetter>> },
    /// Keep the log of one more product.
    Adopt { product: Box<(ProductId, Bounds, LogMetrics)>, answer: oneshot::Sender<Adopted> },
    /// Keep a product's log no longer, once all of it is kept. What is in the file stays there until retention takes it.
    Release { product: ProductId, answer: oneshot::Sender<()> },
}

/// A product that the store keeps from now on.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// Its log, which goes on where the store has kept it.
    pub(crate) log: Arc<Log>,
    /// Its webhooks that were kept.
    pub(crate) webhooks: Vec<KeptWebhook>,
}

impl Order {
    /// Whether it changes anything.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self, Self::DeadLetters { .. } | Self::Requeued { .. })
    }
}

/// What is left to be requeued.
#[derive(Debug)]
pub(crate) enum Left {
    /// All up to this number, once it is known: what dies meanwhile stays dead.
    All { through: Option<u64> },
    /// These.
    These(VecDeque<EventId>),
}

/// Which dead letters are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// In which state.
    pub(super) letters: Letters,
    /// Before which number.
    pub(super) before: Option<u64>,
    /// How many at the most.
    pub(super) most: usize,
}

/// What has happened to one webhook, to be written down.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Whose.
    pub(super) id: Arc<str>,
    /// What.
    pub(super) changes: Changes,
    answer: oneshot::Sender<Result<(), Changes>>,
}

impl Journal {
    /// Tells that it is written.
    pub(crate) fn accept(self) {
        let _ = self.answer.send(Ok(())); // who asked may have left
    }

    /// Gives it back.
    pub(crate) fn refuse(self) {
        let _ = self.answer.send(Err(self.changes)); // who asked may have left
    }
}

/// Everything that waits for the writing thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    orders: VecDeque<Order>,
    journals: Vec<Journal>,
}

impl Orders {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.journals.is_empty()
    }
}

impl Desk {
    /// Orders that a session's events be taken out of the store, and tells how many there were.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn erase(
        &self,
        product: ProductId,
        session: SessionId,
    ) -> impl Future<Output = Result<u64, Unwritable>> + use<> {
        let erased = self.order(|answer| Order::Erase { product, session, answer });
        async { erased.await.map_err(|_| Unwritable) }
    }

    /// Keeps a webhook, or changes what is kept of one but its position. On the disk when it returns.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn register(&self, webhook: Registration) -> impl Future<Output = Result<(), Unwritable>> + use<> {
        let registered = self.order(|answer| Order::Register { webhook: Box::new(webhook), answer });
        async { registered.await.map_err(|_| Unwritable) }
    }

    /// Forgets a webhook, what is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed. Some of it may be gone.
    pub(crate) fn unregister(&self, id: &str) -> impl Future<Output = Result<(), Unwritable>> + use<> {
        let id = id.into();
        let forgotten = self.order(|answer| Order::Unregister { id, answer });
        async { forgotten.await.map_err(|_| Unwritable) }
    }

    /// Writes down what has happened to a webhook, in one transaction with what else there is to commit.
    ///
    /// # Errors
    ///
    /// The changes come back when the webhook is not registered, and when the store cannot be written now, or is being closed:
    /// none of them is written, or all of them are and nobody knows; they may be written again in any case. None come back from a writing thread that has died.
    pub(crate) fn journal(&self, id: &Arc<str>, changes: Changes) -> impl Future<Output = Result<(), Changes>> + use<> {
        let (answer, written) = oneshot::channel();
        let journal = Journal { id: Arc::clone(id), changes, answer };
        let mut orders = self.orders();
        if self.is_stopping() {
            journal.refuse();
        } else {
            orders.journals.push(journal);
        }
        drop(orders);
        self.there_is_work();
        async { written.await.unwrap_or_else(|_| Err(Changes::default())) }
    }

    /// A webhook's dead letters in this state, newest first, with their numbers: `before` one of these, or the newest. At
    /// most `most`, and about 1 MiB of payloads.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is being closed.
    pub(crate) fn dead_letters(
        &self,
        id: &str,
        letters: Letters,
        before: Option<u64>,
        most: usize,
    ) -> impl Future<Output = Result<Vec<(u64, DeadLetter)>, Unreadable>> + use<> {
        let (id, page) = (id.into(), Page { letters, before, most });
        let found = self.order(|answer| Order::DeadLetters { id, page, answer });
        async { found.await.map_err(|_| Unreadable) }
    }

    /// Marks a webhook's dead letters as waiting to be delivered again, the oldest event first, and returns how many were not.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed. Some of them may be marked.
    pub(crate) fn requeue(&self, id: &str, which: Which) -> impl Future<Output = Result<u64, Unwritable>> + use<> {
        let left = match which {
            Which::All => Left::All { through: None },
            Which::These(events) => Left::These(events.into()),
        };
        let id = id.into();
        let marked = self.order(|answer| Order::Requeue { id, left, marked: 0, answer });
        async { marked.await.map_err(|_| Unwritable) }
    }

    /// A webhook's dead letters behind a place that wait to be delivered again, in the order of their places. At most `most`,
    /// and about 1 MiB of payloads, but one if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is being closed.
    pub(crate) fn requeued(
        &self,
        id: &str,
        after: u64,
        most: usize,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, Unreadable>> + use<> {
        let id = id.into();
        let found = self.order(|answer| Order::Requeued { id, after, most, answer });
        async { found.await.map_err(|_| Unreadable) }
    }

    /// Keeps the log of one more product: the one that is kept of it already, if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn adopt(
        &self,
        product: ProductId,
        bounds: Bounds,
        metrics: LogMetrics,
    ) -> impl Future<Output = Result<Adopted, Unwritable>> + use<> {
        let adopted = self.order(|answer| Order::Adopt { product: Box::new((product, bounds, metrics)), answer });
        async { adopted.await.map_err(|_| Unwritable) }
    }

    /// Keeps a product's log no longer, once all of it is kept.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed: it then goes on keeping the log.
    pub(crate) fn release(&self, product: ProductId) -> impl Future<Output = Result<(), Unwritable>> + use<> {
        let released = self.order(|answer| Order::Release { product, answer });
        async { released.await.map_err(|_| Unwritable) }
    }

    /// Leaves an order for the writing thread, unless the store is being closed.
    fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let mut orders = self.orders();
        // Looked at while nobody can take orders: one that comes after the last look is refused, and none is forgotten.
        if !self.is_stopping() {
            orders.orders.push_back(order(answer));
        }
        drop(orders);
        self.there_is_work();
        answered
    }

    /// The oldest order.
    pub(crate) fn take_order(&self) -> Option<Order> {
        self.orders().orders.pop_front()
    }

    /// Puts back what is left of an order: the next one to be taken.
    pub(crate) fn put_back(&self, order: Order) {
        self.orders().orders.push_front(order);
    }

    /// Everything that is to be written down of webhooks.
    pub(crate) fn take_journals(&self) -> Vec<Journal> {
        mem::take(&mut self.orders().journals)
    }

    /// Refuses everything that waits.
    pub(crate) fn refuse_orders(&self) {
        let refused = mem::take(&mut *self.orders());
        refused.journals.into_iter().for_each(Journal::refuse);
        drop(refused.orders); // who asked is told that it cannot be done
    }
}
