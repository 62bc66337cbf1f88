//! The connector's push mode, durable: every registered webhook, each with a worker of its own.
//!
//! In: what the configuration and operators register. Out: what is known of each. Nothing here touches the events.
//!
//! ```text
//! log ─► fanout ─► subscription ─► worker ─► outbox ─► sender ─► receiver        one worker per webhook, nothing shared
//!                                    └─► store: position and exceptions
//! ```
//!
//! May use: `config`, `delivery`, `event`, `fanout`, `log`, `metrics`.

mod board;
mod definition;
mod egress;
mod outbox;
mod reader;
mod records;
mod sample;
mod sender;
mod signature;
mod tools;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

use self::{
    board::Board,
    definition::{Definition, Former, Remembered},
    egress::Guard,
    tools::Tools,
    worker::{Order, Start, Worker},
};
pub(crate) use crate::log::store::Which;
use crate::{
    config::{Network, Webhook},
    delivery::{Attempt, DeadLetter, Delivery, EndpointState},
    event::{Kind, Only, ProductId, Scope, SessionId},
    fanout::Fanout,
    log::store::{Desk, KeptWebhook, Letters, Owed, Unwritable},
    metrics::Metrics,
};

/// Every registered webhook.
#[derive(Debug)]
pub(crate) struct Webhooks {
    products: HashMap<ProductId, Arc<Fanout>>,
    tools: Arc<Tools>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    registered: Mutex<BTreeMap<String, Registered>>,
    /// Held by whoever registers, changes or removes one: these take their time.
    registry: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when a worker ends by itself, which none does.
    broken: CancellationToken,
}

/// One webhook and the way to its worker.
#[derive(Clone, Debug)]
struct Registered {
    board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    removed: CancellationToken,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What webhooks stand on.
#[derive(Debug)]
pub(crate) struct Ground<'a> {
    /// Of each product.
    pub(crate) fanouts: Vec<Arc<Fanout>>,
    /// Where outboxes are kept.
    pub(crate) desk: Arc<Desk>,
    /// Whether that outlives the process.
    pub(crate) is_durable: bool,
    /// Bytes of owed events that one webhook may hold where nothing else keeps them.
    pub(crate) memory_bytes: u64,
    /// Networks that may be reached although they are not public.
    pub(crate) allow_networks: &'a [Network],
    /// Whom to trust.
    pub(crate) tls: rustls::ClientConfig,
    /// Where all is counted.
    pub(crate) metrics: Arc<Metrics>,
}

impl Webhooks {
    /// Starts a worker for each webhook that the configuration declares or that the store has kept, on the present runtime.
    pub(crate) fn start(ground: Ground<'_>, declared: &[Webhook], kept: Vec<KeptWebhook>) -> Self {
        let tools = Tools {
            desk: ground.desk,
            is_durable: ground.is_durable,
            memory_bytes: ground.memory_bytes,
            guard: Arc::new(Guard::new(ground.allow_networks)),
            tls: ground.tls,
        };
        let webhooks = Self {
            products: ground.fanouts.into_iter().map(|fanout| (fanout.log().product().clone(), fanout)).collect(),
            tools: Arc::new(tools),
            metrics: ground.metrics,
            runtime: Handle::current(),
            registered: Mutex::default(),
            registry: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            broken: CancellationToken::new(),
        };
        webhooks.resume(declared, kept);
        webhooks
    }

    fn resume(&self, declared: &[Webhook], kept: Vec<KeptWebhook>) {
        let mut declared: BTreeMap<&str, &Webhook> = declared.iter().map(|it| (it.id.as_str(), it)).collect();
        for KeptWebhook { id, product, definition, position, owed } in kept {
            let remembered = match Remembered::parse(&definition) {
                Ok(remembered) => remembered,
                Err(problem) => {
                    error!(
                        webhook = id,
                        problem, "what the store has of the webhook cannot be understood; it is left alone"
                    );
                    continue;
                }
            };
            let Remembered { webhook, disabled, former } = remembered;
            let (webhook, source) = match (declared.remove(id.as_str()), webhook) {
                (Some(webhook), _) => (webhook.clone(), Source::File),
                (None, Some(webhook)) => (webhook, Source::Api),
                (None, None) => {
                    warn!(
                        webhook = id,
                        pending = owed.len(),
                        "the webhook is declared no more: what it was owed is forgotten"
                    );
                    drop(self.tools.desk.unregister(&id)); // carried out though nobody waits
                    continue;
                }
            };
            let definition = Definition { webhook: Arc::new(webhook), source, disabled, former };
            if definition.webhook.product_id == product {
                self.spawn(definition, Some(position), owed, None);
            } else {
                warn!(webhook = id, "the webhook has another product now: it begins anew there");
                drop(self.tools.desk.unregister(&id)); // carried out though nobody waits
                self.spawn(definition, None, Vec::new(), None);
            }
        }
        for webhook in declared.into_values() {
            let webhook = Arc::new(webhook.clone());
            let definition = Definition { webhook, source: Source::File, disabled: None, former: None };
            self.spawn(definition, None, Vec::new(), None);
        }
    }

    /// Starts a worker at `position`, or with what comes from now on.
    fn spawn(
        &self,
        definition: Definition,
        position: Option<u64>,
        owed: Vec<Owed>,
        registered: Option<oneshot::Sender<Result<(), Unwritable>>>,
    ) {
        let id = definition.webhook.id.clone();
        let Some(fanout) = self.products.get(&definition.webhook.product_id).map(Arc::clone) else {
            error!(webhook = id, "the webhook's product is none of this relay's; add it to [[upstreams]]");
            return;
        };
        let board = Arc::new(Board::new(definition));
        let (orders, inbox) = mpsc::channel(MOST_ORDERS);
        let start = Start {
            board: Arc::clone(&board),
            position: position.unwrap_or_else(|| fanout.log().newest()),
            fanout,
            orders: inbox,
            owed,
            metrics: self.metrics.webhook(&id),
            registered,
        };
        let worker = Worker::new(Arc::clone(&self.tools), start);
        let (stop, removed, broken) = (self.stop.clone(), CancellationToken::new(), self.broken.clone());
        let is_removed = removed.clone();
        let task = async move {
            let panicked = broken.drop_guard();
            Box::pin(worker.run(stop, is_removed)).await;
            panicked.disarm();
        };
        let task = Arc::new(Mutex::new(Some(self.tasks.spawn_on(task, &self.runtime))));
        self.registered().insert(id, Registered { board, orders, removed, task });
    }

    /// Waits until a worker has ended by itself.
    pub(crate) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Finishes what is under way, writes everything down, and ends every worker.
    pub(crate) async fn leave(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// All of them, by id.
    pub(crate) fn list(&self) -> Vec<View> {
        self.registered().values().map(View::of).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, id: &str) -> Option<View> {
        self.registered().get(id).map(View::of)
    }

    /// Registers a webhook, which gets events from now on.
    ///
    /// # Errors
    ///
    /// When the id is taken, the product unknown, or the store cannot be written.
    pub(crate) async fn create(&self, webhook: Webhook) -> Result<View, WebhookError> {
        let _alone = self.registry.lock().await;
        let id = webhook.id.clone();
        if self.get(&id).is_some() {
            return Err(WebhookError::Taken);
        }
        if !self.products.contains_key(&webhook.product_id) {
            return Err(WebhookError::UnknownProduct);
        }
        let (written, is_written) = oneshot::channel();
        let definition = Definition { webhook: Arc::new(webhook), source: Source::Api, disabled: None, former: None };
        self.spawn(definition, None, Vec::new(), Some(written));
        match is_written.await {
            Ok(Ok(())) => self.get(&id).ok_or(WebhookError::Leaving),
            Ok(Err(Unwritable)) => {
                self.end(&id).await;
                Err(WebhookError::Store)
            }
            Err(_) => Err(WebhookError::Leaving),
        }
    }

    /// Changes a webhook that the API has registered. It keeps its place. A former secret signs beside a new one for a while.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, the product is another, or the store cannot be written.
    pub(crate) async fn change(&self, webhook: Webhook) -> Result<View, WebhookError> {
        let _alone = self.registry.lock().await;
        let id = webhook.id.clone();
        let known = self.editable(&id)?.board.definition();
        if known.webhook.product_id != webhook.product_id {
            return Err(WebhookError::OtherProduct);
        }
        let former = match known.webhook.secret == webhook.secret {
            true => known.former.clone(),
            false => Some(Former {
                secret: known.webhook.secret.clone(),
                until: Now::read().unix_ms.saturating_add(GRACE.as_millis() as u64),
            }),
        };
        let definition = Definition { webhook: Arc::new(webhook), former, ..(*known).clone() };
        let written = self.order(&id, |answer| Order::Redefine(Box::new(definition), answer)).await?;
        written.map_err(|Unwritable| WebhookError::Store)?;
        self.get(&id).ok_or(WebhookError::Unknown)
    }

    /// Ends a webhook that the API has registered, with all that is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, or the store cannot be written.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WebhookError> {
        let _alone = self.registry.lock().await;
        self.editable(id)?;
        self.end(id).await;
        self.tools.desk.unregister(id).await.map_err(|Unwritable| WebhookError::Store)
    }

    /// Ends a worker where it stands.
    async fn end(&self, id: &str) {
        let Some(registered) = self.registered().remove(id) else { return };
        registered.removed.cancel();
        let task = registered.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await; // a panic has been seen to
        }
        self.metrics.forget_webhook(id);
    }

    /// Makes a webhook active, whatever it was.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn enable(&self, id: &str) -> Result<View, WebhookError> {
        self.order(id, Order::Enable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Holds a webhook back until it is enabled.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn disable(&self, id: &str) -> Result<View, WebhookError> {
        self.order(id, Order::Disable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Sends a signed sample, whatever the state of the webhook is, and returns how it went.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn test(&self, id: &str) -> Result<Attempt, WebhookError> {
        self.order(id, Order::Test).await
    }

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
        let letters = self.tools.desk.dead_letters(id, which, before, most).await.map_err(|_| WebhookError::Store)?;
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
        let more = self.tools.desk.dead_letters(id, which, Some(last), 1).await.map_err(|_| WebhookError::Store)?;
        Ok((!more.is_empty()).then_some(last))
    }

    /// Puts dead letters back into the queue, and returns how many.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be written.
    pub(crate) async fn redeliver(&self, id: &str, which: Which) -> Result<u64, WebhookError> {
        self.known(id)?;
        self.tools.desk.requeue(id, which).await.map_err(|Unwritable| WebhookError::Store)
    }

    /// Forgets what is owed to any webhook of a session's events, and what it got of them.
    pub(crate) async fn erase(&self, product: &ProductId, session: &SessionId) {
        let concerned = |view: &View| view.webhook.product_id == *product;
        for view in self.list().into_iter().filter(concerned) {
            // One that has been removed meanwhile has forgotten everything.
            let _ = self.order(&view.webhook.id, |answer| Order::Erase(session.clone(), answer)).await;
        }
    }

    /// Gives an order to a worker and waits for the answer.
    async fn order<T>(&self, id: &str, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, WebhookError> {
        let orders = self.known(id)?.orders;
        let (answer, answered) = oneshot::channel();
        orders.send(order(answer)).await.map_err(|_| WebhookError::Leaving)?;
        answered.await.map_err(|_| WebhookError::Leaving)
    }

    fn known(&self, id: &str) -> Result<Registered, WebhookError> {
        self.registered().get(id).cloned().ok_or(WebhookError::Unknown)
    }

    fn editable(&self, id: &str) -> Result<Registered, WebhookError> {
        let registered = self.known(id)?;
        match registered.board.definition().source {
            Source::Api => Ok(registered),
            Source::File => Err(WebhookError::FromFile),
        }
    }

    fn registered(&self) -> MutexGuard<'_, BTreeMap<String, Registered>> {
        // Insertions and removals are each whole: a panic elsewhere does not spoil the map.
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn of(registered: &Registered) -> Self {
        let definition = registered.board.definition();
        let facts = registered.board.facts();
        Self { webhook: Arc::clone(&definition.webhook), source: definition.source, facts }
    }
}

impl Page {
    /// The same with a mark that tells letters from what never was one.
    fn marked(self) -> Self {
        Self { next: self.next.map(|mark| mark + LETTERS), ..self }
    }
}

impl Webhook {
    /// Which of its product's events it gets.
    pub(crate) fn scope(&self) -> Scope {
        let kinds = match &self.types {
            Only::Everything => Only::Everything,
            Only::These(types) => Only::These(types.iter().map(|text| Kind::new(text)).collect()),
        };
        Scope { sessions: self.session_ids.clone(), kinds }
    }
}

impl Now {
    fn read() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { instant: Instant::now(), unix_ms }
    }

    /// The other clock's time at `instant`.
    fn unix_ms_at(self, instant: Instant) -> u64 {
        let ahead = instant.saturating_duration_since(self.instant);
        self.unix_ms.saturating_add(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A webhook as operators see it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// As it was registered.
    pub(crate) webhook: Arc<Webhook>,
    /// By whom.
    pub(crate) source: Source,
    /// How it stands.
    pub(crate) facts: Facts,
}

/// Who has registered a webhook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The configuration: the API cannot change it.
    File,
    /// The admin API.
    Api,
}

impl Source {
    /// As it stands in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

/// How a webhook stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Its endpoint.
    pub(crate) state: EndpointState,
    /// Until when it is throttled, or when it is probed next, in Unix milliseconds.
    pub(crate) until: Option<u64>,
    /// What led to a state other than active.
    pub(crate) problem: Option<String>,
    /// Deliveries that are owed.
    pub(crate) pending: u64,
    /// When the oldest of them became owed, in Unix milliseconds.
    pub(crate) oldest_pending: Option<u64>,
    /// Dead letters.
    pub(crate) dead: u64,
}

/// What has become of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeliveryState {
    /// It is owed.
    Pending,
    /// It was accepted: one of the last.
    Delivered,
    /// It was given up.
    Dead,
}

/// Some deliveries of one state, newest first.
#[derive(Debug)]
pub(crate) struct Page {
    /// The deliveries.
    pub(crate) deliveries: Vec<Listed>,
    /// Set if there are more: where they begin.
    pub(crate) next: Option<u64>,
}

/// A delivery in a list.
#[derive(Debug)]
pub(crate) enum Listed {
    /// It is owed, and due at this time, in Unix milliseconds; none while it waits for its turn or is under way.
    Pending(Delivery, Option<u64>),
    /// It was accepted.
    Delivered(Delivery),
    /// It was given up.
    Dead(DeadLetter),
}

/// What an answer, or the lack of one, means for a delivery.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// 2xx: it is delivered.
    Accepted,
    /// Try again, but not before this has passed if the receiver asks for that.
    Again { after: Option<std::time::Duration> },
    /// 4xx: never again.
    Refused,
    /// 410: never again, and nothing else either.
    Gone,
    /// The address is not one that webhooks may reach: never again.
    Forbidden,
}

/// One moment, on both clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// To wait by.
    instant: tokio::time::Instant,
    /// To write down, in Unix milliseconds.
    unix_ms: u64,
}

/// Why an operator's order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    /// There is no such webhook.
    #[error("no such webhook")]
    Unknown,
    /// There is one of this id already.
    #[error("there is a webhook of this id already")]
    Taken,
    /// The relay has no such product.
    #[error("is none of this relay's products; add it to [[upstreams]]")]
    UnknownProduct,
    /// A webhook stays with its product.
    #[error("cannot be changed; register another webhook")]
    OtherProduct,
    /// The file declares it.
    #[error("the configuration file declares this webhook; change it there")]
    FromFile,
    /// The store cannot be written or read now.
    #[error("the store cannot be used now; try again")]
    Store,
    /// The relay is leaving.
    #[error("the relay is leaving")]
    Leaving,
}

/// How long a secret signs beside its successor: a receiver's deploy, and the night before it.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Orders that wait for one worker; whoever gives more waits, too.
const MOST_ORDERS: usize = 16;

/// Marks in lists from here on are those of letters: no place is as high.
const LETTERS: u64 = 1 << 62;
