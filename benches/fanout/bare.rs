//! The reference server: the simplest program that could be called a relay, and its limits.
//!
//! One thread, one `epoll`; each event is framed once and written to each of its subscribers with
//! one `write`. It trusts its upstream, parses no HTTP beyond the session in a request line, keeps
//! no history, sends no heartbeat, has no metrics, and buffers without bound for slow readers. So
//! it is the lower bound of the machine, and no server.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
};

use memchr::memmem;
use mio::{
    Events, Interest, Poll, Registry, Token,
    net::{TcpListener, TcpStream},
};

use crate::support::{
    Result,
    payload::{PRODUCT, Template},
    target::kind::Pace,
};

/// Relays the events of `upstream` until that ends.
pub(crate) fn run(upstream: SocketAddr, pace: Pace) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut source = Source::open(upstream, poll.registry())?;
    let mut subscribers = Subscribers::default();
    println!("{}", listener.local_addr()?);
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            match event.token() {
                LISTENER => subscribers.accept(&listener, poll.registry())?,
                UPSTREAM if !source.relay(&mut buffer, pace, &mut subscribers)? => return Ok(()),
                UPSTREAM => {}
                Token(number) => subscribers.turn(number, &mut buffer),
            }
        }
    }
}

/// The connection to the upstream.
#[derive(Debug)]
struct Source {
    stream: TcpStream,
    template: Template,
    /// The unfinished head, then the unfinished frame.
    rest: Vec<u8>,
    has_head: bool,
    /// Number of events so far.
    count: u64,
    /// The next bytes to send.
    wire: Vec<u8>,
}

impl Source {
    fn open(upstream: SocketAddr, registry: &Registry) -> Result<Self> {
        let mut stream = std::net::TcpStream::connect(upstream)?;
        write!(stream, "GET /stream/{PRODUCT} HTTP/1.1\r\nHost: {upstream}\r\n\r\n")?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, UPSTREAM, Interest::READABLE)?;
        Ok(Self {
            stream,
            template: Template::new(),
            rest: Vec::new(),
            has_head: false,
            count: 0,
            wire: Vec::new(),
        })
    }

    /// Forwards all available events, and returns false at the end of the upstream.
    fn relay(
        &mut self,
        buffer: &mut [u8],
        pace: Pace,
        subscribers: &mut Subscribers,
    ) -> Result<bool> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            self.rest.extend_from_slice(&buffer[..length]);
            if !self.has_head {
                let Some(end) = memmem::find(&self.rest, b"\r\n\r\n") else {
                    continue;
                };
                self.rest.drain(..end + 4);
                self.has_head = true;
            }
            self.forward(pace, subscribers);
        }
    }

    /// Forwards the complete frames.
    fn forward(&mut self, pace: Pace, subscribers: &mut Subscribers) {
        let mut used = 0;
        self.wire.clear();
        while let Some(length) = memmem::find(&self.rest[used..], b"\n\n") {
            let frame = &self.rest[used..used + length + 2];
            used += frame.len();
            let Some(payload) = frame.strip_prefix(b"data: ") else {
                continue;
            };
            self.count += 1;
            encode(self.count, frame, &mut self.wire);
            if pace == Pace::Each {
                subscribers.deliver(&self.wire, self.template.session(payload));
                self.wire.clear();
            }
        }
        self.rest.drain(..used);
        if !self.wire.is_empty() {
            subscribers.deliver_to_all(&self.wire);
        }
    }
}

/// Appends the bytes that the relay sends for the same event: one chunk with an id before the
/// frame.
fn encode(count: u64, frame: &[u8], wire: &mut Vec<u8>) {
    let id = format!("id: 1700000000000-{count}\n");
    wire.extend_from_slice(format!("{:X}\r\n", id.len() + frame.len()).as_bytes());
    wire.extend_from_slice(id.as_bytes());
    wire.extend_from_slice(frame);
    wire.extend_from_slice(b"\r\n");
}

/// All subscribers.
#[derive(Debug, Default)]
struct Subscribers {
    slots: Vec<Option<Subscriber>>,
    free: Vec<usize>,
    /// Subscribers of one session.
    by_session: HashMap<Vec<u8>, Vec<usize>>,
    /// Subscribers of every event.
    everything: Vec<usize>,
}

#[derive(Debug)]
struct Subscriber {
    stream: TcpStream,
    /// `None` before its request.
    filter: Option<Filter>,
    /// Bytes that its socket did not take.
    backlog: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Filter {
    Everything,
    Session(Vec<u8>),
}

impl Subscribers {
    fn accept(&mut self, listener: &TcpListener, registry: &Registry) -> Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            let number = self.free.pop().unwrap_or(self.slots.len());
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, Token(FIRST_SUBSCRIBER + number), interest)?;
            if number == self.slots.len() {
                self.slots.push(None);
            }
            self.slots[number] = Some(Subscriber { stream, filter: None, backlog: Vec::new() });
        }
    }

    /// Handles a readiness event of a connection.
    fn turn(&mut self, token: usize, buffer: &mut [u8]) {
        let number = token - FIRST_SUBSCRIBER;
        let Some(subscriber) = &mut self.slots[number] else { return };
        subscriber.flush();
        match subscriber.stream.read(buffer) {
            Ok(0) => self.remove(number),
            Ok(length) if subscriber.filter.is_none() => {
                // A request is small enough to arrive in one piece.
                let filter = Filter::read(&buffer[..length]);
                subscriber.filter = Some(filter.clone());
                subscriber.write(HEAD);
                match filter {
                    Filter::Everything => self.everything.push(number),
                    Filter::Session(session) => {
                        self.by_session.entry(session).or_default().push(number);
                    }
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.remove(number),
        }
    }

    fn remove(&mut self, number: usize) {
        let Some(subscriber) = self.slots[number].take() else {
            return;
        };
        self.free.push(number);
        let list = match &subscriber.filter {
            None => return,
            Some(Filter::Everything) => Some(&mut self.everything),
            Some(Filter::Session(session)) => self.by_session.get_mut(session),
        };
        let Some(list) = list else { return };
        if let Some(at) = list.iter().position(|other| *other == number) {
            list.swap_remove(at);
        }
    }

    /// Delivers one event.
    fn deliver(&mut self, wire: &[u8], session: &[u8]) {
        self.deliver_to_all(wire);
        for number in self.by_session.get(session).into_iter().flatten() {
            if let Some(subscriber) = &mut self.slots[*number] {
                subscriber.write(wire);
            }
        }
    }

    /// Delivers one or more events to the subscribers of every event.
    fn deliver_to_all(&mut self, wire: &[u8]) {
        for number in &self.everything {
            if let Some(subscriber) = &mut self.slots[*number] {
                subscriber.write(wire);
            }
        }
    }
}

impl Filter {
    fn read(request: &[u8]) -> Self {
        let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let Some(at) = memmem::find(line, SESSION) else {
            return Self::Everything;
        };
        let session = line[at + SESSION.len()..].split(|byte| *byte == b' ').next();
        Self::Session(session.unwrap_or_default().to_vec())
    }
}

impl Subscriber {
    /// Writes, or buffers the bytes that the socket does not take. A closed connection is noticed
    /// by the next read.
    fn write(&mut self, bytes: &[u8]) {
        if !self.backlog.is_empty() {
            return self.backlog.extend_from_slice(bytes);
        }
        let written = self.stream.write(bytes).unwrap_or(0);
        self.backlog.extend_from_slice(&bytes[written..]);
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.stream.write(&self.backlog) {
                Ok(written) if written > 0 => drop(self.backlog.drain(..written)),
                _ => return,
            }
        }
        self.backlog = Vec::new();
    }
}

const LISTENER: Token = Token(0);
const UPSTREAM: Token = Token(1);
const FIRST_SUBSCRIBER: usize = 2;

const SESSION: &[u8] = b"session_id=";

/// The head with the first chunk: the same fields as the relay's.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store, no-transform\r\n\
    x-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\nC\r\nretry: 2000\n\r\n";

const READ_BYTES: usize = 256 * 1024;
