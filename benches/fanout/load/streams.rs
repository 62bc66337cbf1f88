//! Subscribers over TLS or HTTP/2: each thread of the load has its own runtime, with a task for
//! each stream.

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

use super::shared::{MAX_PENDING, Shared, ThreadResults};
use crate::{
    request::request,
    response::Response,
    support::{
        Result,
        payload::now_us,
        target::kind::{Endpoint, Protocol},
        tls,
    },
};

/// Connects, reads and checks until `shared.stop` is set.
pub(super) fn run(
    endpoint: Endpoint,
    results: ThreadResults,
    shared: &Arc<Shared>,
) -> Result<ThreadResults> {
    let config = match endpoint.protocol {
        Protocol::Tls => Some(tls::client(HTTP1)?),
        Protocol::TlsHttp2 => Some(tls::client(HTTP2)?),
        _ => None,
    };
    let count = results.records.len();
    let results = Arc::new(Mutex::new(results));
    let context =
        TaskContext { endpoint, config, results: Arc::clone(&results), shared: Arc::clone(shared) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(context.run(count))?;
    drop(runtime); // and with it all tasks that hold the results
    let results = Arc::into_inner(results).ok_or("a task still holds the results")?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// State shared by the tasks of one thread.
#[derive(Clone, Debug)]
struct TaskContext {
    endpoint: Endpoint,
    config: Option<Arc<ClientConfig>>,
    results: Arc<Mutex<ThreadResults>>,
    shared: Arc<Shared>,
}

impl TaskContext {
    /// Connects all subscribers, a bounded number at a time, and watches their tasks until
    /// `shared.stop` is set.
    async fn run(self, count: usize) -> Result<()> {
        let each = if self.endpoint.protocol == Protocol::Tls { 1 } else { STREAMS };
        let permits = Arc::new(Semaphore::new(MAX_PENDING));
        let mut connections = JoinSet::new();
        for first in (0..count).step_by(each) {
            let numbers = first..count.min(first + each);
            connections.spawn(self.clone().connect(numbers, Arc::clone(&permits)));
        }
        while !self.shared.stop.load(Ordering::Relaxed) {
            while let Some(done) = connections.try_join_next() {
                done??;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn connect(self, numbers: Range<usize>, permits: Arc<Semaphore>) -> Result<()> {
        let permit = permits.acquire_owned().await?;
        numbers.clone().for_each(|nth| self.write(|results| results.records[nth].start_timing()));
        let socket = TcpStream::connect(self.endpoint.address)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let Some(config) = &self.config else {
            return self.run_streams(socket, numbers, permit).await;
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let stream =
            connector.connect(ServerName::from(self.endpoint.address.ip()), socket).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        if !config.alpn_protocols.iter().any(|protocol| Some(protocol.as_slice()) == chosen) {
            return Err(format!("the target has chosen the protocol {chosen:?}").into());
        }
        self.run_streams(stream, numbers, permit).await
    }

    async fn run_streams<S>(
        self,
        stream: S,
        numbers: Range<usize>,
        permit: OwnedSemaphorePermit,
    ) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.endpoint.protocol == Protocol::Tls {
            return self.run_single(stream, numbers.start, permit).await;
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let permit = Arc::new(permit);
        let mut streams = JoinSet::new();
        streams.spawn(async { Ok(connection.await?) });
        for nth in numbers {
            streams.spawn(self.clone().subscribe(sender.clone(), nth, Arc::clone(&permit)));
        }
        drop((sender, permit));
        while let Some(done) = streams.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Runs a subscriber on its own connection.
    async fn run_single<S>(
        self,
        mut stream: S,
        nth: usize,
        permit: OwnedSemaphorePermit,
    ) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut permit = Some(permit);
        stream.write_all(self.request_text(nth).as_bytes()).await?;
        let (mut response, mut buffer) = (Response::new(), vec![0; READ_BYTES]);
        while !response.has_ended() {
            // A read error is the end of the stream, whichever error it is.
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
        self.write(|results| results.tally.faults.ended += 1);
        Ok(())
    }

    /// Runs a subscriber that shares its connection.
    async fn subscribe(
        self,
        mut sender: http2::SendRequest<Empty<Bytes>>,
        nth: usize,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Result<()> {
        let request = Request::get(self.request_text(nth))
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
        self.write(|results| results.tally.faults.ended += 1);
        Ok(())
    }

    fn request_text(&self, nth: usize) -> String {
        self.write(|results| {
            request(
                self.endpoint,
                results.records[nth].session.as_deref(),
                results.records[nth].resume,
            )
        })
    }

    /// Checks and counts received bytes.
    fn feed(&self, nth: usize, response: &mut Response, bytes: &[u8]) -> Result<()> {
        let now_us = now_us();
        self.write(|ThreadResults { tally, records }| {
            let (received, caught_up) = (tally.received, tally.caught_up_us.count());
            response.feed(bytes, |block| tally.check(&mut records[nth], block, now_us))?;
            self.shared.received.fetch_add(tally.received - received, Ordering::Relaxed);
            self.shared
                .caught_up
                .fetch_add(tally.caught_up_us.count() - caught_up, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Runs `write` with the results. The lock is never contended: all tasks run on one thread.
    fn write<T>(&self, write: impl FnOnce(&mut ThreadResults) -> T) -> T {
        write(&mut self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Streams on each connection of HTTP/2: the default maximum of browsers and proxies.
const STREAMS: usize = 100;

/// About the window of browsers, so that windows do not limit the target.
const STREAM_WINDOW: u32 = 1 << 20;

const CONNECTION_WINDOW: u32 = 1 << 24;

const READ_BYTES: usize = 4096;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

const HTTP1: &[u8] = b"http/1.1";

const HTTP2: &[u8] = b"h2";
