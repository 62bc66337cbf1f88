//! Who is registered: starts a worker for each webhook, passes operators' orders on, ends what is removed.
//!
//! May use: `config`, `delivery`, `event`, `fanout`, `log`, `metrics`, the webhooks' own rooms.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

use super::{
    WebhookError, WebhookSource, WebhookSummary,
    context::{EgressPolicy, WebhookContext},
    definition::{Definition, RestoredDefinition},
    status::SharedStatus,
    worker::{WebhookCommand, Worker, WorkerInit},
};
use crate::{
    config::{Network, WebhookConfig},
    event::ProductId,
    fanout::Fanout,
    metrics::Metrics,
    outbound::egress_guard::EgressGuard,
    store::{OwedDelivery, StoreHandle, StoreUnwritable, StoredWebhook},
};

/// Every registered webhook.
#[derive(Debug)]
pub(crate) struct Webhooks {
    products: Mutex<HashMap<ProductId, Arc<Fanout>>>,
    pub(super) context: Arc<WebhookContext>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    handles: Arc<Mutex<BTreeMap<String, WorkerHandle>>>,
    /// Held by whoever registers, changes or removes one: these take their time.
    pub(super) changes: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Cancelled when a worker ends by itself, which none does.
    worker_failed: CancellationToken,
}

/// One webhook and the way to its worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerHandle {
    pub(super) shared: Arc<SharedStatus>,
    pub(super) commands: mpsc::Sender<WebhookCommand>,
    /// Tells the worker to finish what is under way and end, and leave everything in the store.
    pub(super) suspended: CancellationToken,
    /// Tells the worker to end where it stands, and for good.
    pub(super) removed: CancellationToken,
    /// Cancelled when it has ended, and nothing is left of the webhook that is not in the store.
    pub(super) ended: CancellationToken,
}

/// What webhooks stand on.
#[derive(Debug)]
pub(crate) struct WebhookDependencies<'a> {
    /// Of each product.
    pub(crate) fanouts: Vec<Arc<Fanout>>,
    /// Where outboxes are kept.
    pub(crate) store: Arc<StoreHandle>,
    /// Whether that outlives the process.
    pub(crate) is_durable: bool,
    /// Bytes of owed events that one webhook may hold where nothing else keeps them.
    pub(crate) max_memory_bytes: u64,
    /// Networks that may be reached although they are not public.
    pub(crate) allow_networks: &'a [Network],
    /// Whom to trust.
    pub(crate) tls: rustls::ClientConfig,
    /// Where all is counted.
    pub(crate) metrics: Arc<Metrics>,
}

impl Webhooks {
    /// Starts a worker for each webhook that the configuration declares or that the store has kept, on the present runtime.
    pub(crate) fn start(
        dependencies: WebhookDependencies<'_>,
        declared: &[WebhookConfig],
        kept: Vec<StoredWebhook>,
    ) -> Self {
        let context = WebhookContext {
            store: dependencies.store,
            is_durable: dependencies.is_durable,
            max_memory_bytes: dependencies.max_memory_bytes,
            egress: RwLock::new(EgressPolicy {
                guard: Arc::new(EgressGuard::new(dependencies.allow_networks)),
                tls: dependencies.tls,
            }),
        };
        let webhooks = Self {
            products: Mutex::new(
                dependencies
                    .fanouts
                    .into_iter()
                    .map(|fanout| (fanout.log().product().clone(), fanout))
                    .collect(),
            ),
            context: Arc::new(context),
            metrics: dependencies.metrics,
            runtime: Handle::current(),
            handles: Arc::default(),
            changes: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            worker_failed: CancellationToken::new(),
        };
        webhooks.restore(declared, kept);
        webhooks
    }

    pub(super) fn restore(&self, declared: &[WebhookConfig], kept: Vec<StoredWebhook>) {
        let mut declared: BTreeMap<&str, &WebhookConfig> =
            declared.iter().map(|it| (it.id.as_str(), it)).collect();
        for StoredWebhook { id, product, definition, position, owed } in kept {
            let restored = match RestoredDefinition::from_stored(&definition) {
                Ok(restored) => restored,
                Err(problem) => {
                    error!(
                        webhook = id,
                        problem,
                        "what the store has of the webhook cannot be understood; it is left alone"
                    );
                    continue;
                }
            };
            let RestoredDefinition {
                webhook,
                disabled,
                throttled_until,
                previous_secret: previous,
            } = restored;
            let (webhook, source) = match (declared.remove(id.as_str()), webhook) {
                (Some(webhook), _) => (webhook.clone(), WebhookSource::File),
                (None, Some(webhook)) => (webhook, WebhookSource::Api),
                (None, None) => {
                    warn!(
                        webhook = id,
                        pending = owed.len(),
                        "the webhook is declared no more: what it was owed is forgotten"
                    );
                    drop(self.context.store.unregister(&id)); // carried out though nobody waits
                    continue;
                }
            };
            let definition = Definition {
                disabled,
                throttled_until,
                previous_secret: previous,
                ..Definition::new(webhook, source)
            };
            if definition.webhook.product_id == product {
                self.spawn_worker(definition, Some(position), owed, None);
            } else {
                warn!(webhook = id, "the webhook has another product now: it begins anew there");
                drop(self.context.store.unregister(&id)); // carried out though nobody waits
                self.spawn_worker(definition, None, Vec::new(), None);
            }
        }
        for webhook in declared.into_values() {
            self.spawn_worker(
                Definition::new(webhook.clone(), WebhookSource::File),
                None,
                Vec::new(),
                None,
            );
        }
    }

    /// Starts a worker at `position`, or with what comes from now on.
    pub(super) fn spawn_worker(
        &self,
        definition: Definition,
        position: Option<u64>,
        owed: Vec<OwedDelivery>,
        on_registered: Option<oneshot::Sender<Result<(), StoreUnwritable>>>,
    ) {
        let id = definition.webhook.id.clone();
        let Some(fanout) = self.fanout(&definition.webhook.product_id) else {
            error!(
                webhook = id,
                "the webhook's product is none of this relay's; add it to [[upstreams]]"
            );
            return;
        };
        let shared = Arc::new(SharedStatus::new(definition));
        let (commands, inbox) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let init = WorkerInit {
            shared: Arc::clone(&shared),
            position: position.unwrap_or_else(|| fanout.log().newest_position()),
            fanout,
            commands: inbox,
            owed,
            metrics: self.metrics.webhook(&id),
            on_registered,
        };
        let worker = Worker::new(Arc::clone(&self.context), init);
        let (removed, ended, stop) =
            (CancellationToken::new(), CancellationToken::new(), self.stop.child_token());
        let handle = WorkerHandle {
            shared,
            commands,
            suspended: stop.clone(),
            removed: removed.clone(),
            ended: ended.clone(),
        };
        self.lock_handles().insert(id.clone(), handle);
        let (shutdown, worker_failed, context) =
            (self.stop.clone(), self.worker_failed.clone(), Arc::clone(&self.context));
        let (handles, metrics) = (Arc::clone(&self.handles), Arc::clone(&self.metrics));
        let task = async move {
            let failure_guard = worker_failed.drop_guard();
            Box::pin(worker.run(stop.clone(), removed.clone())).await;
            let is_finished = match removed.is_cancelled() {
                true => context.unregister(&id, &shutdown).await,
                false => !shutdown.is_cancelled(), // laid aside
            };
            if is_finished {
                lock(&handles).remove(&id);
                metrics.remove_webhook(&id);
                ended.cancel();
            }
            failure_guard.disarm();
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Waits until a worker has ended by itself.
    pub(crate) async fn worker_failed(&self) {
        self.worker_failed.cancelled().await;
    }

    /// Finishes what is under way, writes everything down, and ends every worker.
    pub(crate) async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Where outboxes are kept: the store of the logs, where these are kept, too.
    pub(crate) fn store(&self) -> &Arc<StoreHandle> {
        &self.context.store
    }

    /// All of them, by id.
    pub(crate) fn list(&self) -> Vec<WebhookSummary> {
        self.lock_handles().values().map(WebhookSummary::of).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, id: &str) -> Option<WebhookSummary> {
        self.lock_handles().get(id).map(WebhookSummary::of)
    }

    /// Gives an order to a worker and waits for the answer.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the relay is leaving.
    pub(super) async fn send_command<T>(
        &self,
        id: &str,
        command: impl FnOnce(oneshot::Sender<T>) -> WebhookCommand,
    ) -> Result<T, WebhookError> {
        let commands = self.handle(id)?.commands;
        let (reply, response) = oneshot::channel();
        commands.send(command(reply)).await.map_err(|_| WebhookError::ShuttingDown)?;
        response.await.map_err(|_| WebhookError::ShuttingDown)
    }

    /// One of them, and the way to it.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(super) fn handle(&self, id: &str) -> Result<WorkerHandle, WebhookError> {
        self.lock_handles().get(id).cloned().ok_or(WebhookError::Unknown)
    }

    /// Every one there is, and the way to it.
    pub(super) fn handles(&self) -> Vec<(String, WorkerHandle)> {
        self.lock_handles().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect()
    }

    /// Whether what they are owed outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        self.context.is_durable
    }

    pub(super) fn add_product(&self, fanout: Arc<Fanout>) {
        lock(&self.products).insert(fanout.log().product().clone(), fanout);
    }

    pub(super) fn remove_product(&self, product: &ProductId) {
        lock(&self.products).remove(product);
    }

    pub(super) fn replace_egress_policy(&self, policy: EgressPolicy) {
        *self.context.egress.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    pub(super) fn fanout(&self, product: &ProductId) -> Option<Arc<Fanout>> {
        lock(&self.products).get(product).map(Arc::clone)
    }

    pub(super) fn lock_handles(&self) -> MutexGuard<'_, BTreeMap<String, WorkerHandle>> {
        lock(&self.handles)
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    // Insertions and removals are each whole: a panic elsewhere does not spoil the map.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WebhookSummary {
    fn of(handle: &WorkerHandle) -> Self {
        let definition = handle.shared.definition();
        let facts = handle.shared.status();
        Self { webhook: Arc::clone(&definition.webhook), source: definition.source, status: facts }
    }
}

/// Orders that wait for one worker; whoever gives more waits, too.
const MAX_QUEUED_COMMANDS: usize = 16;
