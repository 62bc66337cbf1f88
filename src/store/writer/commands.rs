//! What the writer does with an order, a small step at a time.
//!
//! May use: `event`, `metrics`, the logs, the desk, the file, the orders, the writer's own state.

use std::{sync::Arc, time::Instant};

use super::{MOST_OBEYING, State, Writer, retention::SCRUB_EVERY};
use crate::{
    event::{ProductId, SessionId},
    log::{Bounds, Log},
    metrics::LogMetrics,
    store::{
        commands::{Adopted, Left, Order},
        reserve,
        sqlite::{FileError, STEP},
        unix_ms,
    },
};

impl Writer {
    /// Carries out orders, for a while: what comes meanwhile is to be committed, too.
    pub(super) fn obey(&mut self) -> Result<(), FileError> {
        if matches!(self.state, State::Failed { .. }) {
            self.desk.refuse_orders();
            return Ok(());
        }
        let began = Instant::now();
        while began.elapsed() < MOST_OBEYING
            && let Some(order) = self.desk.take_order()
        {
            self.desk.writes();
            let writes = order.writes();
            if let Some(rest) = self.carry_out(order)? {
                self.desk.put_back(rest);
            }
            if writes {
                self.desk.is_unsynced();
            }
        }
        Ok(())
    }

    /// Does what is ordered, or a part of it, and returns the rest. Who asked may have left by then.
    fn carry_out(&mut self, order: Order) -> Result<Option<Order>, FileError> {
        let State::Open(file) = &mut self.state else { return Ok(Some(order)) };
        match order {
            Order::Erase { product, session, answer } => {
                if let Some(erased) = self.erase(&product, &session)? {
                    let _ = answer.send(erased);
                }
            }
            Order::Register { webhook, answer } => {
                self.webhooks.register(file, *webhook, unix_ms())?;
                let _ = answer.send(());
            }
            Order::Unregister { id, answer } => {
                if !file.unregister(&id, unix_ms())? {
                    return Ok(Some(Order::Unregister { id, answer }));
                }
                self.webhooks.unregister(&id);
                let _ = answer.send(());
            }
            Order::Requeue { id, left, marked, answer } => {
                let (now_marked, left) = self.requeue(&id, left)?;
                let marked = marked + now_marked;
                if let Some(left) = left {
                    return Ok(Some(Order::Requeue { id, left, marked, answer }));
                }
                let _ = answer.send(marked);
            }
            Order::DeadLetters { id, page, answer } => {
                let _ = answer.send(file.dead_letters(&id, page.letters, page.before, page.most)?);
            }
            Order::Requeued { id, after, most, answer } => {
                let _ = answer.send(file.requeued(&id, after, most)?);
            }
            Order::Adopt { product, answer } => {
                let (product, bounds, metrics) = *product;
                if let Some(adopted) = self.adopt(product, bounds, metrics)? {
                    let _ = answer.send(adopted);
                }
            }
            Order::Release { product, answer } => {
                if self.logs.iter().any(|log| *log.product() == product && log.backlog() > 0) {
                    return Ok(Some(Order::Release { product, answer }));
                }
                self.logs.retain(|log| *log.product() != product);
                let _ = answer.send(());
            }
        }
        Ok(None)
    }

    /// Takes a session's events out of the file, and tells how many there were that are not in memory alone. None for a product
    /// that is not ours.
    fn erase(&mut self, product: &ProductId, session: &SessionId) -> Result<Option<u64>, FileError> {
        let State::Open(file) = &mut self.state else { return Ok(None) };
        let Some(log) = self.logs.iter().find(|log| log.product() == product) else { return Ok(None) };
        let Some(number) = file.number_of(product)? else { return Ok(Some(0)) };
        let erased = file.erase(number, session, log.in_memory_from())?;
        log.has_been_erased(erased.events, erased.bytes);
        self.webhooks.tell_counts(file)?;
        if !self.is_in_memory {
            let now = Instant::now();
            self.scrub_at.get_or_insert(self.scrubbed.map_or(now, |last| now.max(last + SCRUB_EVERY)));
        }
        Ok(Some(erased.events + erased.letters))
    }

    /// Goes on with the log of a product, or begins it, under an epoch that is on the disk before its first id is shown.
    fn adopt(&mut self, product: ProductId, bounds: Bounds, metrics: LogMetrics) -> Result<Option<Adopted>, FileError> {
        let State::Open(file) = &mut self.state else { return Ok(None) };
        let mut webhooks = file.webhooks()?;
        webhooks.retain(|webhook| webhook.product == product);
        if let Some(log) = self.logs.iter().find(|log| *log.product() == product) {
            return Ok(Some(Adopted { log: Arc::clone(log), webhooks }));
        }
        let log = if self.is_in_memory {
            Log::new(product, bounds, metrics)
        } else {
            let (kept, epoch) = reserve(file, &product)?;
            Log::restored(product, bounds, kept, epoch, false, Arc::clone(&self.desk), metrics)
        };
        let log = Arc::new(log);
        self.logs.push(Arc::clone(&log));
        Ok(Some(Adopted { log, webhooks }))
    }

    /// Marks some of the dead letters that are to be delivered again, and returns how many, and what is left.
    fn requeue(&mut self, id: &str, left: Left) -> Result<(u64, Option<Left>), FileError> {
        let State::Open(file) = &mut self.state else { return Ok((0, None)) };
        let requeued = match left {
            Left::All { through } => {
                let through = through.map_or_else(|| file.newest_letter(), Ok)?;
                let marked = file.requeue_some(id, through)?;
                (marked, (marked == u64::from(STEP)).then_some(Left::All { through: Some(through) }))
            }
            Left::These(mut events) => {
                let now = events.len().min(STEP as usize);
                let now: Vec<_> = events.drain(..now).collect();
                (file.requeue_these(id, &now)?, (!events.is_empty()).then_some(Left::These(events)))
            }
        };
        self.webhooks.tell_counts(file)?;
        Ok(requeued)
    }
}
