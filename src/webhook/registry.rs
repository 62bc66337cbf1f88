//! Registry of all webhooks: starts a worker for each and owns the worker tasks.
//!
//! In: webhooks declared in the configuration, webhooks restored from the store, products that come
//! and go. Out: a `WorkerHandle` per webhook, through which `operate.rs`, `reconcile.rs` and
//! `list.rs` reach the worker.
//!
//! May use: `config`, `event`, `fanout`, `metrics`, `outbound`, `store`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard, RwLock};
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
    outbound::egress_guard::{EgressConnections, EgressGuard},
    store::{OwedDelivery, StoreHandle, StoreUnwritable, StoredWebhook},
};

/// Every registered webhook, and everything that a new worker needs.
#[derive(Debug)]
pub(crate) struct Webhooks {
    products: Mutex<HashMap<ProductId, Arc<Fanout>>>,
    pub(super) context: Arc<WebhookContext>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    handles: Arc<Mutex<BTreeMap<String, WorkerHandle>>>,
    /// Serialises registrations, changes and removals. An async lock, because its holder waits for
    /// the store; commands that leave the set of webhooks as it is do not take it.
    pub(super) changes: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Cancelled when a worker task ends by panic, which is a bug; the process then shuts down.
    worker_failed: CancellationToken,
}

/// One webhook's published status, the channel to its worker, and the tokens of its life cycle.
#[derive(Clone, Debug)]
pub(super) struct WorkerHandle {
    pub(super) shared: Arc<SharedStatus>,
    pub(super) commands: mpsc::Sender<WebhookCommand>,
    /// Asks the worker to finish its attempts and end; everything stays in the store.
    pub(super) suspended: CancellationToken,
    /// Ends the worker at its next await, without finishing attempts; the webhook is then
    /// unregistered.
    pub(super) removed: CancellationToken,
    /// Cancelled once the worker has ended and nothing about the webhook is only in memory.
    pub(super) ended: CancellationToken,
}

/// Parts of the relay that webhooks depend on.
#[derive(Debug)]
pub(crate) struct WebhookDependencies<'a> {
    /// One fan-out per product.
    pub(crate) fanouts: Vec<Arc<Fanout>>,
    /// Store of the outboxes.
    pub(crate) store: Arc<StoreHandle>,
    /// Whether the store outlives the process.
    pub(crate) is_durable: bool,
    /// Bytes of owed events that one webhook may keep in memory if the store is not durable.
    pub(crate) max_memory_bytes: u64,
    /// Networks that webhooks may reach although they are not public.
    pub(crate) allow_networks: &'a [Network],
    /// TLS settings and trusted roots for connections to receivers.
    pub(crate) tls: rustls::ClientConfig,
    /// Connections to receivers at one time.
    pub(crate) max_connections: usize,
    /// Metrics of the process.
    pub(crate) metrics: Arc<Metrics>,
}

impl Webhooks {
    /// Starts a worker for each declared webhook and for each webhook restored from the store, on
    /// the current runtime.
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
            connections: EgressConnections::new(dependencies.max_connections),
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

    /// Starts workers for restored webhooks and for declared ones without a stored counterpart.
    ///
    /// A stored webhook that came from the file and is no longer declared is unregistered, with its
    /// owed deliveries and dead letters. A stored definition that cannot be parsed stays in the
    /// store unchanged.
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
                        "the webhook's stored definition cannot be parsed: \
                         the webhook stays in the store and is not started"
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
                        "the webhook is no longer declared: what it was owed is deleted"
                    );
                    drop(self.context.store.unregister(&id)); // the writer executes it regardless
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
                // Its positions count the former product's log and mean nothing in the new one's.
                warn!(webhook = id, "the webhook has another product now: it begins anew there");
                drop(self.context.store.unregister(&id)); // the writer executes it regardless
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

    /// Starts a worker behind `position`, or behind the newest entry if the webhook is new.
    ///
    /// `on_registered` is answered when the definition is in the store, or could not be written.
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
                "the relay does not have the webhook's product; add it to [[upstreams]] or [[products]]"
            );
            return;
        };
        let shared = Arc::new(SharedStatus::new(definition, &fanout));
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
            // A panic of the worker drops the guard, which cancels `worker_failed`.
            let failure_guard = worker_failed.drop_guard();
            Box::pin(worker.run(stop.clone(), removed.clone())).await;
            let is_finished = match removed.is_cancelled() {
                true => context.unregister(&id, &shutdown).await,
                // Suspended: the product was removed. On shutdown the handle stays registered.
                false => !shutdown.is_cancelled(),
            };
            if is_finished {
                // Before `ended`: a caller that waits for it may register the same id next.
                handles.lock().remove(&id);
                metrics.remove_webhook(&id);
                ended.cancel();
            }
            failure_guard.disarm();
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Waits until a worker has ended by panic.
    pub(crate) async fn worker_failed(&self) {
        self.worker_failed.cancelled().await;
    }

    /// Cancels every worker and waits until attempts are finished and the outboxes are flushed.
    ///
    /// Bounded: attempts have 10 s, the last flush 2 s, a pending removal 2 s.
    pub(crate) async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns the store of the outboxes, which with `log.data_dir` is the store of the logs.
    pub(crate) fn store(&self) -> &Arc<StoreHandle> {
        &self.context.store
    }

    /// Returns all webhooks, by id.
    pub(crate) fn list(&self) -> Vec<WebhookSummary> {
        self.lock_handles().values().map(WebhookSummary::of).collect()
    }

    /// Returns one webhook.
    pub(crate) fn get(&self, id: &str) -> Option<WebhookSummary> {
        self.lock_handles().get(id).map(WebhookSummary::of)
    }

    /// Sends a command to a worker and waits for the reply.
    ///
    /// Waits while [`MAX_QUEUED_COMMANDS`] are queued. Dropping the future may leave the command
    /// queued: the worker then executes it and discards the reply.
    ///
    /// # Errors
    ///
    /// [`WebhookError::Unknown`] if no webhook has this id, [`WebhookError::ShuttingDown`] if the
    /// worker has ended.
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

    /// Returns a copy of one webhook's handle, so that callers wait without the lock.
    ///
    /// # Errors
    ///
    /// [`WebhookError::Unknown`] if no webhook has this id.
    pub(super) fn handle(&self, id: &str) -> Result<WorkerHandle, WebhookError> {
        self.lock_handles().get(id).cloned().ok_or(WebhookError::Unknown)
    }

    /// Returns a copy of every handle, with its id.
    pub(super) fn handles(&self) -> Vec<(String, WorkerHandle)> {
        self.lock_handles().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect()
    }

    /// Returns whether owed deliveries outlive the process.
    pub(super) fn is_durable(&self) -> bool {
        self.context.is_durable
    }

    pub(super) fn add_product(&self, fanout: Arc<Fanout>) {
        self.products.lock().insert(fanout.log().product().clone(), fanout);
    }

    pub(super) fn remove_product(&self, product: &ProductId) {
        self.products.lock().remove(product);
    }

    pub(super) fn replace_egress_policy(&self, policy: EgressPolicy) {
        *self.context.egress.write() = policy;
    }

    pub(super) fn fanout(&self, product: &ProductId) -> Option<Arc<Fanout>> {
        self.products.lock().get(product).map(Arc::clone)
    }

    pub(super) fn lock_handles(&self) -> MutexGuard<'_, BTreeMap<String, WorkerHandle>> {
        self.handles.lock()
    }
}

impl WebhookSummary {
    fn of(handle: &WorkerHandle) -> Self {
        let definition = handle.shared.definition();
        let status = handle.shared.status();
        Self { webhook: Arc::clone(&definition.webhook), source: definition.source, status }
    }
}

/// Commands that may wait for one worker; a sender beyond that waits too.
const MAX_QUEUED_COMMANDS: usize = 16;
