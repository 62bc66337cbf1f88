//! The listeners of the public and of the admin side.
//!
//! May use: `config`, `http`, `metrics`, `net`, `timer_wheel`.

use std::{io, sync::Arc, thread};

use tokio::task::JoinSet;
use tracing::error;

use super::{
    certificate::ServedCertificate,
    fd_limit,
    routes::ListenerRoutes,
    stop::{StopTokens, join_all},
};
use crate::{
    config::{Config, ServerConfig},
    http::Relay,
    metrics::ShedReason,
    net::{self, BindError, ConnectionSettings, Listener, ShedConnection},
    timer_wheel::TimerWheel,
};

/// The sockets that the configuration asks for, bound and not yet served.
pub(super) struct BoundListeners {
    pub(super) public: Listener,
    pub(super) admin: Listener,
    pub(super) probe: Option<Listener>,
}

impl BoundListeners {
    /// Binds them all.
    ///
    /// # Errors
    ///
    /// When an address cannot be had; the sockets bound before are closed again.
    pub(super) fn bind(server: &ServerConfig) -> Result<Self, BindError> {
        let bind = |address| Listener::bind(address, server.write_timeout);
        Ok(Self {
            public: bind(server.listen)?,
            admin: bind(server.admin_listen)?,
            probe: server.probe_listen.map(bind).transpose()?,
        })
    }
}

pub(super) fn serve_public(
    config: &Config,
    relay: &Arc<Relay>,
    listener: Listener,
    certificate: Option<&ServedCertificate>,
    listener_routes: &ListenerRoutes,
    stop: &StopTokens,
) -> impl Future<Output = ()> + use<> {
    let routes = listener_routes.public.clone();
    let settings = ConnectionSettings {
        max_connections: fd_limit::max_connections(config),
        tls: certificate.map(|certificate| Arc::clone(certificate.tls())),
        ..connection_settings(config, &relay.wheel)
    };
    let no_descriptor = relay.metrics.shed(ShedReason::NoFileDescriptor);
    let over_limit = relay.metrics.shed(ShedReason::MaxConnections);
    let on_shed = move |shed| match shed {
        ShedConnection::NoFileDescriptor => no_descriptor.inc(),
        ShedConnection::MaxConnections => over_limit.inc(),
    };
    let stop = stop.serving.clone();
    async move {
        if let Err(error) = net::serve(listener, routes, settings, stop, on_shed).await {
            error!(%error, "cannot serve subscribers");
        }
    }
}

/// Serves the admin side on a thread and runtime of its own, so that it answers whatever the public
/// side does.
pub(super) fn start_admin(
    config: &Config,
    admin: Listener,
    probe: Option<Listener>,
    routes: &ListenerRoutes,
    wheel: &Arc<TimerWheel>,
    stop: &StopTokens,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut listeners = vec![(admin, routes.admin.clone())];
    listeners.extend(probe.map(|probe| (probe, routes.probe.clone())));
    let (settings, wheel) = (connection_settings(config, wheel), Arc::clone(wheel));
    let stop_admin = stop.admin.clone();
    let ended = stop.admin_ended.clone().drop_guard();
    let serve = async move {
        let mut tasks = JoinSet::new();
        for (listener, routes) in listeners {
            let (settings, stop) = (settings.clone(), stop_admin.clone());
            tasks.spawn(async move {
                if let Err(error) = net::serve(listener, routes, settings, stop, |_| {}).await {
                    error!(%error, "cannot serve operators");
                }
            });
        }
        tasks.spawn(async move { wheel.run(stop_admin).await });
        if let Err(error) = join_all(&mut tasks).await {
            error!(%error, "a part of the admin side did not end well");
        }
    };
    let run = move || {
        let _ended = ended;
        runtime.block_on(serve);
    };
    thread::Builder::new().name("admin".to_owned()).spawn(run)
}

/// How operators are treated; TLS is for the public.
fn connection_settings(config: &Config, wheel: &Arc<TimerWheel>) -> ConnectionSettings {
    ConnectionSettings {
        head_timeout: config.server.head_timeout,
        write_timeout: config.server.write_timeout,
        wheel: Arc::clone(wheel),
        max_connections: MAX_ADMIN_CONNECTIONS,
        tls: None,
    }
}

/// Connections at one time to each of the admin and probe listeners.
pub(super) const MAX_ADMIN_CONNECTIONS: usize = 256;
