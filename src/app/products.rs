//! The tasks that bring each product its events.
//!
//! In: products that are added, changed and removed. Out: one task for each, on its home shard, in
//! which the upstream's ingest, if there is an upstream, and the fan-out take turns: an event wakes
//! the subscribers of that shard on the thread that it came in on. A removed product's task is
//! joined.
//!
//! May use: `config`, `event`, `http`, `ingest`, `join_woken`, `log`, `outbound`, `rejected`,
//! `shard`, `upstream`.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::stop::{StopTokens, join_all};
use crate::{
    config::{self, ServedProduct},
    event::ProductId,
    http::Relay,
    ingest::Ingest,
    join_woken::join_woken,
    log::{Log, Numbering},
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
    upstream: Option<UpstreamHandle>,
    /// The product has had an upstream since the process began.
    had_upstream: bool,
    stop_ingest: CancellationToken,
    stop_fanout: CancellationToken,
    /// Cancelled when the task has ended and its connection is closed.
    ended: CancellationToken,
}

/// What the owner of a task keeps of its upstream.
#[derive(Debug)]
struct UpstreamHandle {
    settings: watch::Sender<UpstreamSettings>,
    status: Arc<UpstreamStatus>,
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
        served: ServedProduct<'_>,
        relay: &Relay,
        client: &EventStreamClient,
    ) {
        self.start_with_past(served, relay, client, false);
    }

    fn start_with_past(
        &mut self,
        served: ServedProduct<'_>,
        relay: &Relay,
        client: &EventStreamClient,
        had_upstream: bool,
    ) {
        let Some(product) = relay.products.get(served.id).map(|product| Arc::clone(&product))
        else {
            return;
        };
        let Some(runtime) = self.shard_runtimes.get(product.feed.home_shard) else { return };
        let (upstream, ingest) = match served.upstream {
            Some(upstream) => {
                // After a restart a connector's first stream begins behind a gap, too.
                let has_past = had_upstream || product.feed.log.has_prior_entries();
                let log = &product.feed.log;
                let (handle, ingest) = self.ingest(upstream, has_past, log, relay, client);
                (Some(handle), Some(ingest))
            }
            None => {
                product.feed.log.set_numbering(Numbering::Own);
                product.feed.log.finish_replay();
                (None, None)
            }
        };
        let ended = CancellationToken::new();
        let (stop_ingest, stop_fanout) =
            (self.stop.ingest.child_token(), self.stop.serving.child_token());
        let task = ProductTask {
            had_upstream: had_upstream || upstream.is_some(),
            upstream,
            stop_ingest: stop_ingest.clone(),
            stop_fanout: stop_fanout.clone(),
            ended: ended.clone(),
        };
        let failed = self.failed.clone();
        let work = async move {
            // Both guards cancel on drop, so also when the task panics.
            let (unexpected, _ended) = (failed.drop_guard(), ended.drop_guard());
            let fanout = product.feed.fanout.run(stop_fanout.clone());
            match ingest {
                // One task, not two: both run on one thread, and no wake-up passes between them.
                Some(ingest) => join_woken(ingest.run(stop_ingest), fanout).await,
                None => fanout.await,
            }
            if stop_fanout.is_cancelled() {
                unexpected.disarm();
            }
        };
        self.tasks.spawn_on(work, runtime);
        self.by_product.insert(served.id.clone(), task);
    }

    fn ingest(
        &self,
        upstream: &config::UpstreamConfig,
        has_past: bool,
        log: &Arc<Log>,
        relay: &Relay,
        client: &EventStreamClient,
    ) -> (UpstreamHandle, Ingest) {
        let status = Arc::new(UpstreamStatus::new());
        let metrics = relay.metrics.upstream(&upstream.product_id);
        let (settings_sender, settings) =
            watch::channel(UpstreamSettings { upstream: upstream.clone(), client: client.clone() });
        let random = fastrand::Rng::new();
        let upstream =
            Upstream::new(settings, has_past, Arc::clone(&status), metrics.clone(), random);
        let (log, rejected) = (Arc::clone(log), Arc::clone(&self.rejected));
        let ingest = Ingest { upstream, log, metrics, status: Arc::clone(&status), rejected };
        (UpstreamHandle { settings: settings_sender, status }, ingest)
    }

    /// Passes new settings to a product's upstream. A product that had an upstream and has none
    /// now, or the other way round, gets another task; log and subscribers stay.
    pub(super) async fn change(
        &mut self,
        served: ServedProduct<'_>,
        relay: &Relay,
        client: &EventStreamClient,
    ) {
        let Some(task) = self.by_product.get(served.id) else { return };
        match (&task.upstream, served.upstream) {
            (None, None) => {}
            (Some(handle), Some(upstream)) => {
                // A new client alone does not wake the upstream: it is used for the next attempt.
                handle.settings.send_if_modified(|wanted| {
                    wanted.client = client.clone();
                    let is_changed = wanted.upstream != *upstream;
                    wanted.upstream = upstream.clone();
                    is_changed
                });
            }
            (Some(_), None) | (None, Some(_)) => {
                let had_upstream = task.had_upstream;
                self.remove(served.id).await;
                relay.metrics.remove_upstream(served.id);
                self.start_with_past(served, relay, client, had_upstream);
            }
        }
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
        let upstreams = self.by_product.iter().filter_map(|(id, task)| {
            task.upstream.as_ref().map(|upstream| (id.clone(), Arc::clone(&upstream.status)))
        });
        upstreams.collect()
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
