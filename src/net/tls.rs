//! TLS for a listener, with a certificate that can be replaced while it serves.
//!
//! In: a certificate and its key. Out: a TLS stream over the socket given, and whether its client
//! chose HTTP/2. The deadlines are those of the socket below: a peer that takes nothing is found
//! there, with TLS as without.
//!
//! May use: `config`.

use std::{io, sync::Arc};

use parking_lot::Mutex;
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

/// TLS configuration for new connections. A connection keeps the configuration it was accepted
/// with.
#[derive(Debug)]
pub(crate) struct ReloadableTls(Mutex<Arc<ServerConfig>>);

impl ReloadableTls {
    /// Creates a configuration with this certificate.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults.
    pub(crate) fn new(identity: &TlsIdentity) -> Result<Self, rustls::Error> {
        Ok(Self(Mutex::new(server_config(identity)?)))
    }

    /// Serves this certificate from now on.
    ///
    /// The key of the session tickets is replaced with it, so that a client cannot resume a session
    /// of the former certificate: every new connection gets the new one.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses its own defaults; the former certificate stays.
    pub(crate) fn replace(&self, identity: &TlsIdentity) -> Result<(), rustls::Error> {
        let config = server_config(identity)?;
        *self.0.lock() = config;
        Ok(())
    }

    /// Performs the handshake, within the head deadline of `socket`.
    ///
    /// # Errors
    ///
    /// Fails if the peer does not speak TLS, or the handshake takes too long.
    pub(super) async fn accept<I>(&self, socket: I) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        // The lock is held to clone an `Arc`, and not across the handshake.
        let config = Arc::clone(&self.0.lock());
        // One record instead of rustls' default of 64 KiB: the most that is held for a peer that
        // takes nothing.
        let limit_buffer = |session: &mut rustls::ServerConnection| {
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        };
        TlsAcceptor::from(config).accept_with(socket, limit_buffer).await
    }
}

/// TLS session without its socket.
pub(crate) type TlsSession = Box<ServerConnection>;

/// Returns whether the client chose HTTP/2 by ALPN. A client without ALPN gets HTTP/1.1.
pub(super) fn negotiated_http2<I>(stream: &TlsStream<I>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2)
}

/// Returns a configuration for TLS 1.2 and 1.3.
///
/// Sessions are resumed by tickets that the client keeps (RFC 8446, section 4.6.1), so the relay
/// stores nothing for clients that are gone.
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

/// One TLS record: the most that a connection holds, encrypted, for a peer that takes nothing.
const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// One instead of rustls' two: a client opens one connection after another, and each brings a new
/// ticket.
const TLS13_TICKETS: usize = 1;
