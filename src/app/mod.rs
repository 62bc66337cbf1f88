//! Builds and connects the parts of the relay, owns their tasks, and shuts them down in order.
//!
//! In: a configuration. Out: a relay that serves, and brings other configurations into force.
//! Decides nothing about events.
//!
//! ```text
//! shut down: not ready, shedding begins ─► subscribers drained, while events flow ─► upstreams
//!            ─► webhooks ─► public listener, shards ─► admin listener ─► store, shard threads
//! ```
//!
//! May use: `admission`, `config`, `http`, `metrics`, `net`, `outbound`, `rejected`, `shard`,
//! `shutdown`, `store`, `timer_wheel`, `webhook`.

mod apply_config;
mod assemble;
mod certificate;
pub(crate) mod config_watch;
mod fd_limit;
mod listeners;
mod products;
mod routes;
mod stop;
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
use tracing::{info, warn};

use self::{
    certificate::{CertificateError, ServedCertificate},
    config_watch::{ConfigWatcher, ReloadTrigger, config_changed},
    listeners::{BoundListeners, serve_public, start_admin},
    products::ProductTasks,
    routes::ListenerRoutes,
    stop::{StopTokens, join_all},
};
use crate::{
    admission::DisconnectReason,
    config::Config,
    http::{Relay, admin::AdminState},
    metrics::Metrics,
    net::{BindError, Listener},
    outbound::{client::EventStreamClient, tls::TlsError},
    rejected::RejectedFrames,
    shard::threads::ShardThreads,
    shutdown::{SignalRequest, Signals},
    store::{Store, StoreError},
    timer_wheel::WheelThread,
    webhook::Webhooks,
};

/// A relay that serves.
#[derive(Debug)]
pub(crate) struct App {
    /// The configuration in force.
    config: Config,
    relay: Arc<Relay>,
    admin: Arc<AdminState>,
    routes: ListenerRoutes,
    product_tasks: ProductTasks,
    address: SocketAddr,
    admin_address: SocketAddr,
    stop: StopTokens,
    serving: JoinSet<()>,
    admin_thread: thread::JoinHandle<()>,
    webhooks: Arc<Webhooks>,
    certificate: Option<Arc<ServedCertificate>>,
    store: Store,
    shard_threads: ShardThreads,
    wheel_thread: WheelThread,
}

impl App {
    /// Starts everything that the configuration asks for.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound, or the store, TLS, or a thread cannot be set up. What was
    /// started is ended again.
    pub(crate) fn start(config: Config) -> Result<Self, AppError> {
        let server = &config.server;
        // First, so that a port that is taken shows before the store is opened.
        let listeners = BoundListeners::bind(server)?;
        let (address, admin_address) = (listeners.public.address(), listeners.admin.address());
        let probe_address = listeners.probe.as_ref().map(Listener::address);

        let stop = StopTokens::default();
        let metrics = Arc::new(Metrics::new()?);
        let certificate = server
            .tls
            .as_ref()
            .map(|files| ServedCertificate::read(files, &metrics))
            .transpose()?;
        let (logs, mut store) = assemble::open_logs(&config, &metrics)?;
        let shard_threads = ShardThreads::start().map_err(AppError::ShardThreads)?;
        let shard_count = shard_threads.runtimes().count();
        let relay = Arc::new(assemble::relay(&config, logs, &store, shard_count, &metrics));
        let webhooks = Arc::new(assemble::start_webhooks(&config, &relay, &mut store)?);
        let wheel_thread = WheelThread::start(Arc::clone(&relay.wheel), stop.wheel_ended.clone())
            .map_err(AppError::WheelThread)?;
        let mut serving = spawn_pulse_and_shards(&relay, &shard_threads, &stop);
        let rejected = Arc::new(RejectedFrames::default());
        let client = EventStreamClient::new(config.egress.ca_file.as_deref())?;
        let mut product_tasks = ProductTasks::new(&shard_threads, Arc::clone(&rejected), &stop);
        for product in config.served_products() {
            product_tasks.start(product, &relay, &client);
        }
        let statuses = product_tasks.statuses();
        let admin = Arc::new(assemble::admin(&config, &relay, &webhooks, statuses, rejected));
        let routes = ListenerRoutes::new(&config, &relay, &admin);
        serving.spawn(serve_public(
            &config,
            &relay,
            listeners.public,
            certificate.as_deref(),
            &routes,
            &stop,
        ));
        serving.spawn(Arc::clone(&relay.refusals).run(stop.serving.clone()));
        if let Some(certificate) = &certificate {
            serving.spawn(Arc::clone(certificate).watch(stop.serving.clone()));
        }
        let BoundListeners { admin: operators, probe, .. } = listeners;
        let admin_thread = start_admin(&config, operators, probe, &routes, &relay.wheel, &stop)
            .map_err(AppError::AdminThread)?;
        relay.metrics.record_reload(true);
        info!(
            listen = %address,
            admin_listen = %admin_address,
            probe_listen = ?probe_address,
            "serving"
        );
        Ok(Self {
            config,
            relay,
            admin,
            routes,
            product_tasks,
            address,
            admin_address,
            stop,
            serving,
            admin_thread,
            webhooks,
            certificate,
            store,
            shard_threads,
            wheel_thread,
        })
    }

    /// Returns the address of the public listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the admin listener.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until a signal asks for a shutdown; a second one ends the process at once.
    ///
    /// Applies a new configuration when `watch` reports a change, or a signal asks for a reload.
    ///
    /// # Errors
    ///
    /// When a part of the relay ended by itself, or the shutdown was interrupted.
    pub(crate) async fn run(
        mut self,
        mut signals: Signals,
        mut watch: Option<ConfigWatcher>,
    ) -> Result<(), AppError> {
        let outcome = self.serve(&mut signals, watch.as_mut()).await;
        signals.absorb_repeats().await;
        info!("leaving; a second signal ends the process at once");
        tokio::select! {
            shutdown_outcome = self.shut_down() => outcome.and(shutdown_outcome),
            () = signals.shutdown_requested() => Err(AppError::ShutdownInterrupted),
        }
    }

    /// Serves and reloads until a signal asks for a shutdown.
    ///
    /// # Errors
    ///
    /// When a part of the relay ended by itself.
    async fn serve(
        &mut self,
        signals: &mut Signals,
        mut watch: Option<&mut ConfigWatcher>,
    ) -> Result<(), AppError> {
        loop {
            let trigger = tokio::select! {
                // Signals first: a shutdown must not wait for a reload that is due at the same
                // moment.
                biased;
                signal = signals.next() => match signal {
                    SignalRequest::ShutDown => return Ok(()),
                    SignalRequest::Reload => ReloadTrigger::Signal,
                },
                failure = self.wait_for_failure() => return Err(failure),
                loaded = config_changed(watch.as_deref_mut()) => {
                    ReloadTrigger::Change(Box::new(loaded))
                }
            };
            let Some(watch) = watch.as_deref_mut() else {
                warn!(
                    "SIGHUP: there is no configuration file to read again; \
                     the environment is read at the start alone"
                );
                continue;
            };
            tokio::select! {
                () = self.reload(watch, trigger) => {}
                // A reload that is half done needs no undoing: the shutdown takes down the parts
                // that there are.
                () = signals.shutdown_requested() => return Ok(()),
            }
        }
    }

    /// Waits until a part of the relay ends, which none does before the shutdown.
    async fn wait_for_failure(&mut self) -> AppError {
        let (part, cause) = tokio::select! {
            Some(ended) = self.serving.join_next() => ("a part of the public side", ended.err()),
            cause = self.product_tasks.wait_for_failure() => ("an upstream", cause),
            () = self.stop.admin_ended.cancelled() => ("the admin server", None),
            () = self.stop.wheel_ended.cancelled() => ("the timer wheel", None),
            () = self.webhooks.worker_failed() => ("a webhook's worker", None),
        };
        AppError::Ended { part, cause }
    }

    /// Shuts the relay down: readiness, subscribers, upstreams, webhooks, public side, store, admin
    /// side.
    async fn shut_down(mut self) -> Result<(), AppError> {
        // The listener stays open during the drain: new requests are answered 503 instead of
        // being refused, and probes see that the relay is not ready.
        self.relay.is_draining.store(true, Ordering::SeqCst);
        self.relay.subscribers.drain(self.config.server.drain_window).await;
        // After the drain: subscribers receive events until they are disconnected.
        self.stop.ingest.cancel();
        self.admin.operator_tails.disconnect_all(DisconnectReason::Drain);
        self.webhooks.shut_down().await;
        // After the webhooks: their subscriptions need the fan-outs, which end here.
        self.stop.serving.cancel();
        let products_ended = self.product_tasks.join_all().await;
        let serving_ended = join_all(&mut self.serving).await.and(products_ended);
        // Last: operators can watch the shutdown until here.
        self.stop.admin.cancel();
        let joined = tokio::task::spawn_blocking(move || {
            // Blocks until the writer has committed the backlog, hence not on the runtime.
            drop(self.store);
            drop(self.shard_threads);
            let admin_ended = self.admin_thread.join();
            drop(self.wheel_thread); // last: deadlines of the admin side's connections need it
            admin_ended
        })
        .await;
        if !matches!(joined, Ok(Ok(()))) {
            return Err(AppError::Ended { part: "the admin server", cause: joined.err() });
        }
        serving_ended.map_err(|cause| AppError::Ended {
            part: "a part of the public side",
            cause: Some(cause),
        })?;
        info!("left");
        Ok(())
    }
}

/// Spawns the sign of life of this runtime, and the shards, each on its own thread.
fn spawn_pulse_and_shards(
    relay: &Arc<Relay>,
    shard_threads: &ShardThreads,
    stop: &StopTokens,
) -> JoinSet<()> {
    let mut serving = JoinSet::new();
    let (relay_of_pulse, stop_pulse) = (Arc::clone(relay), stop.serving.clone());
    serving.spawn(async move { relay_of_pulse.pulse.run(&relay_of_pulse.wheel, stop_pulse).await });
    let runtimes: Vec<Handle> = shard_threads.runtimes().cloned().collect();
    let (shards, wheel, stop) =
        (Arc::clone(&relay.shards), Arc::clone(&relay.wheel), stop.serving.clone());
    serving.spawn(async move { shards.run(runtimes.iter(), &wheel, stop).await });
    serving
}

/// Reasons for which the relay does not serve, or serves no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// An address is taken, or is not one of this machine.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// TLS for upstreams and webhooks cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS for the public listener cannot be set up.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metric families contradict each other.
    #[error("cannot declare the metrics")]
    Metrics(#[from] prometheus::Error),
    /// A shard has no thread or runtime.
    #[error("cannot start the threads of the shards")]
    ShardThreads(#[source] io::Error),
    /// The admin side has no thread or runtime.
    #[error("cannot start the admin server")]
    AdminThread(#[source] io::Error),
    /// The timer wheel has no thread.
    #[error("cannot start the thread of the timer wheel")]
    WheelThread(#[source] io::Error),
    /// A part ended by itself.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Name of the part.
        part: &'static str,
        /// The panic, if there was one.
        #[source]
        cause: Option<JoinError>,
    },
    /// A second signal came during the shutdown.
    #[error("ended by a second signal before the shutdown was complete")]
    ShutdownInterrupted,
}
