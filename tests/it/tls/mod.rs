//! TLS: the listener, its certificate, and upstreams over TLS.

mod certificate;
mod handshake;
mod self_signed;
mod streams;
mod upstream;

use std::{net::SocketAddr, sync::Arc};

use crate::common::{
    PRODUCT, STREAM,
    connector::{Connector, Link},
    events::number,
    relay::{Relay, Setup, TOKEN},
    subscriber::Frame,
    tls::{Authority, TlsClient},
    wait::TIMEOUT,
};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Version, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A relay with TLS behind a connector.
struct Scene {
    authority: Authority,
    relay: Relay,
    link: Link,
    _connector: Connector,
}

impl Scene {
    fn new(server: &str) -> Self {
        let authority = Authority::new();
        authority.issue_as("relay", "IP:127.0.0.1,DNS:localhost", "-days 2");
        let connector = Connector::new();
        let setup =
            Setup::new().upstream(PRODUCT, &connector.url(PRODUCT), &format!("token = '{TOKEN}'"));
        let setup = setup.with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
        let relay = setup.server(server).start();
        let link = connector.stream();
        Self { authority, relay, link, _connector: connector }
    }

    /// Opens an HTTP/1.1 connection.
    fn secure(&self) -> TlsClient {
        TlsClient::connect(self.relay.public, &self.authority.client(&["http/1.1"]))
    }

    /// Opens an HTTP/2 connection.
    async fn http2(
        &self,
    ) -> (http2::SendRequest<Empty<bytes::Bytes>>, tokio::task::JoinHandle<()>) {
        let stream = connect(self.relay.public, self.authority.client(&["h2"])).await;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 30).initial_connection_window_size(1 << 30);
        let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async { drop(connection.await) });
        (client, driver)
    }
}

async fn connect(to: SocketAddr, config: Arc<ClientConfig>) -> TlsStream<tokio::net::TcpStream> {
    let socket = tokio::net::TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(ServerName::from(to.ip()), socket).await.unwrap()
}

/// The body of a stream over HTTP/2.
struct Body {
    incoming: Incoming,
    buffer: Vec<u8>,
}

async fn subscribe(client: &mut http2::SendRequest<Empty<bytes::Bytes>>, to: SocketAddr) -> Body {
    let request = Request::get(format!("https://{to}{STREAM}")).body(Empty::new()).unwrap();
    let response = timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    Body { incoming: response.into_body(), buffer: Vec::new() }
}

/// Waits for the next event, and returns its number.
async fn next_number(body: &mut Body) -> usize {
    loop {
        if let Some(end) = body.buffer.windows(2).position(|window| window == b"\n\n") {
            let block: Vec<u8> = body.buffer.drain(..end + 2).collect();
            let block = match block.starts_with(b"retry: ") {
                true => block.splitn(2, |byte| *byte == b'\n').nth(1).unwrap().to_vec(),
                false => block,
            };
            let frame = Frame::parse(&block);
            if frame.event.is_none() {
                return number(&frame.data);
            }
            continue;
        }
        let frame =
            timeout(TIMEOUT, body.incoming.frame()).await.expect("more comes").unwrap().unwrap();
        body.buffer.extend_from_slice(&frame.into_data().unwrap());
    }
}

/// Returns the first bytes of a client, its ClientHello.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut connection =
        ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}
