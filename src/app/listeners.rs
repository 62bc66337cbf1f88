//! The listeners of the public and of the admin side.
//!
//! In: the sockets that the configuration asks for. Out: the task of the public side, and the
//! thread of the admin side.
//!
//! May use: `config`, `http`, `metrics`, `net`, `timer_wheel`.

use std::{io, sync::Arc, thread, time::Duration};

use tokio::task::JoinSet;
use tracing::error;

use super::{
    certificate::ServedCertificate,
    fd_limit::DescriptorPlan,
    routes::ListenerRoutes,
    stop::{StopTokens, join_all},
};
use crate::{
    config::{Config, ServerConfig},
    http::{Relay, admin::operator_stream::MAX_OPERATOR_TAILS},
    metrics::ShedReason,
    net::{self, BindError, ConnectionSettings, ConnectionShares, Listener, ShedConnection},
    timer_wheel::TimerWheel,
};

/// Sockets that the configuration asks for, bound and not yet served.
pub(super) struct BoundListeners {
    /// For subscribers and publishers.
    pub(super) public: Listener,
    /// For operators.
    pub(super) admin: Listener,
    /// For kubelet and Prometheus, if they have a listener of their own.
    pub(super) probe: Option<Listener>,
}

impl BoundListeners {
    /// Binds all addresses.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound; the sockets bound before are closed.
    pub(super) fn bind(server: &ServerConfig) -> Result<Self, BindError> {
        let bind = |address| Listener::bind(address, server.write_timeout);
        Ok(Self {
            public: bind(server.listen)?,
            admin: bind(server.admin_listen)?,
            probe: server.probe_listen.map(bind).transpose()?,
        })
    }
}

/// Returns the future that serves subscribers and publishers until `stop.serving`.
pub(super) fn serve_public(
    config: &Config,
    relay: &Arc<Relay>,
    listener: Listener,
    certificate: Option<&ServedCertificate>,
    listener_routes: &ListenerRoutes,
    stop: &StopTokens,
) -> impl Future<Output = ()> + use<> {
    let routes = listener_routes.public.clone();
    let plan = DescriptorPlan::new(config);
    plan.report(config.server.max_subscribers);
    let settings = ConnectionSettings {
        first_byte_timeout: config.server.head_timeout,
        max_connections: plan.public,
        max_over_limit: plan.over_limit,
        shares: ConnectionShares::UNTIL_FULL,
        tls: certificate.map(|certificate| Arc::clone(certificate.tls())),
        ..operator_settings(config, &plan, &relay.wheel)
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

/// Serves the admin side on a thread and runtime of its own, so that it answers when the public
/// side is saturated. Deadlines do not depend on the public side's runtime either: a thread turns
/// the wheel.
///
/// # Errors
///
/// When there is no thread or runtime.
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
    let settings = operator_settings(config, &DescriptorPlan::new(config), wheel);
    let stop_admin = stop.admin.clone();
    // Cancelled when the thread ends for any reason, a panic included.
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

/// Returns the settings for operators' connections; TLS is for the public listener only.
fn operator_settings(
    config: &Config,
    plan: &DescriptorPlan,
    wheel: &Arc<TimerWheel>,
) -> ConnectionSettings {
    ConnectionSettings {
        head_timeout: config.server.head_timeout,
        write_timeout: config.server.write_timeout,
        wheel: Arc::clone(wheel),
        first_byte_timeout: config.server.head_timeout.min(OPERATOR_FIRST_BYTE_TIMEOUT),
        max_connections: plan.operators,
        max_over_limit: 0,
        shares: operator_shares(plan.operators),
        tls: None,
    }
}

/// Divides the connections of the admin or the probe listener.
///
/// Probes, scrapers and consoles need a few for each address, and operator streams keep theirs.
fn operator_shares(connections: usize) -> ConnectionShares {
    let exempt = (connections / 5).min(MAX_OPERATOR_TAILS);
    let total = connections - exempt;
    let per_address = (total / 4).max(MIN_OPERATOR_SHARE).min(total);
    ConnectionShares { total, per_address, exempt, spares_working: false }
}

/// Time for the first byte on the admin and probe listeners: their clients connect to ask at once.
const OPERATOR_FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections of one address on a listener that has hardly any: a browser opens six.
const MIN_OPERATOR_SHARE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_quarter_of_an_operators_listener_and_streams_a_fifth() {
        let shares = |total, per_address, exempt| ConnectionShares {
            total,
            per_address,
            exempt,
            spares_working: false,
        };
        assert_eq!(operator_shares(320), shares(256, 64, 64));
        assert_eq!(operator_shares(15), shares(12, 8, 3));
        assert_eq!(operator_shares(4), shares(4, 4, 0));
    }
}
