//! Who is registered: starts a worker for each webhook, passes operators' orders on, ends what is removed.
//!
//! May use: `config`, `delivery`, `event`, `fanout`, `log`, `metrics`, the webhooks' own rooms.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    Now, Source, View, WebhookError, Which,
    context::{Tools, WayOut},
    definition::{Definition, Former, Remembered},
    status::Board,
    worker::{Order, Start, Worker},
};
use crate::{
    config::{Network, Webhook},
    event::{ProductId, SessionId},
    fanout::Fanout,
    metrics::Metrics,
    outbound::egress_guard::Guard,
    store::{Desk, KeptWebhook, Owed, Unwritable},
    webhook_delivery::Attempt,
};

/// Every registered webhook.
#[derive(Debug)]
pub(crate) struct Webhooks {
    products: Mutex<HashMap<ProductId, Arc<Fanout>>>,
    tools: Arc<Tools>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    registered: Arc<Mutex<BTreeMap<String, Registered>>>,
    /// Held by whoever registers, changes or removes one: these take their time.
    pub(super) registry: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when a worker ends by itself, which none does.
    broken: CancellationToken,
}

/// One webhook and the way to its worker.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) board: Arc<Board>,
    orders: mpsc::Sender<Order>,
    /// Tells the worker to finish what is under way and end, and leave everything in the store.
    pub(super) laid_aside: CancellationToken,
    /// Tells the worker to end where it stands, and for good.
    pub(super) removed: CancellationToken,
    /// Cancelled when it has ended, and nothing is left of the webhook that is not in the store.
    pub(super) gone: CancellationToken,
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
            way_out: RwLock::new(WayOut { guard: Arc::new(Guard::new(ground.allow_networks)), tls: ground.tls }),
        };
        let webhooks = Self {
            products: Mutex::new(
                ground.fanouts.into_iter().map(|fanout| (fanout.log().product().clone(), fanout)).collect(),
            ),
            tools: Arc::new(tools),
            metrics: ground.metrics,
            runtime: Handle::current(),
            registered: Arc::default(),
            registry: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            broken: CancellationToken::new(),
        };
        webhooks.resume(declared, kept);
        webhooks
    }

    pub(super) fn resume(&self, declared: &[Webhook], kept: Vec<KeptWebhook>) {
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
            let Remembered { webhook, disabled, throttled_until, former } = remembered;
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
            let definition = Definition { disabled, throttled_until, former, ..Definition::new(webhook, source) };
            if definition.webhook.product_id == product {
                self.spawn(definition, Some(position), owed, None);
            } else {
                warn!(webhook = id, "the webhook has another product now: it begins anew there");
                drop(self.tools.desk.unregister(&id)); // carried out though nobody waits
                self.spawn(definition, None, Vec::new(), None);
            }
        }
        for webhook in declared.into_values() {
            self.spawn(Definition::new(webhook.clone(), Source::File), None, Vec::new(), None);
        }
    }

    /// Starts a worker at `position`, or with what comes from now on.
    pub(super) fn spawn(
        &self,
        definition: Definition,
        position: Option<u64>,
        owed: Vec<Owed>,
        registered: Option<oneshot::Sender<Result<(), Unwritable>>>,
    ) {
        let id = definition.webhook.id.clone();
        let Some(fanout) = self.fanout(&definition.webhook.product_id) else {
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
        let (removed, gone, stop) = (CancellationToken::new(), CancellationToken::new(), self.stop.child_token());
        let registered =
            Registered { board, orders, laid_aside: stop.clone(), removed: removed.clone(), gone: gone.clone() };
        self.registered().insert(id.clone(), registered);
        let (leaving, broken, tools) = (self.stop.clone(), self.broken.clone(), Arc::clone(&self.tools));
        let (registered, metrics) = (Arc::clone(&self.registered), Arc::clone(&self.metrics));
        let task = async move {
            let panicked = broken.drop_guard();
            Box::pin(worker.run(stop.clone(), removed.clone())).await;
            let is_gone = match removed.is_cancelled() {
                true => tools.unregister(&id, &leaving).await,
                false => !leaving.is_cancelled(), // laid aside
            };
            if is_gone {
                lock(&registered).remove(&id);
                metrics.forget_webhook(&id);
                gone.cancel();
            }
            panicked.disarm();
        };
        self.tasks.spawn_on(task, &self.runtime);
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

    /// Where outboxes are kept: the store of the logs, where these are kept, too.
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.tools.desk
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
        if self.fanout(&webhook.product_id).is_none() {
            return Err(WebhookError::UnknownProduct);
        }
        if self.registered().len() >= MOST_WEBHOOKS {
            return Err(WebhookError::TooMany);
        }
        let (written, is_written) = oneshot::channel();
        self.spawn(Definition::new(webhook, Source::Api), None, Vec::new(), Some(written));
        match is_written.await {
            Ok(Ok(())) => {
                info!(webhook = id, "the webhook is registered");
                self.get(&id).ok_or(WebhookError::Leaving)
            }
            Ok(Err(Unwritable)) => {
                drop(self.end(&self.known(&id)?));
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
        let definition = known.followed_by(webhook, Source::Api);
        let written = self.order(&id, |answer| Order::Redefine(Box::new(definition), answer)).await?;
        info!(webhook = id, "the webhook is changed");
        written.map_err(|Unwritable| WebhookError::Store)?;
        self.get(&id).ok_or(WebhookError::Unknown)
    }

    /// Ends a webhook that the API has registered, with all that is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, or the store cannot be written; then it ends when it can. When the
    /// relay leaves before it is out of the store; then it is still there in the next life.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out whether or not anybody waits.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WebhookError> {
        let _alone = self.registry.lock().await;
        let registered = self.editable(id)?;
        if registered.orders.is_closed() && !registered.removed.is_cancelled() {
            return Err(WebhookError::Leaving); // its worker has left already
        }
        let gone = time::timeout(PATIENCE, self.end(&registered)).await;
        let unfinished = if self.stop.is_cancelled() { WebhookError::Leaving } else { WebhookError::Store };
        gone.map_err(|_| unfinished)?;
        info!(webhook = id, "the webhook is removed, with what it is owed and its dead letters");
        Ok(())
    }

    pub(super) fn end(&self, registered: &Registered) -> impl Future<Output = ()> + use<> {
        registered.removed.cancel();
        registered.gone.clone().cancelled_owned()
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

    /// Puts dead letters back into the queue, and returns how many.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be written.
    pub(crate) async fn redeliver(&self, id: &str, which: Which) -> Result<u64, WebhookError> {
        self.known(id)?;
        let requeued = self.tools.desk.requeue(id, which).await.map_err(|Unwritable| WebhookError::Store)?;
        info!(webhook = id, deliveries = requeued, "dead letters are to be delivered again");
        Ok(requeued)
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
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the relay is leaving.
    pub(super) async fn order<T>(
        &self,
        id: &str,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, WebhookError> {
        let orders = self.known(id)?.orders;
        let (answer, answered) = oneshot::channel();
        orders.send(order(answer)).await.map_err(|_| WebhookError::Leaving)?;
        answered.await.map_err(|_| WebhookError::Leaving)
    }

    /// One of them, and the way to it.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(super) fn known(&self, id: &str) -> Result<Registered, WebhookError> {
        self.registered().get(id).cloned().ok_or(WebhookError::Unknown)
    }

    /// Every one there is, and the way to it.
    pub(super) fn all(&self) -> Vec<(String, Registered)> {
        self.registered().iter().map(|(id, registered)| (id.clone(), registered.clone())).collect()
    }

    /// Whether what they are owed outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        self.tools.is_durable
    }

    pub(super) fn serve(&self, fanout: Arc<Fanout>) {
        lock(&self.products).insert(fanout.log().product().clone(), fanout);
    }

    pub(super) fn serve_no_more(&self, product: &ProductId) {
        lock(&self.products).remove(product);
    }

    pub(super) fn set_way_out(&self, way_out: WayOut) {
        *self.tools.way_out.write().unwrap_or_else(PoisonError::into_inner) = way_out;
    }

    fn fanout(&self, product: &ProductId) -> Option<Arc<Fanout>> {
        lock(&self.products).get(product).map(Arc::clone)
    }

    fn editable(&self, id: &str) -> Result<Registered, WebhookError> {
        let registered = self.known(id)?;
        match registered.board.definition().source {
            Source::Api => Ok(registered),
            Source::File => Err(WebhookError::FromFile),
        }
    }

    fn registered(&self) -> MutexGuard<'_, BTreeMap<String, Registered>> {
        lock(&self.registered)
    }
}

impl Definition {
    /// The definition when the webhook is changed. A former secret signs beside a new one for a while.
    pub(super) fn followed_by(&self, webhook: Webhook, source: Source) -> Self {
        let former = match self.webhook.secret == webhook.secret {
            true => self.former.clone(),
            false => Some(Former {
                secret: self.webhook.secret.clone(),
                until: Now::read().unix_ms.saturating_add(GRACE.as_millis() as u64),
            }),
        };
        Self { webhook: Arc::new(webhook), source, former, ..self.clone() }
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    // Insertions and removals are each whole: a panic elsewhere does not spoil the map.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl View {
    fn of(registered: &Registered) -> Self {
        let definition = registered.board.definition();
        let facts = registered.board.facts();
        Self { webhook: Arc::clone(&definition.webhook), source: definition.source, facts }
    }
}

/// How long a secret signs beside its successor: a receiver's deploy, and the night before it.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an operator waits for the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Each has a worker and connections of its own.
pub(super) const MOST_WEBHOOKS: usize = 1000;

/// Orders that wait for one worker; whoever gives more waits, too.
const MOST_ORDERS: usize = 16;
