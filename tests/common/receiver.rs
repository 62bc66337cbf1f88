//! A webhook receiver scripted by the test, byte by byte.
//!
//! A receiver can be stopped and started again: while it is stopped, a second socket that never
//! listens keeps the port bound, so that connections are refused and no other process is given the
//! port.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::{
    events::number,
    http::{Framing, Head, Look, Wire},
    wait::{self, TIMEOUT},
};

/// Answer of the receiver to a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this status and no body.
    Status(u16),
    /// With this status and these further lines of the head, each with its end.
    With(u16, String),
    /// With these bytes; then the connection is closed.
    Raw(Vec<u8>),
    /// With these bytes; then the connection is reset.
    RawThenReset(Vec<u8>),
    /// With a head that announces a body, and no byte of the body.
    HeadThenHang,
    /// With a head, then a byte of the body every few milliseconds, without end.
    SlowBody,
    /// With a head, then as much body as the relay takes, without end.
    EndlessBody,
    /// Never.
    Hang,
    /// With 200, after [`Receiver::release`].
    Held,
    /// With this status, after [`Receiver::release`].
    HeldThen(u16),
    /// A reset of the connection.
    Reset,
}

impl Answer {
    fn accepts(&self) -> bool {
        matches!(
            self,
            Self::Status(200..300)
                | Self::With(200..300, _)
                | Self::Held
                | Self::HeldThen(200..300)
        )
    }
}

/// A received request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    /// The same moment in Unix seconds.
    pub(crate) unix_seconds: u64,
    /// Requests with the same number arrived on one connection.
    pub(crate) connection: usize,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) is_accepted: bool,
}

impl Request {
    /// Returns a field that must be present.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.head.field(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.head))
    }

    /// Returns the id of the event.
    pub(crate) fn id(&self) -> &str {
        self.field("webhook-id")
    }

    /// Returns the number of the event.
    pub(crate) fn number(&self) -> usize {
        number(&self.body)
    }

    /// Returns the session of the event.
    pub(crate) fn session(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["session_id"].as_str().unwrap_or_default().to_owned()
    }
}

type Script = Box<dyn FnMut(&Request) -> Answer + Send>;

/// Answers requests by a script, each connection on its own thread.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    /// Never listens; keeps the port bound.
    _port_holder: Socket,
}

struct State {
    script: Mutex<Script>,
    requests: Mutex<Vec<Arc<Request>>>,
    /// The open connections by number.
    sockets: Mutex<BTreeMap<usize, TcpStream>>,
    listener: Mutex<Option<TcpListener>>,
    connections: AtomicUsize,
    accepted: AtomicUsize,
    /// Bytes of endless bodies that the relay has taken.
    endless_bytes: AtomicU64,
    resets_connections: AtomicBool,
    is_released: AtomicBool,
}

impl Receiver {
    /// Starts a receiver that answers by this script.
    pub(crate) fn new(script: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let port_holder = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = port_holder.local_addr().unwrap().as_socket().unwrap();
        let state = State {
            script: Mutex::new(Box::new(script)),
            requests: Mutex::default(),
            sockets: Mutex::default(),
            listener: Mutex::default(),
            connections: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            endless_bytes: AtomicU64::new(0),
            resets_connections: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
        };
        let receiver = Self { address, state: Arc::new(state), _port_holder: port_holder };
        receiver.start();
        receiver
    }

    /// Starts a receiver that answers every request with this status.
    pub(crate) fn answering(status: u16) -> Self {
        Self::new(move |_| Answer::Status(status))
    }

    /// Starts a receiver that accepts every delivery.
    pub(crate) fn accepting() -> Self {
        Self::answering(200)
    }

    /// Replaces the script.
    pub(crate) fn set_script(&self, script: impl FnMut(&Request) -> Answer + Send + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&self) {
        if let Some(listener) = self.state.listener.lock().unwrap().take() {
            // The accepting thread holds a copy of the socket: only a shutdown ends both.
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
        }
        let refused = || TcpStream::connect(self.address).is_err();
        wait::until("the port is closed", refused);
        self.state.cut();
    }

    /// Opens the port again.
    pub(crate) fn start(&self) {
        let socket = bound(self.address);
        socket.listen(1024).unwrap();
        let listener = TcpListener::from(socket);
        *self.state.listener.lock().unwrap() = Some(listener.try_clone().unwrap());
        let state = Arc::clone(&self.state);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let state = Arc::clone(&state);
                thread::spawn(move || state.serve(socket));
            }
        });
    }

    /// Sets whether the receiver resets every connection that it accepts.
    pub(crate) fn reset_connections(&self, is_on: bool) {
        self.state.resets_connections.store(is_on, SeqCst);
    }

    /// Answers all held requests, and later ones at once.
    pub(crate) fn release(&self) {
        self.state.is_released.store(true, SeqCst);
    }

    /// Returns how many connections have been accepted.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Returns how many bytes of endless bodies the relay has taken.
    pub(crate) fn endless_bytes(&self) -> u64 {
        self.state.endless_bytes.load(SeqCst)
    }

    /// Returns every request so far.
    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Returns how many requests have arrived.
    pub(crate) fn count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    /// Waits until `count` requests have arrived, and returns all of them.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Arc<Request>> {
        self.wait_while_growing(count, || self.count(), "requests");
        self.requests()
    }

    /// Returns the accepted requests.
    pub(crate) fn accepted(&self) -> Vec<Arc<Request>> {
        self.requests().into_iter().filter(|request| request.is_accepted).collect()
    }

    /// Waits until `count` requests have been accepted, and returns the accepted ones.
    pub(crate) fn wait_for_accepted(&self, count: usize) -> Vec<Arc<Request>> {
        let accepted = || self.state.accepted.load(SeqCst);
        self.wait_while_growing(count, accepted, "accepted requests");
        self.accepted()
    }

    /// Waits as long as the count grows: a long run may take its time, a standstill may not.
    fn wait_while_growing(&self, count: usize, look: impl Fn() -> usize, what: &str) {
        let mut last = (look(), Instant::now());
        while last.0 < count {
            thread::sleep(POLL_INTERVAL);
            let now = look();
            if now > last.0 {
                last = (now, Instant::now());
            }
            assert!(last.1.elapsed() < TIMEOUT, "timed out: {now} of {count} {what}");
        }
    }

    /// Returns the numbers of the accepted events by session, in the order of arrival.
    pub(crate) fn accepted_by_session(&self) -> BTreeMap<String, Vec<usize>> {
        let mut sessions = BTreeMap::<String, Vec<usize>>::new();
        for request in self.accepted() {
            sessions.entry(request.session()).or_default().push(request.number());
        }
        sessions
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.release();
        if let Some(listener) = self.state.listener.lock().unwrap().take() {
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
        }
        self.state.cut();
    }
}

impl State {
    /// Answers the requests of one connection, one after the other.
    fn serve(&self, socket: TcpStream) {
        let connection = self.connections.fetch_add(1, SeqCst);
        self.sockets.lock().unwrap().insert(connection, socket.try_clone().unwrap());
        let is_stopped = self.listener.lock().unwrap().is_none();
        let is_reset = self.resets_connections.load(SeqCst);
        if is_reset {
            reset_when_closed(&socket);
        }
        if !is_stopped && !is_reset {
            let mut wire = Wire::of(socket);
            while let Some(request) = next_request(&mut wire, connection) {
                if !self.answer(request, &mut wire.socket) {
                    break;
                }
            }
        }
        self.sockets.lock().unwrap().remove(&connection);
    }

    /// Records the request and answers it; returns false if the connection is of no further use.
    fn answer(&self, mut request: Request, socket: &mut TcpStream) -> bool {
        let answer = {
            // One lock for both, so that the list has the order in which the script saw the
            // requests.
            let mut script = self.script.lock().unwrap();
            let answer = script(&request);
            request.is_accepted = answer.accepts();
            let is_accepted = usize::from(request.is_accepted);
            self.requests.lock().unwrap().push(Arc::new(request));
            self.accepted.fetch_add(is_accepted, SeqCst);
            answer
        };
        match answer {
            Answer::Status(status) => socket.write_all(head(status, "", 0).as_bytes()).is_ok(),
            Answer::With(status, fields) => {
                socket.write_all(head(status, &fields, 0).as_bytes()).is_ok()
            }
            Answer::Raw(bytes) => {
                let _ = socket.write_all(&bytes); // the relay may close before the end
                false
            }
            Answer::RawThenReset(bytes) => {
                let _ = socket.write_all(&bytes);
                reset_when_closed(socket);
                false
            }
            Answer::HeadThenHang => {
                socket.write_all(head(200, "", 1000).as_bytes()).is_ok() && wait_for_close(socket)
            }
            Answer::SlowBody => {
                let _ = socket.write_all(head(200, "", usize::MAX >> 1).as_bytes());
                while socket.write_all(b"x").is_ok() {
                    thread::sleep(BYTE_INTERVAL);
                }
                false
            }
            Answer::EndlessBody => {
                let _ = socket.write_all(head(200, "", usize::MAX >> 1).as_bytes());
                while let Ok(taken) = socket.write(&[b'x'; 16 * 1024]) {
                    self.endless_bytes.fetch_add(taken as u64, SeqCst);
                }
                false
            }
            Answer::Hang => wait_for_close(socket),
            Answer::Held | Answer::HeldThen(_) => {
                while !self.is_released.load(SeqCst) {
                    thread::sleep(POLL_INTERVAL);
                }
                let status = if let Answer::HeldThen(status) = answer { status } else { 200 };
                socket.write_all(head(status, "", 0).as_bytes()).is_ok()
            }
            Answer::Reset => {
                reset_when_closed(socket);
                false
            }
        }
    }

    fn cut(&self) {
        for socket in self.sockets.lock().unwrap().values() {
            let _ = socket.shutdown(Shutdown::Both); // the connection may have ended by itself
        }
    }
}

/// Waits for the next request; `None` if the peer has closed.
fn next_request(wire: &mut Wire, connection: usize) -> Option<Request> {
    let head = loop {
        if let Some(head) = wire.take_through(b"\r\n\r\n") {
            break Head::parse(&head);
        }
        // Between requests a connection may idle for as long as the relay keeps it.
        if wire.look(Instant::now() + TIMEOUT) == Look::End {
            return None;
        }
    };
    let (mut body, mut framing) = (Vec::new(), head.framing());
    assert_ne!(framing, Framing::UntilClose, "a request says how long its body is: {head:?}");
    while !wire.decode(&mut framing, &mut body) {
        if wire.look(Instant::now() + TIMEOUT) == Look::End {
            return None; // closed half-way
        }
    }
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Some(Request { at: Instant::now(), unix_seconds, connection, head, body, is_accepted: false })
}

/// Returns the head of a response with a body of this length.
fn head(status: u16, fields: &str, length: usize) -> String {
    let length = if status == 204 || status == 304 {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    format!("HTTP/1.1 {status} As the test says\r\n{fields}{length}\r\n")
}

/// Waits until the peer closes; it sends nothing before it has a response. Returns false: the
/// connection is of no further use.
fn wait_for_close(socket: &TcpStream) -> bool {
    let _ = socket.set_read_timeout(None);
    let _ = socket.peek(&mut [0]);
    false
}

/// Makes the peer receive a reset when the last handle of this socket is dropped.
fn reset_when_closed(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Returns a socket bound to this address, which it may share with a socket that does not listen.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Pause between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Slow, and far quicker than the kernel's own time-outs.
const BYTE_INTERVAL: Duration = Duration::from_millis(20);
