//! A receiver of webhooks that does what the test says, byte by byte.
//!
//! It can go away and come back: while it is stopped, a second socket that never listens keeps the
//! port from everybody else, so that the relay is refused and nobody is given the port by chance.

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
    wait::{self, PATIENCE},
};

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this status and no body.
    Status(u16),
    /// With this status and these further lines of the head, each with its end.
    With(u16, String),
    /// With these bytes, whatever they are; then the connection is closed.
    Raw(Vec<u8>),
    /// With these bytes, whatever they are; then the connection is reset.
    RawThenReset(Vec<u8>),
    /// With a head that promises a body, of which nothing comes.
    HeadThenHang,
    /// With a head, then a byte of the body every few milliseconds, for ever.
    SlowBody,
    /// With a head, then as much body as is taken, for ever.
    EndlessBody,
    /// Not at all.
    Hang,
    /// Not before [`Receiver::release`]; then with 200.
    Held,
    /// Not before [`Receiver::release`]; then with this status.
    HeldThen(u16),
    /// By a reset of the connection.
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

/// A request, as it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    /// The same moment, in Unix seconds.
    pub(crate) unix_seconds: u64,
    /// Requests with the same number came on one connection.
    pub(crate) connection: usize,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) is_accepted: bool,
}

impl Request {
    /// A field that must be there.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.head.field(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.head))
    }

    /// The id of the event.
    pub(crate) fn id(&self) -> &str {
        self.field("webhook-id")
    }

    /// The number of the event.
    pub(crate) fn number(&self) -> usize {
        number(&self.body)
    }

    /// The session of the event.
    pub(crate) fn session(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["session_id"].as_str().unwrap_or_default().to_owned()
    }
}

type Script = Box<dyn FnMut(&Request) -> Answer + Send>;

/// Answers requests by a script, each connection on a thread of its own.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    /// Never listens: keeps the port.
    _place: Socket,
}

struct State {
    script: Mutex<Script>,
    requests: Mutex<Vec<Arc<Request>>>,
    /// The open connections, by number.
    sockets: Mutex<BTreeMap<usize, TcpStream>>,
    listener: Mutex<Option<TcpListener>>,
    connections: AtomicUsize,
    accepted: AtomicUsize,
    /// Bytes of endless bodies that have been taken.
    poured: AtomicU64,
    resets_connections: AtomicBool,
    is_released: AtomicBool,
}

impl Receiver {
    /// One that listens, and answers as the script says.
    pub(crate) fn new(script: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let place = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = place.local_addr().unwrap().as_socket().unwrap();
        let state = State {
            script: Mutex::new(Box::new(script)),
            requests: Mutex::default(),
            sockets: Mutex::default(),
            listener: Mutex::default(),
            connections: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            poured: AtomicU64::new(0),
            resets_connections: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
        };
        let receiver = Self { address, state: Arc::new(state), _place: place };
        receiver.start();
        receiver
    }

    /// One that answers everything with this status.
    pub(crate) fn answering(status: u16) -> Self {
        Self::new(move |_| Answer::Status(status))
    }

    /// One that accepts everything.
    pub(crate) fn accepting() -> Self {
        Self::answering(200)
    }

    /// From now on it answers in another way.
    pub(crate) fn now(&self, script: impl FnMut(&Request) -> Answer + Send + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&self) {
        if let Some(listener) = self.state.listener.lock().unwrap().take() {
            // The thread that accepts has a copy of the socket: only this ends it for both.
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

    /// Whether connections are reset as soon as they stand.
    pub(crate) fn reset_connections(&self, is_on: bool) {
        self.state.resets_connections.store(is_on, SeqCst);
    }

    /// Lets what is held be answered, and what comes later at once.
    pub(crate) fn release(&self) {
        self.state.is_released.store(true, SeqCst);
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// How many bytes of endless bodies were taken from it.
    pub(crate) fn poured(&self) -> u64 {
        self.state.poured.load(SeqCst)
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How many requests there have been.
    pub(crate) fn count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    /// Waits until there have been `count` requests, and returns all.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Arc<Request>> {
        self.wait_until_moved(count, || self.count(), "requests");
        self.requests()
    }

    /// The requests that were accepted.
    pub(crate) fn accepted(&self) -> Vec<Arc<Request>> {
        self.requests().into_iter().filter(|request| request.is_accepted).collect()
    }

    /// Waits until `count` requests have been accepted, and returns these.
    pub(crate) fn wait_for_accepted(&self, count: usize) -> Vec<Arc<Request>> {
        let accepted = || self.state.accepted.load(SeqCst);
        self.wait_until_moved(count, accepted, "accepted requests");
        self.accepted()
    }

    /// Waits as long as there is progress: a long run may take its time, a standstill may not.
    fn wait_until_moved(&self, count: usize, look: impl Fn() -> usize, what: &str) {
        let mut last = (look(), Instant::now());
        while last.0 < count {
            thread::sleep(PAUSE);
            let now = look();
            if now > last.0 {
                last = (now, Instant::now());
            }
            assert!(
                last.1.elapsed() < PATIENCE,
                "waited in vain for {count} {what}, there are {now}"
            );
        }
    }

    /// The numbers that were accepted, session by session, in the order they came.
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
    /// Answers one connection's requests, one after the other.
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

    /// Notes the request and answers it; false when the connection is of no more use.
    fn answer(&self, mut request: Request, socket: &mut TcpStream) -> bool {
        let answer = {
            // One lock for both, so that the list has the order in which the script saw them.
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
                let _ = socket.write_all(&bytes); // the relay may have gone before the end
                false
            }
            Answer::RawThenReset(bytes) => {
                let _ = socket.write_all(&bytes);
                reset_when_closed(socket);
                false
            }
            Answer::HeadThenHang => {
                socket.write_all(head(200, "", 1000).as_bytes()).is_ok() && is_left(socket)
            }
            Answer::SlowBody => {
                let _ = socket.write_all(head(200, "", usize::MAX >> 1).as_bytes());
                while socket.write_all(b"x").is_ok() {
                    thread::sleep(BETWEEN_BYTES);
                }
                false
            }
            Answer::EndlessBody => {
                let _ = socket.write_all(head(200, "", usize::MAX >> 1).as_bytes());
                while let Ok(taken) = socket.write(&[b'x'; 16 * 1024]) {
                    self.poured.fetch_add(taken as u64, SeqCst);
                }
                false
            }
            Answer::Hang => is_left(socket),
            Answer::Held | Answer::HeldThen(_) => {
                while !self.is_released.load(SeqCst) {
                    thread::sleep(PAUSE);
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
            let _ = socket.shutdown(Shutdown::Both); // it may have ended by itself
        }
    }
}

/// The next request; none when the peer has gone.
fn next_request(wire: &mut Wire, connection: usize) -> Option<Request> {
    let head = loop {
        if let Some(head) = wire.take_through(b"\r\n\r\n") {
            break Head::parse(&head);
        }
        // Between requests a connection may idle for as long as the relay keeps it.
        if wire.look(Instant::now() + PATIENCE) == Look::End {
            return None;
        }
    };
    let (mut body, mut framing) = (Vec::new(), head.framing());
    assert_ne!(framing, Framing::UntilClose, "a request says how long its body is: {head:?}");
    while !wire.decode(&mut framing, &mut body) {
        if wire.look(Instant::now() + PATIENCE) == Look::End {
            return None; // given up half-way
        }
    }
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Some(Request { at: Instant::now(), unix_seconds, connection, head, body, is_accepted: false })
}

/// The head of an answer with a body of this length.
fn head(status: u16, fields: &str, length: usize) -> String {
    let length = if status == 204 || status == 304 {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    format!("HTTP/1.1 {status} As the test says\r\n{fields}{length}\r\n")
}

/// Waits until the peer has gone; it sends nothing before it has an answer. Always false: nothing
/// more can be done.
fn is_left(socket: &TcpStream) -> bool {
    let _ = socket.set_read_timeout(None);
    let _ = socket.peek(&mut [0]);
    false
}

/// Has the peer get a reset when this socket's last handle is dropped.
fn reset_when_closed(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A socket at this address, which may share it with one that does not listen.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Slow, and far quicker than the kernel gives up.
const BETWEEN_BYTES: Duration = Duration::from_millis(20);
