//! A connector scripted by the test, byte by byte.

use std::{
    io::{ErrorKind, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use socket2::SockRef;

use super::{
    PRODUCT,
    http::{Head, Wire},
    wait,
};

/// A connector that accepts connections one by one, when the test asks for it.
///
/// Checks that the relay never has more than one connection per product: accepting a second one for
/// the same path while the first is still open is a failure.
pub(crate) struct Connector {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
    /// Every connection so far: its path, and its socket while the test holds it.
    links: Mutex<Vec<(String, Weak<TcpStream>)>>,
}

impl Connector {
    /// Listens on a free port.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address, links: Mutex::default() }
    }

    /// Returns the URL of a product's stream.
    pub(crate) fn url(&self, product: &str) -> String {
        format!("http://{}/stream/{product}", self.address)
    }

    /// Waits for the next connection and its request.
    pub(crate) fn accept(&self) -> Link {
        wait::value("the relay connects", || self.try_accept())
    }

    /// Waits for the next connection, and responds with a stream.
    pub(crate) fn stream(&self) -> Link {
        let mut link = self.accept();
        link.send(STREAM_HEAD);
        link
    }

    /// Waits for the next connection, and responds with a stream as a relay does; the request says
    /// where the stream continues.
    pub(crate) fn stream_as_relay(&self) -> Link {
        let mut link = self.accept();
        link.send(RELAY_HEAD);
        link
    }

    /// Accepts the first two connections of a leaf: the first response tells it that its upstream
    /// is a relay, and the leaf connects again.
    pub(crate) fn accept_leaf(&self) -> Link {
        let first = self.stream_as_relay();
        assert_eq!(
            (first.request.field("last-event-id"), first.request.field("autoplay-relay")),
            (None, None)
        );
        let link = self.stream_as_relay();
        assert_eq!(link.request.field("autoplay-relay"), Some("follow"));
        link
    }

    /// Checks for `time` that the relay does not connect.
    pub(crate) fn expect_no_connection(&self, time: Duration) {
        wait::holds("the relay does not connect", time, || self.try_accept().is_none());
    }

    /// Returns the next connection with its request, if the relay has connected.
    pub(crate) fn try_accept(&self) -> Option<Link> {
        let (socket, _) = match self.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        socket.set_nonblocking(false).unwrap();
        let socket_of_link = Arc::new(socket.try_clone().unwrap());
        let still_open = self.open_paths();
        let mut wire = Wire::of(socket);
        let request = wire.head();
        drop(wire);
        let path = request.path().to_owned();
        assert!(!still_open.contains(&path), "two connections at once for {path}");
        self.links.lock().unwrap().push((path, Arc::downgrade(&socket_of_link)));
        Some(Link { request, socket: socket_of_link })
    }

    /// Returns the paths of the connections that the relay has not closed.
    pub(crate) fn open_paths(&self) -> Vec<String> {
        let links = self.links.lock().unwrap();
        let open = links
            .iter()
            .filter(|(_, socket)| socket.upgrade().is_some_and(|socket| is_open(&socket)));
        open.map(|(path, _)| path.clone()).collect()
    }
}

/// Returns true if the relay has not closed its side. The relay sends nothing after its request, so
/// anything to read is the end of the stream.
fn is_open(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// One connection of the relay. Dropping it closes the connection.
pub(crate) struct Link {
    pub(crate) request: Head,
    socket: Arc<TcpStream>,
}

impl Link {
    /// Sends raw bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        (&*self.socket).write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a payload in a frame as the connector writes it.
    pub(crate) fn event(&mut self, payload: impl AsRef<[u8]>) {
        self.send([b"data: ", payload.as_ref(), b"\n\n"].concat());
    }

    /// Sends a payload, and returns false if the relay has closed the connection.
    pub(crate) fn try_event(&mut self, payload: impl AsRef<[u8]>) -> bool {
        (&*self.socket).write_all(&[b"data: ", payload.as_ref(), b"\n\n"].concat()).is_ok()
    }

    /// Sends a payload under an id, as a relay does.
    pub(crate) fn event_as(&mut self, id: &str, payload: impl AsRef<[u8]>) {
        self.send([b"id: ", id.as_bytes(), b"\ndata: ", payload.as_ref(), b"\n\n"].concat());
    }

    /// Sends a gap notice under an id, as a relay does.
    pub(crate) fn gap_as(&mut self, id: &str, reason: &str, after: &str) {
        let notice = format!(
            r#"{{"type":"gap","product_id":"{PRODUCT}","reason":"{reason}","after":"{after}","before":null}}"#
        );
        self.send(format!("id: {id}\nevent: gap\ndata: {notice}\n\n"));
    }

    /// Sends a heartbeat.
    pub(crate) fn heartbeat(&mut self) {
        self.send("event: heartbeat\ndata:\n\n");
    }

    /// Responds with a status and no body, and closes the connection.
    pub(crate) fn refuse(mut self, status: &str, fields: &str) {
        self.send(format!(
            "HTTP/1.1 {status}\r\n{fields}Content-Length: 0\r\nConnection: close\r\n\r\n"
        ));
    }

    /// Ends the stream by closing the connection.
    pub(crate) fn end(self) {}

    /// Shuts down the sending side only.
    pub(crate) fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Returns true while the relay keeps its side open.
    pub(crate) fn is_open(&self) -> bool {
        is_open(&self.socket)
    }

    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// Response head of a connector; the stream ends with the connection.
pub(crate) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n";

/// Response head of a relay.
const RELAY_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nAutoplay-Relay: resume\r\nConnection: close\r\n\r\n";
