//! Subscribers over TLS or HTTP/2: on each thread of the load a runtime of its own, and on it a
//! task for each stream.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::books::{Books, MOST_PENDING, Shared};
use crate::{
    request::request,
    response::Response,
    support::{
        Result,
        payload::now_us,
        target::kind::{Door, Way},
        tls,
    },
};

/// Connects, reads and checks until told to stop.
pub(super) fn attend(door: Door, books: Books, shared: &Arc<Shared>) -> Result<Books> {
    let config = match door.way {
        Way::Tls => Some(tls::client(HTTP1)?),
        Way::TlsHttp2 => Some(tls::client(HTTP2)?),
        _ => None,
    };
    let count = books.ledgers.len();
    let books = Arc::new(Mutex::new(books));
    let crowd = Crowd { door, config, books: Arc::clone(&books), shared: Arc::clone(shared) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(crowd.come(count))?;
    drop(runtime); // and with it all who hold the books
    let books = Arc::into_inner(books).ok_or("somebody still writes into the books")?;
    Ok(books.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What the tasks of one thread share.
#[derive(Clone, Debug)]
struct Crowd {
    door: Door,
    config: Option<Arc<ClientConfig>>,
    books: Arc<Mutex<Books>>,
    shared: Arc<Shared>,
}

impl Crowd {
    /// Lets all come, a bounded number at a time, and watches them until told to stop.
    async fn come(self, count: usize) -> Result<()> {
        let each = if self.door.way == Way::Tls { 1 } else { STREAMS };
        let gate = Arc::new(Semaphore::new(MOST_PENDING));
        let mut connections = JoinSet::new();
        for first in (0..count).step_by(each) {
            let members = first..count.min(first + each);
            connections.spawn(self.clone().connect(members, Arc::clone(&gate)));
        }
        while !self.shared.stop.load(Ordering::Relaxed) {
            while let Some(done) = connections.try_join_next() {
                done??;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    async fn connect(self, members: Range<usize>, gate: Arc<Semaphore>) -> Result<()> {
        let permit = gate.acquire_owned().await?;
        members.clone().for_each(|nth| self.write(|books| books.ledgers[nth].comes()));
        let socket = TcpStream::connect(self.door.address)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let Some(config) = &self.config else { return self.speak(socket, members, permit).await };
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(ServerName::from(self.door.address.ip()), socket).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if !config.alpn_protocols.iter().any(|protocol| Some(protocol.as_slice()) == chosen) {
            return Err(format!("the target has chosen the protocol {chosen:?}").into());
        }
        self.speak(stream, members, permit).await
    }

    async fn speak<S>(
        self,
        stream: S,
        members: Range<usize>,
        permit: OwnedSemaphorePermit,
    ) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.door.way == Way::Tls {
            return self.listen(stream, members.start, permit).await;
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let permit = Arc::new(permit);
        let mut streams = JoinSet::new();
        streams.spawn(async { Ok(connection.await?) });
        for nth in members {
            streams.spawn(self.clone().subscribe(sender.clone(), nth, Arc::clone(&permit)));
        }
        drop((sender, permit));
        while let Some(done) = streams.join_next().await {
            done??;
        }
        Ok(())
    }

    /// One subscriber on a connection of its own.
    async fn listen<S>(self, mut stream: S, nth: usize, permit: OwnedSemaphorePermit) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut permit = Some(permit);
        stream.write_all(self.question(nth).as_bytes()).await?;
        let (mut response, mut buffer) = (Response::new(), vec![0; READ_BYTES]);
        while !response.has_ended() {
            // Whoever is cut off has ended, whatever the error is.
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                break;
            }
            self.feed(nth, &mut response, &buffer[..length])?;
            if response.has_begun() && permit.take().is_some() {
                self.shared.connected.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !response.has_begun() {
            return Err("a connection was closed before it was answered".into());
        }
        self.write(|books| books.tally.faults.ended += 1);
        Ok(())
    }

    /// One subscriber among others on a connection.
    async fn subscribe(
        self,
        mut sender: http2::SendRequest<Empty<Bytes>>,
        nth: usize,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Result<()> {
        let request = Request::get(self.question(nth))
            .header("accept", "text/event-stream")
            .body(Empty::new())?;
        let answer = sender.send_request(request).await?;
        drop(permit);
        if answer.status() != 200 {
            return Err(format!("answered {}, not 200", answer.status()).into());
        }
        self.shared.connected.fetch_add(1, Ordering::Relaxed);
        let (mut body, mut response) = (answer.into_body(), Response::body());
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref() {
                self.feed(nth, &mut response, data)?;
            }
        }
        self.write(|books| books.tally.faults.ended += 1);
        Ok(())
    }

    fn question(&self, nth: usize) -> String {
        self.write(|books| {
            request(self.door, books.ledgers[nth].session.as_deref(), books.ledgers[nth].resume)
        })
    }

    /// Checks what has come, and counts it.
    fn feed(&self, nth: usize, response: &mut Response, bytes: &[u8]) -> Result<()> {
        let now_us = now_us();
        self.write(|Books { tally, ledgers }| {
            let (received, caught_up) = (tally.received, tally.caught_up_us.count());
            response.feed(bytes, |block| tally.enter(&mut ledgers[nth], block, now_us))?;
            self.shared.received.fetch_add(tally.received - received, Ordering::Relaxed);
            self.shared
                .caught_up
                .fetch_add(tally.caught_up_us.count() - caught_up, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Nobody else has the books then: all tasks are on one thread.
    fn write<T>(&self, write: impl FnOnce(&mut Books) -> T) -> T {
        write(&mut self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// On each connection of HTTP/2: as many as browsers and proxies open at the most by default.
const STREAMS: usize = 100;

/// About what browsers grant, so that windows do not end what the target could send.
const STREAM_WINDOW: u32 = 1 << 20;

const CONNECTION_WINDOW: u32 = 1 << 24;

const READ_BYTES: usize = 4096;

const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

const HTTP1: &[u8] = b"http/1.1";

const HTTP2: &[u8] = b"h2";
