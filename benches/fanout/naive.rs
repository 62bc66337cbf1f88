//! The obvious server: axum, one broadcast channel, and each subscriber's filter applied by the
//! subscriber.
//!
//! What one would write in an hour, with nothing done badly on purpose. Each subscriber is woken
//! for each event, looks whether it is of its session, and formats it for itself. Who has not read
//! an event before 1 024 others came loses it, and is not told.

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

/// Relays what comes from `upstream` until that ends.
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

/// Speaks HTTP/1.1 or 2, whichever a client begins with or has chosen.
async fn serve(listener: TcpListener, app: Router, acceptor: Option<TlsAcceptor>) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (app, acceptor) = (app.clone(), acceptor.clone());
        // Who fails has gone, and the load notices.
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

/// One event, as all share it.
#[derive(Debug)]
struct Message {
    number: u64,
    session: String,
    payload: String,
}

/// The one field that it looks at.
#[derive(Deserialize)]
struct Payload {
    session_id: String,
}

#[derive(Deserialize)]
struct Wish {
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
        // Nobody may be listening; then it is for nobody.
        let _ = sender.send(Arc::new(Message { number, session, payload: payload.to_owned() }));
    }
    Ok(())
}

async fn subscribe(
    State(sender): State<Sender<Arc<Message>>>,
    Query(wish): Query<Wish>,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let events = BroadcastStream::new(sender.subscribe()).filter_map(move |message| {
        let message = message.ok()?; // too late for it
        let is_wanted = wish.session_id.as_ref().is_none_or(|session| *session == message.session);
        let event = || {
            Event::default().id(format!("1700000000000-{}", message.number)).data(&message.payload)
        };
        is_wanted.then(|| Ok(event()))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

const CAPACITY: usize = 1024;
