//! The tasks that bring each product its events.
//!
//! In: upstreams that come, change and go. Out: one task for each product, on its lane, in which the upstream's loop and the fan-out
//! take turns, so that an event wakes those of its own lane on the thread it came in on. What was told to end is waited for.
//!
//! May use: `client`, `config`, `event`, `http` (products), `ingest`, `lanes`, `rejected`, `status`, `upstream`.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{Stops, end};
use crate::{
    config,
    event::ProductId,
    http::Relay,
    ingest::Ingest,
    outbound::client::Client,
    rejected::Rejected,
    shard::threads::Lanes,
    upstream::{Settings, Upstream, status::UpstreamStatus},
};

/// What the upstreams say of themselves.
pub(super) type Boards = Vec<(ProductId, Arc<UpstreamStatus>)>;

/// All of them.
#[derive(Debug)]
pub(super) struct Feeds {
    feeds: BTreeMap<ProductId, Feed>,
    tasks: JoinSet<()>,
    lanes: Vec<Handle>,
    rejected: Arc<Rejected>,
    stop: Stops,
    /// Cancelled when a task has ended although nobody told it to.
    broken: CancellationToken,
}

#[derive(Debug)]
struct Feed {
    wanted: watch::Sender<Settings>,
    status: Arc<UpstreamStatus>,
    stop_ingest: CancellationToken,
    stop_fanout: CancellationToken,
    /// Cancelled when the task has ended, and its connection is closed.
    ended: CancellationToken,
}

impl Feeds {
    /// None yet.
    pub(super) fn new(lanes: &Lanes, rejected: Arc<Rejected>, stop: &Stops) -> Self {
        let lanes = lanes.runtimes().cloned().collect();
        let (feeds, tasks, broken) = (BTreeMap::new(), JoinSet::new(), CancellationToken::new());
        Self { feeds, tasks, lanes, rejected, stop: stop.clone(), broken }
    }

    /// Begins to bring a product its events, if there is such a product.
    pub(super) fn begin(&mut self, upstream: &config::Upstream, relay: &Relay, client: &Client) {
        let id = upstream.product_id.clone();
        let Some(product) = relay.products.get(&id).map(|product| Arc::clone(&product)) else { return };
        let Some(lane) = self.lanes.get(product.lane) else { return };
        let (status, metrics) = (Arc::new(UpstreamStatus::new()), relay.metrics.upstream(&id));
        let (wanted, settings) = watch::channel(Settings { upstream: upstream.clone(), client: client.clone() });
        let has_past = product.log.has_past();
        let random = fastrand::Rng::new();
        let upstream = Upstream::new(settings, has_past, Arc::clone(&status), metrics.clone(), random);
        let (log, rejected) = (Arc::clone(&product.log), Arc::clone(&self.rejected));
        let ingest = Ingest { upstream, log, metrics, status: Arc::clone(&status), rejected };
        let ended = CancellationToken::new();
        let (stop_ingest, stop_fanout) = (self.stop.ingest.child_token(), self.stop.serving.child_token());
        let feed = Feed {
            wanted,
            status,
            stop_ingest: stop_ingest.clone(),
            stop_fanout: stop_fanout.clone(),
            ended: ended.clone(),
        };
        let broken = self.broken.clone();
        let work = async move {
            let (unexpected, _ended) = (broken.drop_guard(), ended.drop_guard());
            tokio::join!(ingest.run(stop_ingest), product.fanout.run(stop_fanout.clone()));
            if stop_fanout.is_cancelled() {
                unexpected.disarm();
            }
        };
        self.tasks.spawn_on(work, lane);
        self.feeds.insert(id, feed);
    }

    /// Has a product's upstream go on by these settings, if there is one.
    pub(super) fn change(&self, upstream: &config::Upstream, client: &Client) {
        let Some(feed) = self.feeds.get(&upstream.product_id) else { return };
        feed.wanted.send_if_modified(|wanted| {
            wanted.client = client.clone();
            let is_another = wanted.upstream != *upstream;
            wanted.upstream = upstream.clone();
            is_another
        });
    }

    /// Ends what a product gets, and returns when its connection is closed.
    pub(super) async fn remove(&mut self, product: &ProductId) {
        let Some(feed) = self.feeds.remove(product) else { return };
        feed.stop_ingest.cancel();
        feed.stop_fanout.cancel();
        feed.ended.cancelled().await;
    }

    /// What the upstreams say of themselves.
    pub(super) fn boards(&self) -> Boards {
        self.feeds.iter().map(|(id, feed)| (id.clone(), Arc::clone(&feed.status))).collect()
    }

    /// Waits until a task has ended by itself; the panic, if it was one.
    pub(super) async fn broken(&mut self) -> Option<JoinError> {
        while !self.broken.is_cancelled() {
            tokio::select! {
                () = self.broken.cancelled() => {}
                Some(ended) = self.tasks.join_next() => if let Err(panic) = ended { return Some(panic) },
            }
        }
        None
    }

    /// Joins every task.
    ///
    /// # Errors
    ///
    /// The first panic there was.
    pub(super) async fn end(&mut self) -> Result<(), JoinError> {
        end(&mut self.tasks).await
    }
}
