//! Builds the rooms, connects them, owns their tasks, and takes them down in order.
//!
//! Decides nothing about events. May use: everything.

mod apply_config;
mod assemble;
mod certificate;
pub(crate) mod config_watch;
mod fd_limit;
mod products;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread,
};

use tokio::{
    runtime::Handle,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    apply_config::{Reason, changed},
    certificate::{Certificate, CertificateError},
    config_watch::Watch,
    products::Feeds,
    routes::Doors,
};
use crate::{
    config::Config,
    http::{Relay, admin::Admin, admission::Leave},
    metrics::{Metrics, ShedReason},
    net::{self, BindError, Listener, Manners, Routes, TurnedAway},
    outbound::client::{Client, TlsError},
    rejected::Rejected,
    shard::threads::Lanes,
    shutdown::{Asked, Signals},
    store::{Store, StoreError},
    timer_wheel::Wheel,
    webhook::Webhooks,
};

/// A relay that serves.
#[derive(Debug)]
pub(crate) struct App {
    /// The configuration in force.
    config: Config,
    relay: Arc<Relay>,
    admin: Arc<Admin>,
    doors: Doors,
    feeds: Feeds,
    address: SocketAddr,
    admin_address: SocketAddr,
    stop: Stops,
    serving: JoinSet<()>,
    admin_thread: thread::JoinHandle<()>,
    webhooks: Arc<Webhooks>,
    certificate: Option<Arc<Certificate>>,
    store: Store,
    lanes: Lanes,
}

/// What is told to end, in the order in which it is.
#[derive(Clone, Debug, Default)]
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
    pub(crate) fn start(config: Config) -> Result<Self, AppError> {
        let server = &config.server;
        let listener = Listener::bind(server.listen, server.write_timeout)?;
        let admin_listener = Listener::bind(server.admin_listen, server.write_timeout)?;
        let probe_listener = server.probe_listen.map(|at| Listener::bind(at, server.write_timeout)).transpose()?;
        let (address, admin_address) = (listener.address(), admin_listener.address());
        let probe_address = probe_listener.as_ref().map(Listener::address);

        let stop = Stops::default();
        let metrics = Arc::new(Metrics::new()?);
        let certificate = server.tls.as_ref().map(|files| Certificate::read(files, &metrics)).transpose()?;
        let (logs, mut store) = assemble::logs(&config, &metrics)?;
        let lanes = Lanes::start().map_err(AppError::Lanes)?;
        let relay = Arc::new(assemble::relay(&config, logs, &store, lanes.runtimes().count(), &metrics));
        let webhooks = Arc::new(assemble::webhooks(&config, &relay, &mut store)?);
        let mut serving = JoinSet::new();
        let wheel = Arc::clone(&relay.wheel);
        let stop_serving = stop.serving.clone();
        serving.spawn(async move { wheel.run(stop_serving).await });
        serving.spawn(write_streams(&relay, &lanes, &stop));
        let rejected = Arc::new(Rejected::default());
        let client = Client::new(config.egress.ca_file.as_deref())?;
        let mut feeds = Feeds::new(&lanes, Arc::clone(&rejected), &stop);
        for upstream in &config.upstreams {
            feeds.begin(upstream, &relay, &client);
        }
        let admin = Arc::new(assemble::admin(&config, &relay, &webhooks, feeds.boards(), rejected));
        let doors = Doors::new(&config, &relay, &admin);
        serving.spawn(serve_public(&config, &relay, listener, certificate.as_deref(), &doors, &stop));
        if let Some(certificate) = &certificate {
            serving.spawn(Arc::clone(certificate).watch(stop.serving.clone()));
        }
        let mut admin_doors = vec![(admin_listener, doors.admin.clone())];
        admin_doors.extend(probe_listener.map(|listener| (listener, doors.probe.clone())));
        let admin_thread = start_admin(&config, admin_doors, Arc::clone(&admin.wheel), &stop)?;
        relay.metrics.reloaded(true);
        info!(listen = %address, admin_listen = %admin_address, probe_listen = ?probe_address, "serving");
        Ok(Self {
            config,
            relay,
            admin,
            doors,
            feeds,
            address,
            admin_address,
            stop,
            serving,
            admin_thread,
            webhooks,
            certificate,
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

    /// Serves until a signal says to leave; a second one ends the process at once. Where `watch` sees the configuration change, or a
    /// signal asks for it, it goes on by the new one.
    ///
    /// # Errors
    ///
    /// When a part of the relay ended although nobody asked for that, or leaving was cut short.
    pub(crate) async fn run(mut self, mut signals: Signals, mut watch: Option<Watch>) -> Result<(), AppError> {
        let outcome = self.serve(&mut signals, watch.as_mut()).await;
        signals.settle().await;
        info!("leaving; a second signal ends the process at once");
        tokio::select! {
            left = self.leave() => outcome.and(left),
            () = signals.stop_requested() => Err(AppError::CutShort),
        }
    }

    async fn serve(&mut self, signals: &mut Signals, mut watch: Option<&mut Watch>) -> Result<(), AppError> {
        loop {
            let asked = tokio::select! {
                biased;
                wish = signals.next() => match wish {
                    Asked::Stop => return Ok(()),
                    Asked::Reload => Reason::Signal,
                },
                broken = self.broken() => return Err(broken),
                wanted = changed(watch.as_deref_mut()) => Reason::Change(Box::new(wanted)),
            };
            let Some(watch) = watch.as_deref_mut() else {
                warn!(
                    "SIGHUP: there is no configuration file to read again; the environment is read at the start alone"
                );
                continue;
            };
            tokio::select! {
                () = self.reload(watch, asked) => {}
                // What is half done is taken down like all the rest.
                () = signals.stop_requested() => return Ok(()),
            }
        }
    }

    /// Waits until some part ends, which none does by itself.
    async fn broken(&mut self) -> AppError {
        tokio::select! {
            Some(ended) = self.serving.join_next() => AppError::Ended { part: "a part of the public side", cause: ended.err() },
            cause = self.feeds.broken() => AppError::Ended { part: "an upstream", cause },
            () = self.stop.admin_ended.cancelled() => AppError::Ended { part: "the admin server", cause: None },
            () = self.webhooks.broken() => AppError::Ended { part: "a webhook's worker", cause: None },
        }
    }

    /// Not ready, newcomers shed, subscribers gone one by one while events still come, then the upstreams, then what webhooks
    /// have under way, then the rest.
    async fn leave(mut self) -> Result<(), AppError> {
        self.relay.is_draining.store(true, Ordering::SeqCst);
        self.relay.subscribers.drain(self.config.server.drain_window).await;
        self.stop.ingest.cancel();
        self.admin.onlookers.dismiss_all(Leave::Drain);
        self.webhooks.leave().await;
        self.stop.serving.cancel();
        let fed = self.feeds.end().await;
        let served = end(&mut self.serving).await.and(fed);
        self.stop.admin.cancel();
        let joined = tokio::task::spawn_blocking(move || {
            drop(self.store); // keeps what is not kept yet
            drop(self.lanes);
            self.admin_thread.join()
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
    doors: &Doors,
    stop: &Stops,
) -> impl Future<Output = ()> + use<> {
    let routes = doors.public.clone();
    let manners = Manners {
        max_connections: fd_limit::max_connections(config),
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
        if let Err(error) = net::serve(listener, routes, manners, stop, turned_away).await {
            error!(%error, "cannot serve subscribers");
        }
    }
}

/// Serves the admin side on a thread and runtime of its own, so that it answers whatever the public side does.
fn start_admin(
    config: &Config,
    doors: Vec<(Listener, Routes)>,
    wheel: Arc<Wheel>,
    stop: &Stops,
) -> Result<thread::JoinHandle<()>, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::AdminThread)?;
    let manners = manners(config, &wheel);
    let stop_admin = stop.admin.clone();
    let ended = stop.admin_ended.clone().drop_guard();
    let serve = async move {
        let mut tasks = JoinSet::new();
        for (listener, routes) in doors {
            let (manners, stop) = (manners.clone(), stop_admin.clone());
            tasks.spawn(async move {
                if let Err(error) = net::serve(listener, routes, manners, stop, |_| {}).await {
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
