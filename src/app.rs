//! Builds the rooms, connects them, owns their tasks, and takes them down in order.
//!
//! Decides nothing about events. May use: everything.

mod certificate;
mod files;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use axum::Router;
use dashmap::DashMap;
use tokio::{
    runtime::Handle,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::certificate::{Certificate, CertificateError};
use crate::{
    auth::{Access, SoleKey},
    client::{self, Client, TlsError},
    config::{Config, Secret},
    event::ProductId,
    fanout::Fanout,
    http::{
        self, Product, Relay,
        admin::Admin,
        credential::Places,
        guard::Guard,
        page::Pages,
        products::Streamed,
        publish::Bodies,
        sse::Shards,
        subscribers::{Leave, Subscribers},
        watch::MOST_ONLOOKERS,
        ws::Envelopes,
    },
    ingest::Ingest,
    lanes::Lanes,
    log::{
        Bounds, Log,
        store::{Settings, Store, StoreError},
    },
    metrics::{Metrics, ShedReason, Transport},
    net::{self, BindError, Listener, Manners, TurnedAway},
    rejected::Rejected,
    shutdown::Signals,
    status::UpstreamStatus,
    upstream::Upstream,
    webhook::{Ground, Webhooks},
    wheel::Wheel,
};

/// A relay that serves.
#[derive(Debug)]
pub(crate) struct App {
    relay: Arc<Relay>,
    onlookers: Arc<Subscribers>,
    drain_window: Duration,
    address: SocketAddr,
    admin_address: SocketAddr,
    stop: Stops,
    serving: JoinSet<()>,
    admin: thread::JoinHandle<()>,
    webhooks: Arc<Webhooks>,
    store: Store,
    lanes: Lanes,
}

/// What is told to end, in the order in which it is.
#[derive(Debug, Default)]
struct Stops {
    ingest: CancellationToken,
    serving: CancellationToken,
    admin: CancellationToken,
    /// Cancelled by the admin thread when it ends.
    admin_ended: CancellationToken,
}

impl App {
    /// Starts everything the configuration asks for.
    ///
    /// # Errors
    ///
    /// When an address cannot be had, or TLS or the admin thread cannot be set up. What was started is ended again.
    pub(crate) fn start(config: &Config) -> Result<Self, AppError> {
        let server = &config.server;
        let listener = Listener::bind(server.listen, server.write_timeout)?;
        let admin_listener = Listener::bind(server.admin_listen, server.write_timeout)?;
        let probe_listener = server.probe_listen.map(|at| Listener::bind(at, server.write_timeout)).transpose()?;
        let (address, admin_address) = (listener.address(), admin_listener.address());
        let probe_address = probe_listener.as_ref().map(Listener::address);

        let stop = Stops::default();
        let metrics = Arc::new(Metrics::new()?);
        let certificate = server.tls.as_ref().map(|files| Certificate::read(files, &metrics)).transpose()?;
        let (logs, mut store) = logs(config, &metrics)?;
        let lanes = Lanes::start().map_err(AppError::Lanes)?;
        let relay = Arc::new(relay(config, logs, &store, lanes.runtimes().count(), &metrics));
        let webhooks = Arc::new(webhooks(config, &relay, &mut store)?);
        let mut serving = JoinSet::new();
        let wheel = Arc::clone(&relay.wheel);
        let stop_serving = stop.serving.clone();
        serving.spawn(async move { wheel.run(stop_serving).await });
        serving.spawn(write_streams(&relay, &lanes, &stop));
        let rejected = Arc::new(Rejected::default());
        let upstreams = start_upstreams(config, &relay, &lanes, &rejected, &stop, &mut serving)?;
        serving.spawn(serve_public(config, &relay, listener, certificate.as_deref(), &stop));
        if let Some(certificate) = certificate {
            serving.spawn(certificate.watch(stop.serving.clone()));
        }

        let onlookers = Subscribers::at_most(MOST_ONLOOKERS, Arc::clone(&metrics));
        let admin_wheel = Wheel::new();
        let admin = Admin {
            relay: Arc::clone(&relay),
            onlookers: Arc::clone(&onlookers),
            wheel: Arc::clone(&admin_wheel),
            webhooks: Arc::clone(&webhooks),
            upstreams,
            key: SoleKey::new(config.auth.admin_key.as_ref().map(Secret::expose)),
            rejected,
            streamed: Streamed::default(),
            started: SystemTime::now(),
        };
        let admin = Arc::new(admin);
        let mut doors = vec![(admin_listener, http::admin::router(Arc::clone(&admin), guard(config)))];
        doors.extend(probe_listener.map(|listener| (listener, http::admin::probe_router(admin))));
        let admin = start_admin(config, doors, admin_wheel, &stop)?;
        info!(listen = %address, admin_listen = %admin_address, probe_listen = ?probe_address, "serving");
        let drain_window = server.drain_window;
        Ok(Self {
            relay,
            onlookers,
            drain_window,
            address,
            admin_address,
            stop,
            serving,
            admin,
            webhooks,
            store,
            lanes,
        })
    }

    /// Where subscribers go.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators go.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until a signal says to leave; a second one ends the process at once.
    ///
    /// # Errors
    ///
    /// When a part of the relay ended although nobody asked for that, or leaving was cut short.
    pub(crate) async fn run(mut self, mut signals: Signals) -> Result<(), AppError> {
        let outcome = tokio::select! {
            () = signals.stop_requested() => Ok(()),
            broken = self.broken() => Err(broken),
        };
        info!("leaving; a second signal ends the process at once");
        tokio::select! {
            left = self.leave() => outcome.and(left),
            () = signals.stop_requested() => Err(AppError::CutShort),
        }
    }

    /// Waits until some part ends, which none does by itself.
    async fn broken(&mut self) -> AppError {
        tokio::select! {
            Some(ended) = self.serving.join_next() => AppError::Ended { part: "a part of the public side", cause: ended.err() },
            () = self.stop.admin_ended.cancelled() => AppError::Ended { part: "the admin server", cause: None },
            () = self.webhooks.broken() => AppError::Ended { part: "a webhook's worker", cause: None },
        }
    }

    /// Not ready, newcomers shed, subscribers gone one by one while events still come, then the upstreams, then what webhooks
    /// have under way, then the rest.
    async fn leave(mut self) -> Result<(), AppError> {
        self.relay.is_draining.store(true, Ordering::SeqCst);
        self.relay.subscribers.drain(self.drain_window).await;
        self.stop.ingest.cancel();
        self.onlookers.dismiss_all(Leave::Drain);
        self.webhooks.leave().await;
        self.stop.serving.cancel();
        let served = end(&mut self.serving).await;
        self.stop.admin.cancel();
        let joined = tokio::task::spawn_blocking(move || {
            drop(self.store); // keeps what is not kept yet
            drop(self.lanes);
            self.admin.join()
        })
        .await;
        if !matches!(joined, Ok(Ok(()))) {
            return Err(AppError::Ended { part: "the admin server", cause: joined.err() });
        }
        served.map_err(|cause| AppError::Ended { part: "a part of the public side", cause: Some(cause) })?;
        info!("left");
        Ok(())
    }
}

/// Joins every task of a set that has been told to end.
///
/// # Errors
///
/// The first panic there was.
async fn end(tasks: &mut JoinSet<()>) -> Result<(), JoinError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended);
    }
    outcome
}

/// The log of each product, and the store. Without a directory the logs are in memory alone, and the store keeps in memory
/// what webhooks need.
fn logs(config: &Config, metrics: &Metrics) -> Result<(Vec<Arc<Log>>, Store), StoreError> {
    let kept = &config.log;
    let bounds = Bounds { events: kept.memory_events, bytes: kept.memory_bytes };
    let products: Vec<ProductId> = config.upstreams.iter().map(|upstream| upstream.product_id.clone()).collect();
    let settings = Settings {
        directory: kept.data_dir.clone().unwrap_or_default(),
        retention: kept.retention,
        retention_bytes: kept.retention_bytes,
        dead_letter_retention: kept.dead_letter_retention,
        dead_letter_bytes: kept.dead_letter_bytes,
        max_concurrent_replays: config.server.max_concurrent_replays,
    };
    if kept.data_dir.is_some() {
        let (store, logs) = Store::open(settings, bounds, &products, metrics)?;
        return Ok((logs, store));
    }
    let log = |id: &ProductId| Arc::new(Log::new(id.clone(), bounds, metrics.log(id)));
    let logs: Vec<_> = products.iter().map(log).collect();
    let store = Store::in_memory(settings, logs.clone(), metrics)?;
    Ok((logs, store))
}

/// The webhooks that the file declares, and those that the store has kept.
fn webhooks(config: &Config, relay: &Relay, store: &mut Store) -> Result<Webhooks, TlsError> {
    let kept = store.take_webhooks();
    let ground = Ground {
        fanouts: relay.products.iter().map(|product| Arc::clone(&product.fanout)).collect(),
        desk: Arc::clone(store.desk()),
        is_durable: config.log.data_dir.is_some(),
        memory_bytes: config.log.memory_bytes,
        allow_networks: &config.egress.allow_networks,
        tls: client::tls(config.egress.ca_file.as_deref())?,
        metrics: Arc::clone(&relay.metrics),
    };
    Ok(Webhooks::start(ground, &config.webhooks, kept))
}

/// What the public routes share: a log and a fan-out for each product.
fn relay(config: &Config, logs: Vec<Arc<Log>>, store: &Store, lanes: usize, metrics: &Arc<Metrics>) -> Relay {
    let server = &config.server;
    let products = DashMap::new();
    for (number, log) in logs.into_iter().enumerate() {
        let id = log.product();
        let Some(upstream) = config.upstreams.iter().find(|upstream| upstream.product_id == *id) else { continue };
        let fanout = Arc::new(Fanout::new(Arc::clone(&log), lanes));
        let max_publish_bytes = server.max_publish_bytes.min(upstream.max_event_bytes);
        let product = Product {
            id: id.clone(),
            log: Arc::clone(&log),
            fanout,
            lane: number % lanes,
            sse: metrics.deliveries(id, Transport::Sse),
            ws: metrics.deliveries(id, Transport::WebSocket),
            envelopes: Envelopes::default(),
            paged: metrics.delivered(id, Transport::Page),
            published: metrics.published(id),
            max_publish_bytes: usize::try_from(max_publish_bytes).unwrap_or(usize::MAX),
            upstream: upstream.url.origin(),
            metrics: Arc::clone(metrics),
        };
        products.insert(product.id.clone(), Arc::new(product));
    }
    Relay {
        products,
        access: Access::new(&config.auth),
        places: Places::new(&config.auth, &server.cors_allowed_origins),
        subscribers: Subscribers::new(server, Arc::clone(metrics)),
        shards: Shards::new(lanes, server.write_timeout),
        pages: Pages::default(),
        bodies: Bodies::default(),
        wheel: Wheel::new(),
        heartbeat_interval: server.heartbeat_interval,
        max_connection_age: server.max_connection_age,
        trusted_proxies: server.trusted_proxies.clone(),
        is_draining: AtomicBool::new(false),
        store: config.log.data_dir.is_some().then(|| Arc::clone(store.desk())),
        metrics: Arc::clone(metrics),
    }
}

/// One task for each product: its upstream's loop and its fan-out take turns, so that an event wakes its receivers on the
/// thread it came in on. Returns the boards that the upstreams write on.
fn start_upstreams(
    config: &Config,
    relay: &Relay,
    lanes: &Lanes,
    rejected: &Arc<Rejected>,
    stop: &Stops,
    tasks: &mut JoinSet<()>,
) -> Result<Upstreams, AppError> {
    let client = Client::new(config.egress.ca_file.as_deref())?;
    let mut boards = Vec::new();
    for settings in &config.upstreams {
        let id = &settings.product_id;
        let Some(product) = relay.products.get(id).map(|product| Arc::clone(&product)) else {
            continue;
        };
        let (status, metrics) = (Arc::new(UpstreamStatus::new()), relay.metrics.upstream(id));
        boards.push((id.clone(), Arc::clone(&status)));
        let random = fastrand::Rng::new();
        let (settings, has_past) = (settings.clone(), product.log.has_past());
        let upstream = Upstream::new(settings, has_past, client.clone(), Arc::clone(&status), metrics.clone(), random);
        let ingest =
            Ingest { upstream, log: Arc::clone(&product.log), metrics, status, rejected: Arc::clone(rejected) };
        let (stop_ingest, stop_fanout) = (stop.ingest.clone(), stop.serving.clone());
        let Some(lane) = lanes.runtimes().nth(product.lane) else { continue };
        let work = async move {
            tokio::join!(ingest.run(stop_ingest), product.fanout.run(stop_fanout));
        };
        tasks.spawn_on(work, lane);
    }
    Ok(boards)
}

type Upstreams = Vec<(ProductId, Arc<UpstreamStatus>)>;

/// Streams are written where they are woken.
fn write_streams(relay: &Relay, lanes: &Lanes, stop: &Stops) -> impl Future<Output = ()> + use<> {
    let runtimes: Vec<Handle> = lanes.runtimes().cloned().collect();
    let (shards, wheel, stop) = (Arc::clone(&relay.shards), Arc::clone(&relay.wheel), stop.serving.clone());
    async move { shards.run(runtimes.iter(), &wheel, stop).await }
}

fn serve_public(
    config: &Config,
    relay: &Arc<Relay>,
    listener: Listener,
    certificate: Option<&Certificate>,
    stop: &Stops,
) -> impl Future<Output = ()> + use<> {
    let guard = relay.access.allows_anonymous().then(|| guard(config));
    let router = http::router(Arc::clone(relay), guard, &config.server.cors_allowed_origins);
    let manners = Manners {
        max_connections: files::max_connections(config),
        tls: certificate.map(|certificate| Arc::clone(certificate.tls())),
        ..manners(config, &relay.wheel)
    };
    let no_file = relay.metrics.shed(ShedReason::NoFileDescriptor);
    let no_place = relay.metrics.shed(ShedReason::MaxConnections);
    let turned_away = move |why| match why {
        TurnedAway::NoFile => no_file.inc(),
        TurnedAway::NoPlace => no_place.inc(),
    };
    let stop = stop.serving.clone();
    async move {
        if let Err(error) = net::serve(listener, router, manners, stop, turned_away).await {
            error!(%error, "cannot serve subscribers");
        }
    }
}

/// Serves the admin side on a thread and runtime of its own, so that it answers whatever the public side does.
fn start_admin(
    config: &Config,
    doors: Vec<(Listener, Router)>,
    wheel: Arc<Wheel>,
    stop: &Stops,
) -> Result<thread::JoinHandle<()>, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::AdminThread)?;
    let manners = manners(config, &wheel);
    let stop_admin = stop.admin.clone();
    let ended = stop.admin_ended.clone().drop_guard();
    let serve = async move {
        let mut tasks = JoinSet::new();
        for (listener, router) in doors {
            let (manners, stop) = (manners.clone(), stop_admin.clone());
            tasks.spawn(async move {
                if let Err(error) = net::serve(listener, router, manners, stop, |_| {}).await {
                    error!(%error, "cannot serve operators");
                }
            });
        }
        tasks.spawn(async move { wheel.run(stop_admin).await });
        if let Err(error) = end(&mut tasks).await {
            error!(%error, "a part of the admin side did not end well");
        }
    };
    let run = move || {
        let _ended = ended;
        runtime.block_on(serve);
    };
    thread::Builder::new().name("admin".to_owned()).spawn(run).map_err(AppError::AdminThread)
}

/// How operators are treated; TLS is for the public.
fn manners(config: &Config, wheel: &Arc<Wheel>) -> Manners {
    Manners {
        head_timeout: config.server.head_timeout,
        write_timeout: config.server.write_timeout,
        wheel: Arc::clone(wheel),
        max_connections: MOST_OPERATORS,
        tls: None,
    }
}

fn guard(config: &Config) -> Guard {
    Guard {
        allowed_hosts: config.server.allowed_hosts.clone(),
        allowed_origins: config.server.cors_allowed_origins.clone(),
    }
}

/// Why the relay does not serve, or serves no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// An address is taken, or not this machine's.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The upstreams' TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The public side's TLS cannot be set up.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metric families contradict each other.
    #[error("cannot declare the metrics")]
    Metrics(#[from] prometheus::Error),
    /// A lane has no thread or runtime.
    #[error("cannot start the threads that events take")]
    Lanes(#[source] io::Error),
    /// The admin side has no thread or runtime.
    #[error("cannot start the admin server")]
    AdminThread(#[source] io::Error),
    /// A part ended by itself.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which.
        part: &'static str,
        /// The panic, if it was one.
        #[source]
        cause: Option<JoinError>,
    },
    /// A second signal came while the relay was leaving.
    #[error("ended by a second signal before everybody had left")]
    CutShort,
}

/// Connections at one time to each of the admin and probe listeners.
const MOST_OPERATORS: usize = 256;

#[cfg(test)]
mod tests;
