//! Which addresses webhooks may reach, and the connector that dials no others.
//!
//! In: a URL. Out: a connection to an address that was checked after the name was resolved, or why
//! there is none. The check sits in the connector because a URL can hold an address in so many
//! spellings that only what is dialled can be judged; and what was checked is what is dialled,
//! because a name may resolve differently a moment later.
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
use tokio::{net::TcpStream, time::timeout};
use tower::Service;

use super::idle_timeout::IdleTimeoutStream;
use crate::config::Network;

/// Tells which addresses webhooks may reach: public ones, and those in `egress.allow_networks`.
#[derive(Clone, Debug)]
pub(crate) struct EgressGuard {
    allow: Vec<Network>,
}

impl EgressGuard {
    /// A guard that lets through `allow`, `egress.allow_networks`, beside what is public.
    pub(crate) fn new(allow: &[Network]) -> Self {
        Self { allow: allow.to_vec() }
    }

    /// Whether webhooks may reach this address.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        let listed = |address: IpAddr| self.allow.iter().any(|network| network.contains(address));
        // Whoever lists a network means its hosts, by whatever gateway they are reached.
        listed(address)
            || super::networks::embedded_ipv4(address).is_some_and(listed)
            || super::networks::routes_publicly(address)
    }

    /// Lets all addresses of a name through or none: a name with a public and an inner address is
    /// no honest one.
    fn check(&self, addresses: &[SocketAddr]) -> Result<(), EgressError> {
        match addresses.iter().find(|address| !self.allows(address.ip())) {
            Some(refused) => Err(EgressError::Refused(refused.ip())),
            None => Ok(()),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    /// The host's name has no address.
    #[error("the name of its host cannot be resolved: {0}")]
    Dns(#[source] io::Error),
    /// The host has an address that webhooks may not reach.
    #[error(
        "{0} is not a public address; add its network to egress.allow_networks to let webhooks reach it"
    )]
    Refused(IpAddr),
    /// No address of the host takes a connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// Connection and TLS have taken too long.
    #[error("no connection in time")]
    Timeout,
}

/// Dials what the guard lets through.
#[derive(Clone, Debug)]
pub(crate) struct EgressConnector {
    guard: Arc<EgressGuard>,
    resolver: Resolver,
    attempt_timeout: Duration,
}

impl EgressConnector {
    /// A connector behind `guard` whose caller waits for `attempt_timeout` and no longer.
    pub(crate) fn new(guard: Arc<EgressGuard>, attempt_timeout: Duration) -> Self {
        Self { guard, resolver: Resolver::System, attempt_timeout }
    }

    /// The same connector, with names from `resolver`.
    #[cfg(test)]
    pub(crate) fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    async fn connect(self, url: Uri) -> Result<TokioIo<IdleTimeoutStream<TcpStream>>, EgressError> {
        let addresses = self.resolver.resolve(&url).await.map_err(EgressError::Dns)?;
        self.guard.check(&addresses)?;
        let mut failure = EgressError::Dns(io::Error::other("it has no address"));
        for (tried, address) in addresses.iter().enumerate() {
            match timeout(self.dial_timeout(addresses.len() - tried), self.dial(*address)).await {
                Ok(Ok(stream)) => {
                    return Ok(TokioIo::new(IdleTimeoutStream::new(
                        stream,
                        self.attempt_timeout + MAX_EGRESS_IDLE,
                    )));
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
        // What the kernel still holds of an attempt that has ended is not worth a socket for longer
        // than that.
        SockRef::from(&stream).set_tcp_user_timeout(Some(self.attempt_timeout))?;
        Ok(stream)
    }

    /// The time for one address while `left` are to be tried: one that doesn't answer must not use
    /// up that of the others.
    ///
    /// The last one has what is left of the caller's patience.
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

/// The addresses that a test gives a name.
#[cfg(test)]
pub(crate) type StubLookup = dyn Fn(&str) -> Vec<IpAddr> + Send + Sync;

/// Where addresses come from.
#[derive(Clone)]
pub(crate) enum Resolver {
    /// The operating system, which also knows the older spellings of an address: `127.1`, `0x7f.1`,
    /// `2130706433`.
    System,
    /// A test.
    #[cfg(test)]
    Stub(Arc<StubLookup>),
}

impl Resolver {
    /// All addresses of the URL's host, with the port.
    async fn resolve(&self, url: &Uri) -> io::Result<Vec<SocketAddr>> {
        let host = url.host().unwrap_or_default();
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

/// How long a connection may wait for the next request. The pool closes it before.
const MAX_EGRESS_IDLE: Duration = Duration::from_secs(5);

/// Two lost SYNs are sent again within this; an address that answers later is tried again with the
/// next attempt.
const MAX_DIAL_PER_ADDRESS: Duration = Duration::from_secs(3);
