//! One webhook's task: reads what is owed, has it sent, and has it written down how that went.
//!
//! What is decided is decided by the outbox; here is the waiting. It shares nothing with other webhooks but the log and the
//! store.
//!
//! ```text
//! reader ──► outbox ──► attempts (a task each) ──► outbox ──► journal ──► store
//!               ▲ orders of operators, notices of the store, the clock
//! ```
//!
//! May use: `config`, `delivery`, `event`, `fanout`, `log`, `metrics`, the webhook's own rooms.

mod commands;
mod drain;

use std::{future::pending, panic, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{self, Instant},
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
    event::SessionId,
    fanout::Fanout,
    metrics::WebhookMetrics,
    store::{OwedDelivery, StoreUnwritable, WebhookNotice, WebhookNotices},
    webhook_delivery::Attempt,
};

/// An operator's order.
#[derive(Debug)]
pub(super) enum WebhookCommand {
    /// Goes on under another definition; answered when that is in the store.
    Redefine(Box<Definition>, oneshot::Sender<Result<(), StoreUnwritable>>),
    /// Goes on with a new sender: what it may reach, or whom to trust, has changed.
    ReplaceSender(oneshot::Sender<()>),
    /// Makes it active.
    Enable(oneshot::Sender<()>),
    /// Holds it back.
    Disable(oneshot::Sender<()>),
    /// Sends a sample.
    Test(oneshot::Sender<Attempt>),
    /// Lists deliveries that are owed, or were accepted.
    List {
        state: DeliveryState,
        before: Option<u64>,
        limit: usize,
        reply: oneshot::Sender<DeliveryPage>,
    },
    /// Forgets a session.
    Erase(SessionId, oneshot::Sender<()>),
}

/// The task of one webhook.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<SharedStatus>,
    context: Arc<WebhookContext>,
    metrics: WebhookMetrics,
    commands: mpsc::Receiver<WebhookCommand>,
    outbox: Outbox,
    reader: WebhookReader,
    reloader: EventReloader,
    reload_at: Instant,
    sender: Arc<WebhookSender>,
    /// Counts the endpoints there have been; one that an operator has enabled is another.
    endpoint_generation: u64,
    attempts: JoinSet<FinishedAttempt>,
    samples: JoinSet<()>,
    notices: Arc<WebhookNotices>,
    notice: WebhookNotice,
    store_sync: StoreSync,
    is_draining: bool,
}

/// An attempt that has ended.
#[derive(Debug)]
struct FinishedAttempt {
    position: u64,
    /// At which of the endpoints there have been.
    endpoint_generation: u64,
    attempt: Attempt,
    disposition: Disposition,
}

/// What a worker begins with.
#[derive(Debug)]
pub(super) struct WorkerInit {
    /// What is known of it to all.
    pub(super) shared: Arc<SharedStatus>,
    /// Its product's fan-out.
    pub(super) fanout: Arc<Fanout>,
    /// Where orders come from.
    pub(super) commands: mpsc::Receiver<WebhookCommand>,
    /// How far it has come.
    pub(super) position: u64,
    /// What is owed before that.
    pub(super) owed: Vec<OwedDelivery>,
    /// Where it is counted.
    pub(super) metrics: WebhookMetrics,
    /// Who waits for its definition to be in the store.
    pub(super) on_registered: Option<oneshot::Sender<Result<(), StoreUnwritable>>>,
}

impl Worker {
    /// A worker that has done nothing yet.
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
        let notices = Arc::new(WebhookNotices::default());
        let scope = definition.webhook.scope();
        Self {
            reader: WebhookReader::new(
                Arc::clone(&init.fanout),
                Arc::clone(&context.store),
                scope,
                init.position,
            ),
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
        }
    }

    /// Works until `stop`, and then finishes what is under way. Ends at once when `removed`.
    pub(super) async fn run(self, stop: CancellationToken, removed: CancellationToken) {
        removed.run_until_cancelled(self.run_until_stopped(stop)).await;
    }

    async fn run_until_stopped(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.start_due_work();
            stop.run_until_cancelled(self.step()).await;
        }
        self.drain().await;
    }

    /// Begins whatever can begin.
    fn start_due_work(&mut self) {
        let now = Now::read();
        self.apply_notice(); // first: what follows relies on it
        self.send_due(now);
        self.outbox.advance_to(self.reader.passed_position());
        self.metrics.lost.inc_by(self.outbox.take_lost_count());
        self.store_sync.start_writes(&mut self.outbox, self.reader.committed_position());
        self.store_sync.redeliver(&mut self.outbox, &self.notice);
        self.publish_status(now);
    }

    fn publish_status(&mut self, now: Now) {
        let unread = if self.outbox.has_capacity() { 0 } else { self.reader.lag() };
        if let Some(changed) =
            self.shared.publish(&self.outbox, &self.notice, unread, now, &self.metrics)
        {
            self.redefine(changed);
        }
    }

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

    /// Waits until one thing happens, and deals with it.
    ///
    /// # Cancel safety
    ///
    /// What has not been dealt with waits for the next call.
    async fn step(&mut self) {
        let wake_at = self.wake_at();
        let requested = self.outbox.next_to_load().filter(|_| Instant::now() >= self.reload_at);
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => self.execute(command),
            Some(finished) = self.attempts.join_next() => self.settle(finished),
            Some(_) = self.samples.join_next() => {}
            () = self.store_sync.handle_reply(&mut self.outbox) => {}
            () = self.notices.changed() => {}
            reloaded = reload_requested(&mut self.reloader, requested) => self.handle_reloaded(reloaded),
            read = self.reader.next(), if self.outbox.has_capacity() => self.handle_read(read),
            () = time::sleep_until(wake_at) => {}
        }
    }

    /// When to look again although nothing has happened.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let reload_at = Some(self.reload_at).filter(|at| *at > now);
        let due = self.outbox.next_due_at().filter(|_| self.may_send());
        let soonest = [due, reload_at, self.store_sync.due(&self.outbox, &self.notice)]
            .into_iter()
            .flatten()
            .min();
        soonest.unwrap_or(now + WORKER_POLL_INTERVAL).min(now + WORKER_POLL_INTERVAL)
    }

    fn settle(&mut self, finished: Result<FinishedAttempt, JoinError>) {
        match finished {
            Ok(FinishedAttempt { position, endpoint_generation, attempt, disposition }) => {
                self.metrics.record_attempt(attempt.outcome);
                match endpoint_generation == self.endpoint_generation {
                    true => self.outbox.settle(position, attempt, &disposition, Now::read()),
                    false => {
                        self.outbox.settle_former(position, attempt, &disposition, Now::read())
                    }
                }
            }
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    fn handle_read(&mut self, read: ReadItem) {
        match read {
            ReadItem::Event(event) => {
                let known_through = self.outbox.cursor().max(self.notice.expired_through);
                if event.position() > known_through {
                    self.outbox.enqueue(event, Now::read());
                }
            }
            // What the store has expired are dead letters.
            ReadItem::Lost { is_evicted: true, .. } if self.context.is_durable => {}
            ReadItem::Lost { positions: places, .. } => {
                self.report_lost(places, "events are gone that may have been for the webhook")
            }
        }
    }

    fn handle_reloaded(&mut self, (position, reloaded): (u64, Reloaded)) {
        match reloaded {
            Reloaded::Events(events) => events.iter().for_each(|event| self.outbox.load(event)),
            Reloaded::Expired { through } => self.outbox.expire_through(through),
            Reloaded::Erased => drop(self.outbox.discard_unreadable(position)),
            Reloaded::Lost if self.outbox.discard_unreadable(position) => {
                self.report_lost(1, "an event that is owed has not been kept")
            }
            Reloaded::Lost => {}
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

    fn apply_notice(&mut self) {
        let notice = self.notices.take();
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

/// Reads `wanted` again, if anything is.
async fn reload_requested(reloader: &mut EventReloader, requested: Option<u64>) -> (u64, Reloaded) {
    match requested {
        Some(position) => (position, reloader.reload(position).await),
        None => pending().await,
    }
}

/// How often it looks around when nothing happens.
const WORKER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// After the store could not be read.
const RELOAD_RETRY_DELAY: Duration = Duration::from_secs(1);
