//! The simplest receiver of deliveries. One thread, `epoll`, HTTP/1.1 with keep-alive, always 200.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpListener, net::TcpStream};
use socket2::{Domain, Socket, Type};

use crate::support::{
    Result,
    histogram::Histogram,
    payload::{Template, now_us},
};

/// A receiver with a port of its own. Until it listens, connections are refused.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Never listens; keeps the port bound.
    _port_holder: Socket,
}

/// State shared with the receiver's thread.
#[derive(Debug)]
struct Shared {
    received: AtomicU64,
    is_over: AtomicBool,
    tally: Mutex<Tally>,
}

/// Counts of deliveries and faults.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// From the moment before the upstream wrote the event to the moment its first byte could be
    /// read here, in microseconds.
    pub(crate) latency: Histogram,
    /// The newest event of each session.
    newest: HashMap<Vec<u8>, u64>,
    /// Bodies that differ from the sent payloads.
    pub(crate) damaged: u64,
    /// Events that arrived after a later one of their session, or again.
    pub(crate) out_of_order: u64,
}

impl Sink {
    /// Returns a receiver whose port refuses connections.
    pub(crate) fn closed() -> Result<Self> {
        let port_holder = bound(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = port_holder.local_addr()?.as_socket().ok_or("no address of a socket")?;
        let tally = Tally {
            latency: Histogram::new(),
            newest: HashMap::new(),
            damaged: 0,
            out_of_order: 0,
        };
        let shared = Shared {
            received: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            tally: Mutex::new(tally),
        };
        Ok(Self { address, shared: Arc::new(shared), thread: None, _port_holder: port_holder })
    }

    /// Returns a receiver that accepts every delivery.
    pub(crate) fn open() -> Result<Self> {
        let mut sink = Self::closed()?;
        sink.listen()?;
        Ok(sink)
    }

    /// Starts to accept connections.
    pub(crate) fn listen(&mut self) -> Result<()> {
        let socket = bound(self.address)?;
        socket.set_nonblocking(true)?;
        socket.listen(1024)?;
        let server = Server::new(TcpListener::from_std(socket.into()), Arc::clone(&self.shared))?;
        self.thread = Some(thread::spawn(move || server.run()));
        Ok(())
    }

    /// Returns the number of accepted deliveries.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Waits until this many deliveries have been accepted.
    ///
    /// # Errors
    ///
    /// If no delivery arrives for a while.
    pub(crate) fn wait_for(&self, count: u64) -> Result<()> {
        let mut moved = (self.received(), Instant::now());
        while moved.0 < count {
            thread::sleep(Duration::from_millis(1));
            let now = self.received();
            if now > moved.0 {
                moved = (now, Instant::now());
            }
            if moved.1.elapsed() > STANDSTILL {
                return Err(
                    format!("{now} of {count} deliveries have arrived, and no more do").into()
                );
            }
        }
        Ok(())
    }

    /// Returns the counts so far.
    pub(crate) fn tally(&self) -> Tally {
        lock(&self.shared).clone()
    }

    /// Clears the latencies.
    pub(crate) fn forget_latency(&self) {
        lock(&self.shared).latency = Histogram::new();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Tally> {
    shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a socket bound to this address, which it may share with a socket that does not listen.
fn bound(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: HashMap<usize, Connection>,
    next: usize,
    template: Template,
    shared: Arc<Shared>,
}

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// Time at which the first byte of the buffer could be read.
    arrived_us: u64,
}

const LISTENER: Token = Token(0);

impl Server {
    fn new(mut listener: TcpListener, shared: Arc<Shared>) -> Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: HashMap::new(),
            next: 1,
            template: Template::new(),
            shared,
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        while !self.shared.is_over.load(Ordering::Relaxed) {
            if self.poll.poll(&mut events, Some(Duration::from_millis(50))).is_err() {
                continue; // interrupted
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(number) => {
                        if !self.serve(number) {
                            self.connections.remove(&number);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut socket, _)) = self.listener.accept() {
            let _ = socket.set_nodelay(true); // only slower without
            if self
                .poll
                .registry()
                .register(&mut socket, Token(self.next), Interest::READABLE)
                .is_ok()
            {
                self.connections
                    .insert(self.next, Connection { socket, buffer: Vec::new(), arrived_us: 0 });
            }
            self.next += 1;
        }
    }

    /// Reads and answers all requests so far, and returns false at the end of the connection.
    fn serve(&mut self, number: usize) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else { return true };
        let now = now_us();
        let mut chunk = [0; 16 * 1024];
        loop {
            match connection.socket.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    if connection.buffer.is_empty() {
                        connection.arrived_us = now;
                    }
                    connection.buffer.extend_from_slice(&chunk[..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        while let Some((body, end)) = whole_request(&connection.buffer) {
            check(
                &self.shared,
                &self.template,
                &connection.buffer[body..end],
                connection.arrived_us,
            );
            connection.buffer.drain(..end);
            // The peer waits for the response, so the socket has space for it.
            if connection.socket.write_all(ANSWER).is_err() {
                return false;
            }
            self.shared.received.fetch_add(1, Ordering::Relaxed);
        }
        true
    }
}

/// Returns begin and end of the first request's body, if the request is complete.
fn whole_request(buffer: &[u8]) -> Option<(usize, usize)> {
    let body = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let mut lines = buffer[..body].split(|byte| *byte == b'\n');
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(CONTENT_LENGTH.len())?;
        let value = name.eq_ignore_ascii_case(CONTENT_LENGTH).then_some(value)?;
        std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok()
    });
    let end = body + length.unwrap_or(0);
    (buffer.len() >= end).then_some((body, end))
}

fn check(shared: &Shared, template: &Template, body: &[u8], arrived_us: u64) {
    let mut tally = lock(shared);
    let Some(event) = template.read(body) else {
        tally.damaged += 1;
        return;
    };
    tally.latency.record(arrived_us.saturating_sub(event.sent_us));
    let before = tally.newest.insert(event.session.to_vec(), event.sequence);
    if before.is_some_and(|before| before >= event.sequence) {
        tally.out_of_order += 1;
    }
}

const CONTENT_LENGTH: &[u8] = b"content-length:";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Longer than the interval between probes of an open circuit.
const STANDSTILL: Duration = Duration::from_secs(30);
