//! A relay without a listener, for the tests of the routes and the shards' subscribers.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    memory_quota::{BodyQuota, PageQuota},
    public::credential::CredentialSources,
    refusals::Refusals,
    state::{Product, Relay},
};
use crate::{
    admission::{AdmissionLimits, Subscribers},
    auth::Access,
    config::{AllowAnonymous, Config, Environment},
    event::{Draft, Kind, ProductId, SessionId},
    feed::Feed,
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
    shard::ShardPlacement,
    timer_wheel::TimerWheel,
};

/// Returns a relay of these products that admits anonymous subscribers.
pub(crate) fn relay<const N: usize>(names: [&str; N]) -> Relay {
    let text = "[server]\nlisten = '127.0.0.1:0'\n\
        [[upstreams]]\nproduct_id = 'one'\nurl = 'http://127.0.0.1:1/stream/p'\n\
        [auth]\nallow_anonymous = true";
    let config =
        Config::parse(text, "test", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let access = Arc::new(Access::new(&config.auth));
    let products =
        names.map(|name| open_product(name, &metrics)).map(|it| (it.feed.id.clone(), it));
    Relay {
        products: Arc::new(DashMap::from_iter(products)),
        credential_sources: CredentialSources::new(&config.auth, &[]),
        subscribers: Subscribers::new(
            AdmissionLimits::at_most(1000),
            Arc::clone(&access),
            Arc::clone(&metrics),
        ),
        access,
        shards: ShardPlacement::new(1, Duration::from_secs(30)),
        page_quota: PageQuota::default(),
        body_quota: BodyQuota::default(),
        wheel: TimerWheel::new(),
        pulse: Arc::default(),
        heartbeat_interval: Duration::from_secs(30),
        max_connection_age: None,
        trusted_proxies: Vec::new(),
        is_draining: Arc::new(AtomicBool::new(false)),
        store: None,
        refusals: Refusals::new(&metrics),
        metrics,
    }
}

fn open_product(name: &str, metrics: &Arc<Metrics>) -> Arc<Product> {
    let id = ProductId::new(name).unwrap();
    let log = Log::new(id.clone(), MemoryBounds { events: 100, bytes: u64::MAX }, metrics.log(&id));
    log.set_numbering(Numbering::Own);
    Arc::new(Product {
        feed: Arc::new(Feed::new(Arc::new(log), 2, 0, metrics)),
        paged_events: metrics.paged(&id),
        published_events: metrics.published(&id),
        max_publish_bytes: 0,
        upstream: None,
    })
}

/// Returns one of the relay's products.
pub(crate) fn product(relay: &Relay, name: &str) -> Arc<Product> {
    Arc::clone(&relay.products.get(&ProductId::new(name).unwrap()).unwrap())
}

/// Appends an event and runs the fan-out over it once.
pub(crate) fn publish(relay: &Relay, name: &str, text: &str) {
    publish_as(relay, name, (None, "x"), text);
}

/// Appends an event of a session and a kind, and dispatches it.
pub(crate) fn publish_as(
    relay: &Relay,
    name: &str,
    (session, kind): (Option<&str>, &str),
    text: &str,
) {
    let product = product(relay, name);
    let payload = Bytes::copy_from_slice(text.as_bytes());
    let received = Instant::now();
    product.feed.log.append(Draft {
        kind: Kind::new(kind),
        session: session.map(|session| SessionId::new(session).unwrap()),
        user: None,
        forwarded_at: None,
        payload,
        received,
    });
    let run = pin!(product.feed.fanout.run(CancellationToken::new()));
    assert!(run.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}
