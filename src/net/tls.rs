//! TLS for a listener, with a certificate that can be replaced while it serves.
//!
//! In: a certificate and its key. Out: a TLS stream over a guarded socket, and whether its client has chosen HTTP/2. The deadlines are
//! those of the socket below: a peer that takes nothing is found there, whatever it does not take.
//!
//! May use: `config` (the identity).

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig, ServerConnection,
    crypto::aws_lc_rs::{Ticketer, default_provider},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config::TlsIdentity;

/// What newcomers are shown. Whoever is connected stays with what it was shown.
#[derive(Debug)]
pub(crate) struct ReloadableTls(Mutex<Arc<ServerConfig>>);

impl ReloadableTls {
    /// TLS with this certificate.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults.
    pub(crate) fn new(identity: &TlsIdentity) -> Result<Self, rustls::Error> {
        Ok(Self(Mutex::new(server_config(identity)?)))
    }

    /// Shows this certificate from now on. Tickets of the former one open nothing any more, so everybody who comes sees this one.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults; the former certificate stays.
    pub(crate) fn replace(&self, identity: &TlsIdentity) -> Result<(), rustls::Error> {
        let config = server_config(identity)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Shakes hands, within the time that the socket gives its peer for a request.
    ///
    /// # Errors
    ///
    /// When the peer speaks something else, or takes too long.
    pub(super) async fn accept<I>(&self, socket: I) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let limit_buffer = |session: &mut rustls::ServerConnection| {
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES))
        };
        TlsAcceptor::from(config).accept_with(socket, limit_buffer).await
    }
}

/// A TLS session without its socket.
pub(crate) type TlsSession = Box<ServerConnection>;

/// Whether the client has chosen HTTP/2. One that says nothing of protocols speaks HTTP/1.1.
pub(super) fn negotiated_http2<I>(stream: &TlsStream<I>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2)
}

/// TLS 1.2 and 1.3. Who comes again resumes by a ticket that it keeps itself: nothing is kept here for anybody who has gone.
fn server_config(identity: &TlsIdentity) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let resolver = SingleCertAndKey::from(Arc::clone(&identity.key));
    let mut config = builder
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = [ALPN_HTTP2, ALPN_HTTP1].map(<[u8]>::to_vec).into();
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TLS13_TICKETS;
    Ok(Arc::new(config))
}

/// RFC 7301, section 6, and RFC 9113, section 3.2.
const ALPN_HTTP2: &[u8] = b"h2";

const ALPN_HTTP1: &[u8] = b"http/1.1";

/// One record: what a connection may hold, encrypted, for a peer that takes nothing.
const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// A client makes one connection after another, and each brings a new ticket.
const TLS13_TICKETS: usize = 1;
