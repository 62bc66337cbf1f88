//! The naive server: axum, one broadcast channel, and a filter that each subscriber applies itself.
//!
//! An obvious implementation with nothing done badly on purpose. Each subscriber is woken for each
//! event, checks its session, and formats it for itself. A subscriber that has not read an event
//! before 1 024 others arrived loses it without a notice.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{Query, State},
    response::sse::{Event, KeepAlive, Sse},
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::broadcast::{self, Sender},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};

use crate::support::{Result, payload::PRODUCT, target::kind::Naive, tls};

/// Relays the events of `upstream` until that ends.
pub(crate) fn run(upstream: SocketAddr, naive: Naive) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let (sender, _) = broadcast::channel(CAPACITY);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let app =
            Router::new().route("/stream/{product}", get(subscribe)).with_state(sender.clone());
        let server = match naive {
            Naive::Plain => tokio::spawn(async move { Ok(axum::serve(listener, app).await?) }),
            Naive::Auto => tokio::spawn(serve(listener, app, None)),
            Naive::Tls => {
                tokio::spawn(serve(listener, app, Some(TlsAcceptor::from(tls::server()?))))
            }
        };
        let source = TcpStream::connect(upstream).await?;
        println!("{address}");
        read(source, &sender).await?;
        server.abort();
        Ok(())
    })
}

/// Serves HTTP/1.1 or HTTP/2, by the client's first bytes or by ALPN.
async fn serve(listener: TcpListener, app: Router, acceptor: Option<TlsAcceptor>) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (app, acceptor) = (app.clone(), acceptor.clone());
        // A failed connection is closed, which the load notices.
        tokio::spawn(async move {
            match acceptor {
                None => answer(socket, app).await,
                Some(acceptor) => answer(acceptor.accept(socket).await?, app).await,
            }
        });
    }
}

async fn answer<S>(stream: S, app: Router) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(app);
    auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
}

/// One event, shared by all subscribers.
#[derive(Debug)]
struct Message {
    number: u64,
    session: String,
    payload: String,
}

/// The one field that the server reads.
#[derive(Deserialize)]
struct Payload {
    session_id: String,
}

#[derive(Deserialize)]
struct Filter {
    session_id: Option<String>,
}

async fn read(mut source: TcpStream, sender: &Sender<Arc<Message>>) -> Result<()> {
    let host = source.peer_addr()?;
    source
        .write_all(format!("GET /stream/{PRODUCT} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
        .await?;
    let mut lines = BufReader::new(source).lines();
    let mut number = 0;
    while let Some(line) = lines.next_line().await? {
        let Some(payload) = line.strip_prefix("data: ") else { continue };
        let Payload { session_id: session } = serde_json::from_str(payload)?;
        number += 1;
        // Sending fails if there is no subscriber.
        let _ = sender.send(Arc::new(Message { number, session, payload: payload.to_owned() }));
    }
    Ok(())
}

async fn subscribe(
    State(sender): State<Sender<Arc<Message>>>,
    Query(filter): Query<Filter>,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let events = BroadcastStream::new(sender.subscribe()).filter_map(move |message| {
        let message = message.ok()?; // the subscriber has lagged
        let is_wanted =
            filter.session_id.as_ref().is_none_or(|session| *session == message.session);
        let event = || {
            Event::default().id(format!("1700000000000-{}", message.number)).data(&message.payload)
        };
        is_wanted.then(|| Ok(event()))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

const CAPACITY: usize = 1024;
