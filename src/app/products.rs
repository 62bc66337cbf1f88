//! The tasks that bring each product its events.
//!
//! In: upstreams that are added, changed and removed. Out: one task for each product, on its home
//! shard, in which the upstream's ingest and the fan-out take turns: an event wakes the subscribers
//! of that shard on the thread that it came in on. A removed product's task is joined.
//!
//! May use: `config`, `event`, `http`, `ingest`, `join_woken`, `outbound`, `rejected`, `shard`,
//! `upstream`.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::stop::{StopTokens, join_all};
use crate::{
    config,
    event::ProductId,
    http::Relay,
    ingest::Ingest,
    join_woken::join_woken,
    outbound::client::EventStreamClient,
    rejected::RejectedFrames,
    shard::threads::ShardThreads,
    upstream::{Upstream, UpstreamSettings, status::UpstreamStatus},
};

/// Status of each product's upstream.
pub(super) type UpstreamStatuses = Vec<(ProductId, Arc<UpstreamStatus>)>;

/// Tasks of all products.
#[derive(Debug)]
pub(super) struct ProductTasks {
    by_product: BTreeMap<ProductId, ProductTask>,
    tasks: JoinSet<()>,
    shard_runtimes: Vec<Handle>,
    rejected: Arc<RejectedFrames>,
    stop: StopTokens,
    /// Cancelled when a task has ended before its stop token was cancelled.
    failed: CancellationToken,
}

#[derive(Debug)]
struct ProductTask {
    settings: watch::Sender<UpstreamSettings>,
    status: Arc<UpstreamStatus>,
    stop_ingest: CancellationToken,
    stop_fanout: CancellationToken,
    /// Cancelled when the task has ended and its connection is closed.
    ended: CancellationToken,
}

impl ProductTasks {
    /// Creates an owner without tasks.
    pub(super) fn new(
        shard_threads: &ShardThreads,
        rejected: Arc<RejectedFrames>,
        stop: &StopTokens,
    ) -> Self {
        let shard_runtimes = shard_threads.runtimes().cloned().collect();
        let (by_product, tasks, failed) =
            (BTreeMap::new(), JoinSet::new(), CancellationToken::new());
        Self { by_product, tasks, shard_runtimes, rejected, stop: stop.clone(), failed }
    }

    /// Starts the task of a product, if `relay` has such a product.
    pub(super) fn start(
        &mut self,
        upstream: &config::UpstreamConfig,
        relay: &Relay,
        client: &EventStreamClient,
    ) {
        let id = upstream.product_id.clone();
        let Some(product) = relay.products.get(&id).map(|product| Arc::clone(&product)) else {
            return;
        };
        let Some(runtime) = self.shard_runtimes.get(product.feed.home_shard) else { return };
        let (status, metrics) = (Arc::new(UpstreamStatus::new()), relay.metrics.upstream(&id));
        let (settings_sender, settings) =
            watch::channel(UpstreamSettings { upstream: upstream.clone(), client: client.clone() });
        // After a restart a connector's first stream begins behind a gap, too.
        let has_past = product.feed.log.has_prior_entries();
        let random = fastrand::Rng::new();
        let upstream =
            Upstream::new(settings, has_past, Arc::clone(&status), metrics.clone(), random);
        let (log, rejected) = (Arc::clone(&product.feed.log), Arc::clone(&self.rejected));
        let ingest = Ingest { upstream, log, metrics, status: Arc::clone(&status), rejected };
        let ended = CancellationToken::new();
        let (stop_ingest, stop_fanout) =
            (self.stop.ingest.child_token(), self.stop.serving.child_token());
        let task = ProductTask {
            settings: settings_sender,
            status,
            stop_ingest: stop_ingest.clone(),
            stop_fanout: stop_fanout.clone(),
            ended: ended.clone(),
        };
        let failed = self.failed.clone();
        let work = async move {
            // Both guards cancel on drop, so also when the task panics.
            let (unexpected, _ended) = (failed.drop_guard(), ended.drop_guard());
            // One task, not two: both run on one thread, and no wake-up passes between them.
            join_woken(ingest.run(stop_ingest), product.feed.fanout.run(stop_fanout.clone())).await;
            if stop_fanout.is_cancelled() {
                unexpected.disarm();
            }
        };
        self.tasks.spawn_on(work, runtime);
        self.by_product.insert(id, task);
    }

    /// Passes new settings to a product's upstream, if there is one.
    pub(super) fn change(&self, upstream: &config::UpstreamConfig, client: &EventStreamClient) {
        let Some(task) = self.by_product.get(&upstream.product_id) else { return };
        // A new client alone does not wake the upstream: it is used for the next attempt.
        task.settings.send_if_modified(|wanted| {
            wanted.client = client.clone();
            let is_changed = wanted.upstream != *upstream;
            wanted.upstream = upstream.clone();
            is_changed
        });
    }

    /// Ends a product's task, and returns when its connection is closed.
    pub(super) async fn remove(&mut self, product: &ProductId) {
        let Some(task) = self.by_product.remove(product) else { return };
        task.stop_ingest.cancel();
        task.stop_fanout.cancel();
        task.ended.cancelled().await;
    }

    /// Returns the status of each upstream.
    pub(super) fn statuses(&self) -> UpstreamStatuses {
        self.by_product.iter().map(|(id, feed)| (id.clone(), Arc::clone(&feed.status))).collect()
    }

    /// Waits until a task has ended by itself; returns the panic, if there was one.
    pub(super) async fn wait_for_failure(&mut self) -> Option<JoinError> {
        // Tasks of removed products are joined on the way; they end without a failure.
        while !self.failed.is_cancelled() {
            tokio::select! {
                () = self.failed.cancelled() => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Err(panic) = ended {
                        return Some(panic);
                    }
                }
            }
        }
        None
    }

    /// Joins every task.
    ///
    /// # Errors
    ///
    /// The first panic.
    pub(super) async fn join_all(&mut self) -> Result<(), JoinError> {
        join_all(&mut self.tasks).await
    }
}
