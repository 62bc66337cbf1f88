//! The addresses that webhooks may reach, and the connector that dials no others.
//!
//! In: a URL. Out: a connection to an address that was checked after the name was resolved, or why
//! there is none. The check is in the connector for two reasons: a URL can hold an address in so
//! many spellings that only the dialled address can be judged, and a name may resolve differently a
//! moment later, so the checked address is the one that is dialled. A guard in the resolver would
//! never see an IP literal.
//!
//! May use: `config`.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower::Service;

use super::{answer_budget::AnswerBudget, idle_timeout::IdleTimeoutStream};
use crate::config::Network;

/// Decides which addresses webhooks may reach: public ones, and those in `egress.allow_networks`.
#[derive(Clone, Debug)]
pub(crate) struct EgressGuard {
    allow: Vec<Network>,
}

impl EgressGuard {
    /// Creates a guard that admits `allow` (`egress.allow_networks`) beside public addresses.
    pub(crate) fn new(allow: &[Network]) -> Self {
        Self { allow: allow.to_vec() }
    }

    /// Returns whether webhooks may reach `address`.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        let listed = |address: IpAddr| self.allow.iter().any(|network| network.contains(address));
        // A listed network admits its hosts through any gateway that reaches them.
        listed(address)
            || super::networks::embedded_ipv4(address).is_some_and(listed)
            || super::networks::routes_publicly(address)
    }

    /// Admits all addresses of a name or none: a name with a public and an internal address is
    /// suspect as a whole.
    fn check(&self, addresses: &[SocketAddr]) -> Result<(), EgressError> {
        match addresses.iter().find(|address| !self.allows(address.ip())) {
            Some(refused) => Err(EgressError::Refused(refused.ip())),
            None => Ok(()),
        }
    }
}

/// Reasons for which there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    /// The name of the host has no address.
    #[error("the name of its host cannot be resolved: {0}")]
    Dns(#[source] io::Error),
    /// The host has an address that webhooks may not reach.
    #[error(
        "{0} is not a public address; add its network to egress.allow_networks \
         to let webhooks reach it"
    )]
    Refused(IpAddr),
    /// No address of the host accepts a connection; this is the last one tried.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// Connection and TLS took too long.
    #[error("no connection in time")]
    Timeout,
}

/// Connector that dials only addresses that the guard admits.
#[derive(Clone, Debug)]
pub(crate) struct EgressConnector {
    guard: Arc<EgressGuard>,
    resolver: Resolver,
    attempt_timeout: Duration,
    budget: Arc<AnswerBudget>,
    /// Bounds on connections: of this webhook, and of all together.
    bounds: Option<[Arc<Semaphore>; 2]>,
}

/// Bound on the connections of the admin API's webhooks, because each of them is a file descriptor,
/// and the store and the listeners need descriptors, too.
#[derive(Debug)]
pub(crate) struct EgressConnections {
    of_all: Arc<Semaphore>,
    max: usize,
}

impl EgressConnections {
    /// Allows `max` connections at one time, and a quarter of them to one webhook, so that a few
    /// receivers that stand still leave the others theirs.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { of_all: Arc::new(Semaphore::new(max)), max }
    }

    /// Returns the number of connections that there may be at one time.
    pub(crate) fn max(&self) -> usize {
        self.max
    }
}

/// Permits of one connection, returned when its socket is closed.
pub(crate) type EgressPermits = [OwnedSemaphorePermit; 2];

impl EgressConnector {
    /// Creates a connector whose caller gives each attempt `attempt_timeout` and no longer. Its
    /// peers may send one answer's bytes, until [`EgressConnector::within`] sets a budget.
    pub(crate) fn new(guard: Arc<EgressGuard>, attempt_timeout: Duration) -> Self {
        let budget = Arc::new(AnswerBudget::new(1));
        Self { guard, resolver: Resolver::System, attempt_timeout, budget, bounds: None }
    }

    /// Sets the budget that all connections share. Each connection adds its handshake to it, and
    /// the caller adds each request's answer.
    pub(crate) fn within(self, budget: Arc<AnswerBudget>) -> Self {
        Self { budget, ..self }
    }

    /// Counts this connector's connections among those of all webhooks.
    pub(crate) fn bounded_by(self, connections: &EgressConnections) -> Self {
        let of_webhook = Arc::new(Semaphore::new(connections.max.div_ceil(4)));
        Self { bounds: Some([of_webhook, Arc::clone(&connections.of_all)]), ..self }
    }

    /// Waits for the permits of a connection, its webhook's first: so of each webhook a few wait in
    /// the common queue, and not as many as it has attempts. The caller bounds the wait.
    async fn acquire_permits(&self) -> Option<EgressPermits> {
        let [of_webhook, of_all] = self.bounds.as_ref()?;
        // The semaphores are never closed.
        let of_webhook = Arc::clone(of_webhook).acquire_owned().await.ok()?;
        Some([of_webhook, Arc::clone(of_all).acquire_owned().await.ok()?])
    }

    /// Replaces the resolver.
    #[cfg(test)]
    pub(crate) fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    async fn connect(self, url: Uri) -> Result<TokioIo<IdleTimeoutStream<TcpStream>>, EgressError> {
        // Before the name is looked up, which takes a descriptor, too.
        let permits = self.acquire_permits().await;
        let addresses = self.resolver.resolve(&url).await.map_err(EgressError::Dns)?;
        self.guard.check(&addresses)?;
        // For a name that resolves to an empty list.
        let mut failure = EgressError::Dns(io::Error::other("it has no address"));
        for (tried, address) in addresses.iter().enumerate() {
            match timeout(self.dial_timeout(addresses.len() - tried), self.dial(*address)).await {
                Ok(Ok(stream)) => {
                    self.budget.grant();
                    let idle_timeout = self.attempt_timeout + MAX_EGRESS_IDLE;
                    let budget = Arc::clone(&self.budget);
                    let stream = IdleTimeoutStream::new(stream, idle_timeout, budget);
                    return Ok(TokioIo::new(stream.holding(permits)));
                }
                Ok(Err(error)) => failure = EgressError::Connect(*address, error),
                Err(_) => failure = EgressError::Connect(*address, io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failure)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // Bytes that the kernel still holds of an attempt that has ended are not worth a socket for
        // longer than that.
        SockRef::from(&stream).set_tcp_user_timeout(Some(self.attempt_timeout))?;
        Ok(stream)
    }

    /// Returns the time for one address while `remaining` are to be tried, so that an address that
    /// does not answer leaves time for the others.
    ///
    /// The last address has the rest of the attempt, which the caller limits.
    fn dial_timeout(&self, remaining: usize) -> Duration {
        match u32::try_from(remaining) {
            Ok(remaining) if remaining > 1 => {
                MAX_DIAL_PER_ADDRESS.min(self.attempt_timeout / remaining)
            }
            _ => Duration::MAX,
        }
    }
}

impl Service<Uri> for EgressConnector {
    type Response = TokioIo<IdleTimeoutStream<TcpStream>>;
    type Error = EgressError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, EgressError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EgressError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        Box::pin(self.clone().connect(url))
    }
}

/// Addresses that a test gives to names.
#[cfg(test)]
pub(crate) type StubLookup = dyn Fn(&str) -> Vec<IpAddr> + Send + Sync;

/// Source of addresses.
#[derive(Clone)]
pub(crate) enum Resolver {
    /// The operating system, which also knows the older spellings of an address: `127.1`, `0x7f.1`,
    /// `2130706433`.
    System,
    /// A test's.
    #[cfg(test)]
    Stub(Arc<StubLookup>),
}

impl Resolver {
    /// Returns all addresses of the URL's host, with its port.
    async fn resolve(&self, url: &Uri) -> io::Result<Vec<SocketAddr>> {
        let host = url.host().unwrap_or_default();
        // An IPv6 literal has brackets in a URL and none for the resolver.
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let port =
            url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Stub(stub) => {
                Ok(stub(host).into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Resolver")
    }
}

/// Time for which an idle connection may wait for the next request, beyond an attempt's. The pool
/// closes it earlier.
const MAX_EGRESS_IDLE: Duration = Duration::from_secs(5);

/// Two lost SYNs are sent again within this time; an address that answers later is tried again with
/// the next attempt.
const MAX_DIAL_PER_ADDRESS: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_webhook_holds_a_quarter_of_all_connections_and_leaves_the_others_theirs() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to: Uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let guard = Arc::new(EgressGuard::new(&[Network::parse("127.0.0.1").unwrap()]));
        let connections = EgressConnections::new(4);
        let webhook = || {
            let connector = EgressConnector::new(Arc::clone(&guard), Duration::from_secs(60));
            connector.bounded_by(&connections)
        };
        let first = webhook();
        let held = first.clone().connect(to.clone()).await.unwrap();
        let waiting = tokio::spawn(first.connect(to.clone()));
        let mut of_others = Vec::new();
        for _ in 0..3 {
            of_others.push(webhook().connect(to.clone()).await.unwrap());
        }
        let beyond = tokio::spawn(webhook().connect(to));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished() && !beyond.is_finished(), "all are in use");
        of_others.pop();
        beyond.await.unwrap().unwrap();
        assert!(!waiting.is_finished(), "its webhook has its share");
        drop(held);
        waiting.await.unwrap().unwrap();
    }
}
