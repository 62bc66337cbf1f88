//! Executes the writer's commands, a small step at a time.
//!
//! May use: `event`, `log`, `metrics`, `wall_clock`.

use std::{sync::Arc, time::Instant};

use super::{MAX_COMMAND_TIME, StoreWriter, WriterState, retention::SCRUB_INTERVAL};
use crate::{
    event::{ProductId, UserId, VisitorId},
    log::{Log, MemoryBounds},
    metrics::LogMetrics,
    store::{
        commands::{AddedProduct, RemainingRequeue, StoreCommand},
        opening::reserve_epoch,
        sqlite::{DEAD_LETTER_STEP_ROWS, FileError, Indices, UserTraces},
    },
    wall_clock,
};

impl StoreWriter {
    /// Executes commands for [`MAX_COMMAND_TIME`]; then the entries that were appended meanwhile
    /// are committed.
    pub(super) fn execute_commands(&mut self) -> Result<(), FileError> {
        if matches!(self.state, WriterState::Failed { .. }) {
            self.inbox.reject_all();
            return Ok(());
        }
        let began = Instant::now();
        // Checked before each step, and each step takes milliseconds: a long command returns its
        // rest.
        while began.elapsed() < MAX_COMMAND_TIME
            && let Some(command) = self.inbox.take_command()
        {
            if command.is_abandoned() {
                continue;
            }
            self.handle.begin_write();
            let is_write = command.is_write();
            if let Some(remainder) = self.execute(command)? {
                self.inbox.return_command(remainder);
            }
            if is_write {
                self.handle.mark_unsynced();
            }
        }
        Ok(())
    }

    /// Executes a command or a step of it, and returns the rest. A caller that no longer waits for
    /// the answer does not stop the command, so the result of `send` is dropped.
    fn execute(&mut self, command: StoreCommand) -> Result<Option<StoreCommand>, FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(Some(command)) };
        match command {
            StoreCommand::Erase { product, visitor, answer } => {
                if let Some(erased) = self.erase(&product, &visitor)? {
                    let _ = answer.send(erased);
                }
            }
            StoreCommand::FindTraces { product, user, answer } => {
                let _ = answer.send(self.find_traces(&product, &user)?);
            }
            StoreCommand::Register { webhook, answer } => {
                self.webhooks.register(file, *webhook, wall_clock::now().unix_ms)?;
                let _ = answer.send(());
            }
            StoreCommand::Unregister { id, answer } => {
                if !file.unregister(&id, wall_clock::now().unix_ms)? {
                    return Ok(Some(StoreCommand::Unregister { id, answer }));
                }
                self.webhooks.unregister(&id);
                let _ = answer.send(());
            }
            StoreCommand::Requeue { id, remaining, marked, answer } => {
                let (newly_marked, remaining) = self.requeue_step(&id, remaining)?;
                let marked = marked + newly_marked;
                if let Some(remaining) = remaining {
                    return Ok(Some(StoreCommand::Requeue { id, remaining, marked, answer }));
                }
                let _ = answer.send(marked);
            }
            StoreCommand::ListDeadLetters { id, query, answer } => {
                let page = file.dead_letters(&id, query.state, query.before, query.limit)?;
                self.webhooks.record_damaged_dead_letters(&id, file.take_damaged_dead_letters());
                let _ = answer.send(page);
            }
            StoreCommand::ListRequeued { id, after, limit, answer } => {
                let page = file.requeued_dead_letters(&id, after, limit)?;
                let damaged = file.take_damaged_dead_letters();
                self.webhooks.record_damaged_dead_letters(&id, damaged);
                if damaged > 0 {
                    self.webhooks.report_counts(file)?;
                }
                let _ = answer.send(page);
            }
            StoreCommand::AddProduct { product, answer } => {
                let (product, bounds, metrics) = *product;
                if let Some(added) = self.add_product(product, bounds, metrics)? {
                    let _ = answer.send(added);
                }
            }
            StoreCommand::RemoveProduct { product, answer } => {
                // Back to the queue: the backlog is committed first, at the begin of the next
                // round.
                if self.logs.iter().any(|log| *log.product() == product && log.backlog() > 0) {
                    return Ok(Some(StoreCommand::RemoveProduct { product, answer }));
                }
                self.logs.retain(|log| *log.product() != product);
                let _ = answer.send(());
            }
        }
        Ok(None)
    }

    /// Returns what a user has left in the file.
    fn find_traces(&self, product: &ProductId, user: &UserId) -> Result<UserTraces, FileError> {
        let WriterState::Open(file) = &self.state else { return Ok(UserTraces::default()) };
        match file.product_number(product)? {
            Some(number) => file.traces_of(number, user, self.usable_indices()),
            None => Ok(UserTraces::default()),
        }
    }

    /// Returns whether the file's indices may be used.
    fn usable_indices(&self) -> Indices {
        match self.handle.are_indices_trusted() {
            true => Indices::Trusted,
            false => Indices::Unchecked,
        }
    }

    /// Erases the events of a session or a user from the file, and returns the number of those that
    /// are not in memory alone. `None` for a product that the store does not have.
    fn erase(
        &mut self,
        product: &ProductId,
        visitor: &VisitorId,
    ) -> Result<Option<u64>, FileError> {
        let indices = self.usable_indices();
        let WriterState::Open(file) = &mut self.state else { return Ok(None) };
        let Some(log) = self.logs.iter().find(|log| log.product() == product) else {
            return Ok(None);
        };
        let Some(number) = file.product_number(product)? else { return Ok(Some(0)) };
        let erased = file.erase(number, visitor, log.memory_evicted_through(), indices)?;
        log.mark_erased(erased.events, erased.bytes);
        self.webhooks.report_counts(file)?;
        // Scrubbed at once, unless the last scrub is less than an interval ago. A due time that is
        // set stays: erasures that keep coming must not defer it.
        if !self.is_in_memory {
            let now = Instant::now();
            self.scrub_at.get_or_insert(
                self.last_scrubbed.map_or(now, |last| now.max(last + SCRUB_INTERVAL)),
            );
        }
        Ok(Some(erased.events + erased.dead_letters))
    }

    /// Continues the log of a product, or begins it, under an epoch that is on the disk before its
    /// first id is shown.
    fn add_product(
        &mut self,
        product: ProductId,
        bounds: MemoryBounds,
        metrics: LogMetrics,
    ) -> Result<Option<AddedProduct>, FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(None) };
        let mut webhooks = file.webhooks()?;
        webhooks.retain(|webhook| webhook.product == product);
        if let Some(log) = self.logs.iter().find(|log| *log.product() == product) {
            return Ok(Some(AddedProduct { log: Arc::clone(log), webhooks }));
        }
        let log = if self.is_in_memory {
            Log::new(product, bounds, metrics)
        } else {
            let (persisted, epoch) = reserve_epoch(file, &product)?;
            Log::restored(
                product,
                bounds,
                persisted,
                epoch,
                false,
                Arc::clone(self.handle.backing()),
                metrics,
            )
        };
        let log = Arc::new(log);
        self.logs.push(Arc::clone(&log));
        Ok(Some(AddedProduct { log, webhooks }))
    }

    /// Marks some of the dead letters for redelivery, and returns their number and the rest.
    fn requeue_step(
        &mut self,
        id: &str,
        remaining: RemainingRequeue,
    ) -> Result<(u64, Option<RemainingRequeue>), FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok((0, None)) };
        let requeued = match remaining {
            RemainingRequeue::All { through } => {
                let through = through.map_or_else(|| file.newest_dead_letter(), Ok)?;
                let marked = file.requeue_through(id, through)?;
                (
                    marked,
                    (marked == u64::from(DEAD_LETTER_STEP_ROWS))
                        .then_some(RemainingRequeue::All { through: Some(through) }),
                )
            }
            RemainingRequeue::Events(mut events) => {
                let batch_len = events.len().min(DEAD_LETTER_STEP_ROWS as usize);
                let batch: Vec<_> = events.drain(..batch_len).collect();
                (
                    file.requeue_events(id, &batch)?,
                    (!events.is_empty()).then_some(RemainingRequeue::Events(events)),
                )
            }
        };
        self.webhooks.report_counts(file)?;
        Ok(requeued)
    }
}
