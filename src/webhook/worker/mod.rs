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
    DeliveryState, Listed, Now, Page, Verdict,
    context::Tools,
    definition::Definition,
    outbox::Outbox,
    reader::{Read, Reader, Reloaded, Reloader},
    sample,
    sender::Sender,
    status::Board,
    store_sync::Records,
};
use crate::{
    event::SessionId,
    fanout::Fanout,
    metrics::WebhookMetrics,
    store::{Notice, Notices, Owed, Unwritable},
    webhook_delivery::Attempt,
};

/// An operator's order.
#[derive(Debug)]
pub(super) enum Order {
    /// Goes on under another definition; answered when that is in the store.
    Redefine(Box<Definition>, oneshot::Sender<Result<(), Unwritable>>),
    /// Goes on with a new sender: what it may reach, or whom to trust, has changed.
    Equip(oneshot::Sender<()>),
    /// Makes it active.
    Enable(oneshot::Sender<()>),
    /// Holds it back.
    Disable(oneshot::Sender<()>),
    /// Sends a sample.
    Test(oneshot::Sender<Attempt>),
    /// Lists deliveries that are owed, or were accepted.
    List { state: DeliveryState, before: Option<u64>, most: usize, answer: oneshot::Sender<Page> },
    /// Forgets a session.
    Erase(SessionId, oneshot::Sender<()>),
}

/// The task of one webhook.
#[derive(Debug)]
pub(super) struct Worker {
    board: Arc<Board>,
    tools: Arc<Tools>,
    metrics: WebhookMetrics,
    orders: mpsc::Receiver<Order>,
    outbox: Outbox,
    reader: Reader,
    reloader: Reloader,
    reload_at: Instant,
    sender: Arc<Sender>,
    /// Counts the endpoints there have been; one that an operator has enabled is another.
    endpoint: u64,
    attempts: JoinSet<Ended>,
    samples: JoinSet<()>,
    notices: Arc<Notices>,
    notice: Notice,
    records: Records,
    is_leaving: bool,
}

/// An attempt that has ended.
#[derive(Debug)]
struct Ended {
    place: u64,
    /// At which of the endpoints there have been.
    endpoint: u64,
    attempt: Attempt,
    verdict: Verdict,
}

/// What a worker begins with.
#[derive(Debug)]
pub(super) struct Start {
    /// What is known of it to all.
    pub(super) board: Arc<Board>,
    /// Its product's fan-out.
    pub(super) fanout: Arc<Fanout>,
    /// Where orders come from.
    pub(super) orders: mpsc::Receiver<Order>,
    /// How far it has come.
    pub(super) position: u64,
    /// What is owed before that.
    pub(super) owed: Vec<Owed>,
    /// Where it is counted.
    pub(super) metrics: WebhookMetrics,
    /// Who waits for its definition to be in the store.
    pub(super) registered: Option<oneshot::Sender<Result<(), Unwritable>>>,
}

impl Worker {
    /// A worker that has done nothing yet.
    pub(super) fn new(tools: Arc<Tools>, start: Start) -> Self {
        let definition = start.board.definition();
        let now = Now::read();
        let mut outbox = Outbox::new(tools.policy(&definition.webhook), start.position, start.owed, now);
        if let Some(problem) = &definition.disabled {
            outbox.disable(problem);
        }
        if let Some(until) = definition.throttled_until {
            outbox.throttle(until);
        }
        let notices = Arc::new(Notices::default());
        let scope = definition.webhook.scope();
        Self {
            reader: Reader::new(Arc::clone(&start.fanout), Arc::clone(&tools.desk), scope, start.position),
            reloader: Reloader::new(start.fanout),
            reload_at: now.instant,
            sender: Arc::new(tools.sender(&definition)),
            endpoint: 0,
            records: Records::new(
                &definition,
                start.position,
                Arc::clone(&tools.desk),
                Arc::clone(&notices),
                start.registered,
            ),
            board: start.board,
            tools,
            metrics: start.metrics,
            orders: start.orders,
            outbox,
            attempts: JoinSet::new(),
            samples: JoinSet::new(),
            notices,
            notice: Notice::default(),
            is_leaving: false,
        }
    }

    /// Works until `stop`, and then finishes what is under way. Ends at once when `removed`.
    pub(super) async fn run(self, stop: CancellationToken, removed: CancellationToken) {
        removed.run_until_cancelled(self.work(stop)).await;
    }

    async fn work(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.begin();
            stop.run_until_cancelled(self.step()).await;
        }
        self.leave().await;
    }

    /// Begins whatever can begin.
    fn begin(&mut self) {
        let now = Now::read();
        self.read_notices(); // first: what follows relies on it
        self.send(now);
        self.outbox.pass(self.reader.passed());
        self.metrics.lost.inc_by(self.outbox.take_lost());
        self.records.write_down(&mut self.outbox, self.reader.committed());
        self.records.redeliver(&mut self.outbox, &self.notice);
        self.show(now);
    }

    fn show(&mut self, now: Now) {
        let unread = if self.outbox.has_room() { 0 } else { self.reader.behind() };
        if let Some(changed) = self.board.show(&self.outbox, &self.notice, unread, now, &self.metrics) {
            self.redefine(changed);
        }
    }

    fn send(&mut self, now: Now) {
        while let Some(event) = self.outbox.next(now) {
            if event.place() > self.reader.committed() && !self.outbox.last_was_retry() {
                self.metrics.undurable.inc();
            }
            let (sender, endpoint) = (Arc::clone(&self.sender), self.endpoint);
            let duration = self.metrics.duration.clone();
            self.attempts.spawn(async move {
                let began = Instant::now();
                let (attempt, verdict) = sender.send(&event.id().to_string(), event.payload()).await;
                duration.observe(began.elapsed().as_secs_f64());
                Ended { place: event.place(), endpoint, attempt, verdict }
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
        let wanted = self.outbox.wants().filter(|_| Instant::now() >= self.reload_at);
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => self.obey(order),
            Some(ended) = self.attempts.join_next() => self.settle(ended),
            Some(_) = self.samples.join_next() => {}
            () = self.records.next(&mut self.outbox) => {}
            () = self.notices.told() => {}
            reloaded = reload(&mut self.reloader, wanted) => self.load(reloaded),
            read = self.reader.next(), if self.outbox.has_room() => self.take(read),
            () = time::sleep_until(wake_at) => {}
        }
    }

    /// When to look again although nothing has happened.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let reload_at = Some(self.reload_at).filter(|at| *at > now);
        let due = self.outbox.due().filter(|_| self.may_send());
        let soonest = [due, reload_at, self.records.due(&self.outbox, &self.notice)].into_iter().flatten().min();
        soonest.unwrap_or(now + IDLE).min(now + IDLE)
    }

    fn settle(&mut self, ended: Result<Ended, JoinError>) {
        match ended {
            Ok(Ended { place, endpoint, attempt, verdict }) => {
                self.metrics.attempt(attempt.outcome);
                match endpoint == self.endpoint {
                    true => self.outbox.settle(place, attempt, &verdict, Now::read()),
                    false => self.outbox.settle_former(place, attempt, &verdict, Now::read()),
                }
            }
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    fn take(&mut self, read: Read) {
        match read {
            Read::Event(event) => {
                let known_through = self.outbox.position().max(self.notice.expired_through);
                if event.place() > known_through {
                    self.outbox.take(event, Now::read());
                }
            }
            // What the store has expired are dead letters.
            Read::Lost { is_evicted: true, .. } if self.tools.is_durable => {}
            Read::Lost { places, .. } => self.lost(places, "events are gone that may have been for the webhook"),
        }
    }

    fn load(&mut self, (place, reloaded): (u64, Reloaded)) {
        match reloaded {
            Reloaded::Events(events) => events.iter().for_each(|event| self.outbox.load(event)),
            Reloaded::Expired { through } => self.outbox.expire(through),
            Reloaded::Erased => drop(self.outbox.is_gone(place)),
            Reloaded::Lost if self.outbox.is_gone(place) => self.lost(1, "an event that is owed has not been kept"),
            Reloaded::Lost => {}
            Reloaded::Unreadable => {
                self.outbox.cannot_be_read(place, Now::read());
                self.reload_at = Instant::now() + RELOAD_AGAIN;
            }
        }
    }

    fn lost(&self, events: u64, what: &'static str) {
        error!(webhook = self.board.definition().webhook.id, events, "{what}");
        self.metrics.lost.inc_by(events);
    }

    fn read_notices(&mut self) {
        let notice = self.notices.take();
        if notice.is_replaced {
            self.outbox.rewrite();
        }
        if notice.expired_through > self.notice.expired_through {
            self.outbox.expire(notice.expired_through);
        }
        if notice.requeued > self.notice.requeued {
            self.outbox.walk_anew();
            self.records.forget_letters();
        }
        self.metrics.lost.inc_by(notice.lost);
        self.notice = notice;
    }

    fn obey(&mut self, order: Order) {
        // Whoever gave an order may have left.
        match order {
            Order::Redefine(definition, answer) => {
                self.records.tell_when_registered(answer);
                self.redefine(*definition);
            }
            Order::Equip(answer) => {
                self.sender = Arc::new(self.tools.sender(&self.board.definition()));
                let _ = answer.send(());
            }
            Order::Enable(answer) => {
                // What has been asked before says nothing of what the operator has just put right.
                self.endpoint += 1;
                self.outbox.enable();
                self.begin();
                let _ = answer.send(());
            }
            Order::Disable(answer) => {
                self.outbox.disable("by an operator");
                self.begin();
                let _ = answer.send(());
            }
            Order::Test(answer) => self.test(answer),
            Order::List { state, before, most, answer } => {
                let _ = answer.send(self.list(state, before, most));
            }
            Order::Erase(session, answer) => {
                self.outbox.erase(&session);
                // What has been read, but not taken, may hold something of it.
                self.reader.narrow(self.board.definition().webhook.scope());
                self.records.forget_letters();
                let _ = answer.send(());
            }
        }
    }

    fn redefine(&mut self, definition: Definition) {
        let before = self.board.definition();
        let (webhook, former) = (&definition.webhook, &definition.former);
        if before.webhook.scope() != webhook.scope() {
            self.reader.narrow(webhook.scope());
        }
        if before.webhook.url != webhook.url {
            self.endpoint += 1;
            if definition.disabled.is_none() {
                self.outbox.enable();
            }
        }
        if before.webhook != *webhook || before.former != *former {
            self.outbox.change(self.tools.policy(webhook));
            self.sender = Arc::new(self.tools.sender(&definition));
        }
        self.records.redefined(&definition);
        self.board.redefine(definition);
    }

    fn test(&mut self, answer: oneshot::Sender<Attempt>) {
        let sender = Arc::clone(&self.sender);
        let (id, payload) = sample::event(&self.board.definition().webhook.product_id);
        self.samples.spawn(async move {
            let (attempt, _) = sender.send(&id, payload).await;
            let _ = answer.send(attempt);
        });
    }

    fn list(&self, state: DeliveryState, before: Option<u64>, most: usize) -> Page {
        match state {
            DeliveryState::Delivered => {
                let delivered = self.outbox.delivered(before, most);
                let next = delivered.last().map(|(number, _)| *number).filter(|_| delivered.len() == most);
                let deliveries = delivered.into_iter().map(|(_, delivery)| Listed::Delivered(delivery)).collect();
                Page { deliveries, next }
            }
            DeliveryState::Pending | DeliveryState::Dead => {
                let pending = self.outbox.pending(before, most, Now::read());
                let next = pending.last().map(|(delivery, _)| delivery.place).filter(|_| pending.len() == most);
                let deliveries = pending.into_iter().map(|(delivery, due)| Listed::Pending(delivery, due)).collect();
                Page { deliveries, next }
            }
        }
    }
}

/// Reads `wanted` again, if anything is.
async fn reload(reloader: &mut Reloader, wanted: Option<u64>) -> (u64, Reloaded) {
    match wanted {
        Some(place) => (place, reloader.reload(place).await),
        None => pending().await,
    }
}

/// How often it looks around when nothing happens.
const IDLE: Duration = Duration::from_secs(1);

/// After the store could not be read.
const RELOAD_AGAIN: Duration = Duration::from_secs(1);
