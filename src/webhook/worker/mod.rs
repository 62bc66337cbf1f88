//! Task of one webhook: reads events, has them sent, and has the outcome stored.
//!
//! The outbox decides, this file waits: one `select!` over everything that can happen to the
//! webhook. The worker shares only the log and the store with other webhooks.
//!
//! ```text
//! reader ──► outbox ──► attempts (a task each) ──► outbox ──► journal ──► store
//!               ▲ commands of operators, notices of the store, the clock
//! ```
//!
//! May use: `event`, `fanout`, `metrics`, `store`, `webhook_delivery`.

mod commands;
mod drain;
#[cfg(test)]
mod tests;
mod wake;

use std::{future::pending, panic, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    DeliveryPage, DeliveryState, Disposition, Now,
    context::WebhookContext,
    definition::Definition,
    outbox::Outbox,
    reader::{EventReloader, ReadItem, Reloaded, WebhookReader},
    sender::WebhookSender,
    status::SharedStatus,
    store_sync::StoreSync,
};
use crate::{
    event::ErasedEvents,
    fanout::Fanout,
    metrics::WebhookMetrics,
    store::{OwedDelivery, StoreUnwritable, WebhookNotice, WebhookNotices},
    webhook_delivery::Attempt,
};

/// Command of an operator to one worker; each variant carries the channel for the reply.
#[derive(Debug)]
pub(super) enum WebhookCommand {
    /// Replaces the definition; answered when the definition is in the store.
    Redefine(Box<Definition>, oneshot::Sender<Result<(), StoreUnwritable>>),
    /// Builds a new sender, because the egress policy has changed.
    ReplaceSender(oneshot::Sender<()>),
    /// Makes the endpoint active.
    Enable(oneshot::Sender<()>),
    /// Stops sending.
    Disable(oneshot::Sender<()>),
    /// Sends a sample event.
    Test(oneshot::Sender<Attempt>),
    /// Lists owed or accepted deliveries.
    List {
        state: DeliveryState,
        before: Option<u64>,
        limit: usize,
        reply: oneshot::Sender<DeliveryPage>,
    },
    /// Erases events.
    Erase(Arc<ErasedEvents>, oneshot::Sender<()>),
}

/// State of one webhook's task.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<SharedStatus>,
    context: Arc<WebhookContext>,
    metrics: WebhookMetrics,
    commands: mpsc::Receiver<WebhookCommand>,
    outbox: Outbox,
    reader: WebhookReader,
    reloader: EventReloader,
    /// No event is read again before this time: set after a failed read of the store.
    reload_at: Instant,
    sender: Arc<WebhookSender>,
    /// Number of endpoints so far: a new URL counts, and so does the same URL after an operator
    /// enabled it. Attempts carry it, so that an outcome of a former endpoint does not move the
    /// circuit breaker of the current one.
    endpoint_generation: u64,
    /// Attempts in flight. Dropping the worker aborts them.
    attempts: JoinSet<FinishedAttempt>,
    samples: JoinSet<()>,
    notices: Arc<WebhookNotices>,
    /// The last notice taken from `notices`. Its counts are those of the store at that time.
    notice: WebhookNotice,
    store_sync: StoreSync,
    /// Changes with each commit of the log.
    commits: watch::Receiver<u64>,
    /// Time of the look at the commits since the last one, if there was any.
    commits_due_at: Option<Instant>,
    is_draining: bool,
}

/// Outcome of one attempt.
#[derive(Debug)]
struct FinishedAttempt {
    position: u64,
    /// The worker's generation when the attempt began.
    endpoint_generation: u64,
    attempt: Attempt,
    disposition: Disposition,
}

/// Initial state of a worker.
#[derive(Debug)]
pub(super) struct WorkerInit {
    /// Status, published for the registry.
    pub(super) shared: Arc<SharedStatus>,
    /// Fan-out of the webhook's product.
    pub(super) fanout: Arc<Fanout>,
    /// Commands of operators.
    pub(super) commands: mpsc::Receiver<WebhookCommand>,
    /// Position up to which all deliveries are settled, apart from `owed` and dead letters.
    pub(super) position: u64,
    /// Deliveries at or before `position` that are still owed.
    pub(super) owed: Vec<OwedDelivery>,
    /// Metrics of this webhook.
    pub(super) metrics: WebhookMetrics,
    /// Answered when the definition is in the store.
    pub(super) on_registered: Option<oneshot::Sender<Result<(), StoreUnwritable>>>,
}

impl Worker {
    /// Creates a worker that has sent nothing yet. State of the definition is applied to the outbox
    /// first, so that a disabled or throttled endpoint stays so across a restart.
    pub(super) fn new(context: Arc<WebhookContext>, init: WorkerInit) -> Self {
        let definition = init.shared.definition();
        let now = Now::read();
        let mut outbox =
            Outbox::new(context.policy(&definition.webhook), init.position, init.owed, now);
        if let Some(problem) = &definition.disabled {
            outbox.disable(problem);
        }
        if let Some(until) = definition.throttled_until {
            outbox.throttle(until);
        }
        let notices = Arc::clone(init.shared.notices());
        let reader = WebhookReader::new(
            Arc::clone(init.shared.progress()),
            Arc::clone(&context.store),
            definition.webhook.scope(),
            init.position,
        );
        let mut worker = Self {
            commits: reader.watch_commits(),
            commits_due_at: None,
            reader,
            reloader: EventReloader::new(init.fanout),
            reload_at: now.instant,
            sender: Arc::new(context.build_sender(&definition)),
            endpoint_generation: 0,
            store_sync: StoreSync::new(
                &definition,
                init.position,
                Arc::clone(&context.store),
                Arc::clone(&notices),
                init.on_registered,
            ),
            shared: init.shared,
            context,
            metrics: init.metrics,
            commands: init.commands,
            outbox,
            attempts: JoinSet::new(),
            samples: JoinSet::new(),
            notices,
            notice: WebhookNotice::default(),
            is_draining: false,
        };
        // The status is read before the worker's first poll, and counts what was restored.
        worker.publish_status(now);
        worker
    }

    /// Runs until `stop`, and then finishes attempts and flushes; ends at the next await when
    /// `removed`.
    pub(super) async fn run(self, stop: CancellationToken, removed: CancellationToken) {
        // Dropping the inner future drops the worker, which aborts the attempts in flight.
        removed.run_until_cancelled(self.run_until_stopped(stop)).await;
    }

    async fn run_until_stopped(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.start_due_work();
            stop.run_until_cancelled(self.step()).await;
        }
        self.drain().await;
    }

    /// Applies the pending notice, starts everything that is due, and publishes the status.
    fn start_due_work(&mut self) {
        let now = Now::read();
        self.begin_look(now);
        // Before the rest: `redeliver` relies on expiries being applied before dead letters are
        // accepted.
        self.apply_notice();
        self.send_due(now);
        self.outbox.advance_to(self.reader.passed_position());
        self.metrics.lost.inc_by(self.outbox.take_lost_count());
        self.store_sync.start_writes(&mut self.outbox, self.reader.committed_position());
        self.store_sync.redeliver(&mut self.outbox, &self.notice);
        self.publish_status(now);
    }

    /// Publishes the status, and applies a definition that no longer matches it.
    fn publish_status(&mut self, now: Now) {
        if let Some(changed) =
            self.shared.publish(&self.outbox, &self.notice, &self.reader, now, &self.metrics)
        {
            self.redefine(changed);
        }
    }

    /// Starts an attempt, each on a task of its own, for every delivery that the outbox releases
    /// now.
    fn send_due(&mut self, now: Now) {
        while let Some(event) = self.outbox.next(now) {
            if event.position() > self.reader.committed_position() && !self.outbox.last_was_retry()
            {
                self.metrics.undurable.inc();
            }
            let (sender, endpoint_generation) =
                (Arc::clone(&self.sender), self.endpoint_generation);
            let duration = self.metrics.attempt_seconds.clone();
            self.attempts.spawn(async move {
                let began = Instant::now();
                let (attempt, disposition) =
                    sender.send(&event.id().to_string(), event.payload()).await;
                duration.observe(began.elapsed().as_secs_f64());
                FinishedAttempt {
                    position: event.position(),
                    endpoint_generation,
                    attempt,
                    disposition,
                }
            });
        }
    }

    /// Waits for one thing to happen and handles it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: each branch keeps its state in `self` until it has
    /// completed.
    async fn step(&mut self) {
        let wake_at = self.wake_at();
        let requested = self.outbox.next_to_load().filter(|_| Instant::now() >= self.reload_at);
        tokio::select! {
            // Commands first, because an operator waits. Finished attempts before new events: they
            // free slots. Reading the log comes last, and only while the outbox has capacity, which
            // is the backpressure: what the outbox cannot take stays in the log.
            biased;
            Some(command) = self.commands.recv() => self.execute(command),
            Some(finished) = self.attempts.join_next() => self.settle(finished),
            Some(_) = self.samples.join_next() => {}
            () = self.store_sync.handle_reply(&mut self.outbox) => {}
            () = self.notices.changed() => {}
            reloaded = reload_requested(&mut self.reloader, requested) => {
                self.handle_reloaded(reloaded);
            }
            read = self.reader.next(), if self.outbox.has_capacity() => self.handle_read(read),
            // Where one look at commits is due already, it is for all of them.
            Ok(()) = self.commits.changed(), if self.commits_due_at.is_none() => {
                self.notice_commit();
            }
            () = wake::sleep_until(wake_at) => {}
        }
    }

    /// Hands an outcome to the outbox, as one of the current or of a former endpoint.
    fn settle(&mut self, finished: Result<FinishedAttempt, JoinError>) {
        match finished {
            Ok(FinishedAttempt { position, endpoint_generation, attempt, disposition }) => {
                self.metrics.record_attempt(attempt.outcome);
                match endpoint_generation == self.endpoint_generation {
                    true => self.outbox.settle(position, attempt, &disposition, Now::read()),
                    false => {
                        self.outbox.settle_former(position, attempt, &disposition, Now::read());
                    }
                }
            }
            // A panic in an attempt is a bug: the worker ends, and with it the process.
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Err(_) => {} // aborted: attempts are aborted only when the worker is dropped
        }
    }

    fn handle_read(&mut self, read: ReadItem) {
        match read {
            ReadItem::Event(event) => {
                // The store may have expired events that the reader still finds in memory.
                let known_through = self.outbox.cursor().max(self.notice.expired_through);
                if event.position() > known_through {
                    self.outbox.enqueue(event, Now::read());
                }
            }
            ReadItem::Damaged { position, event } => {
                // The cursor may be here already: a gap is read before it is returned.
                if position > self.notice.expired_through {
                    self.outbox.give_up_unread(position, event, Now::read());
                }
            }
            // With a durable store, expired events became dead letters: they are not lost.
            ReadItem::Lost { is_evicted: true, .. } if self.context.is_durable => {}
            ReadItem::Lost { positions, .. } => {
                self.report_lost(positions, "events that the webhook may have been owed are gone");
            }
        }
    }

    fn handle_reloaded(&mut self, (position, reloaded): (u64, Reloaded)) {
        match reloaded {
            Reloaded::Events(events) => events.iter().for_each(|event| self.outbox.load(event)),
            Reloaded::Expired { through } => self.outbox.expire_through(through),
            Reloaded::Erased => drop(self.outbox.discard_unreadable(position)),
            Reloaded::Lost if self.outbox.discard_unreadable(position) => {
                self.report_lost(1, "an owed event is not in the store");
            }
            Reloaded::Lost => {}
            Reloaded::Damaged => self.outbox.give_up_damaged(position, Now::read()),
            Reloaded::Unreadable => {
                self.outbox.defer_unreadable(position, Now::read());
                self.reload_at = Instant::now() + RELOAD_RETRY_DELAY;
            }
        }
    }

    fn report_lost(&self, events: u64, what: &'static str) {
        error!(webhook = self.shared.definition().webhook.id, events, "{what}");
        self.metrics.lost.inc_by(events);
    }

    /// Applies the store's notice: a replaced file, expired deliveries, requeued dead letters,
    /// losses.
    fn apply_notice(&mut self) {
        let notice = self.notices.take();
        // The store began a new file: every row and the position are gone and are written again.
        if notice.is_replaced {
            self.outbox.rewrite_all();
        }
        if notice.expired_through > self.notice.expired_through {
            self.outbox.expire_through(notice.expired_through);
        }
        if notice.requeued > self.notice.requeued {
            self.outbox.restart_redelivery_scan();
            self.store_sync.discard_dead_letters();
        }
        self.metrics.lost.inc_by(notice.lost);
        self.notice = notice;
    }
}

/// Reads the event at `requested` again, or waits forever if none is requested.
async fn reload_requested(reloader: &mut EventReloader, requested: Option<u64>) -> (u64, Reloaded) {
    match requested {
        Some(position) => (position, reloader.reload(position).await),
        None => pending().await,
    }
}

/// Pause after the store could not read an event.
const RELOAD_RETRY_DELAY: Duration = Duration::from_secs(1);
