//! The router of each listener, by the configuration in force.
//!
//! May use: `config`, `http`, `net`.

use std::sync::Arc;

use axum::Router;

use crate::{
    config::Config,
    http::{self, Relay, admin::AdminState, host_guard::HostGuard},
    net::Routes,
};

/// Routes of all listeners.
#[derive(Debug)]
pub(super) struct ListenerRoutes {
    /// For subscribers and publishers.
    pub(super) public: Routes,
    /// For operators.
    pub(super) admin: Routes,
    /// For kubelet and Prometheus.
    pub(super) probe: Routes,
}

impl ListenerRoutes {
    /// Builds the routes that the configuration asks for.
    pub(super) fn new(config: &Config, relay: &Arc<Relay>, admin: &Arc<AdminState>) -> Self {
        Self {
            public: Routes::new(public_router(config, relay)),
            admin: Routes::new(http::admin::router(Arc::clone(admin), host_guard(config))),
            probe: Routes::new(http::admin::probe_router(Arc::clone(admin))),
        }
    }

    /// Replaces all routes. Requests that begin from now on are answered by the new ones.
    pub(super) fn replace(&self, config: &Config, relay: &Arc<Relay>, admin: &Arc<AdminState>) {
        self.public.replace(public_router(config, relay));
        self.admin.replace(http::admin::router(Arc::clone(admin), host_guard(config)));
        self.probe.replace(http::admin::probe_router(Arc::clone(admin)));
    }
}

fn public_router(config: &Config, relay: &Arc<Relay>) -> Router {
    let guard = relay.access.allows_anonymous().then(|| host_guard(config));
    http::public::router(Arc::clone(relay), guard, &config.server.cors_allowed_origins)
}

/// Returns the guard that keeps web pages out where no credential is required (DNS rebinding).
pub(super) fn host_guard(config: &Config) -> HostGuard {
    HostGuard {
        allowed_hosts: config.server.allowed_hosts.clone(),
        allowed_origins: config.server.cors_allowed_origins.clone(),
    }
}
