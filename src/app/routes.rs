//! What each listener answers with, by the configuration in force.
//!
//! May use: `config`, `http`, `net`.

use std::sync::Arc;

use axum::Router;

use crate::{
    config::Config,
    http::{self, Relay, admin::Admin, host_guard::Guard},
    net::Routes,
};

/// The routes of all listeners.
#[derive(Debug)]
pub(super) struct Doors {
    /// For subscribers and publishers.
    pub(super) public: Routes,
    /// For operators.
    pub(super) admin: Routes,
    /// For kubelet and Prometheus.
    pub(super) probe: Routes,
}

impl Doors {
    /// Doors that open as the configuration says.
    pub(super) fn new(config: &Config, relay: &Arc<Relay>, admin: &Arc<Admin>) -> Self {
        Self {
            public: Routes::new(public(config, relay)),
            admin: Routes::new(http::admin::router(Arc::clone(admin), guard(config))),
            probe: Routes::new(http::admin::probe_router(Arc::clone(admin))),
        }
    }

    /// From now on they open as this one says.
    pub(super) fn replace(&self, config: &Config, relay: &Arc<Relay>, admin: &Arc<Admin>) {
        self.public.replace(public(config, relay));
        self.admin.replace(http::admin::router(Arc::clone(admin), guard(config)));
        self.probe.replace(http::admin::probe_router(Arc::clone(admin)));
    }
}

fn public(config: &Config, relay: &Arc<Relay>) -> Router {
    let guard = relay.access.allows_anonymous().then(|| guard(config));
    http::router(Arc::clone(relay), guard, &config.server.cors_allowed_origins)
}

/// Keeps web pages out where no credential is demanded.
pub(super) fn guard(config: &Config) -> Guard {
    Guard {
        allowed_hosts: config.server.allowed_hosts.clone(),
        allowed_origins: config.server.cors_allowed_origins.clone(),
    }
}
