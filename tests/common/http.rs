//! An HTTP/1.1 client written by hand.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::wait::TIMEOUT;

/// A connection, and the received bytes that no caller has taken.
pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
    buffer: Vec<u8>,
    is_at_end: bool,
}

/// Result of one read of a connection.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Look {
    Bytes,
    End,
    Nothing,
}

impl Wire {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect_timeout(&to, TIMEOUT).unwrap())
    }

    /// Connects from this address of the machine.
    pub(crate) fn connect_from(from: [u8; 4], to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect_timeout(&to.into(), TIMEOUT).unwrap();
        Self::of(socket.into())
    }

    pub(crate) fn of(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, buffer: Vec::new(), is_at_end: false }
    }

    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends raw bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads once, with this deadline. A reset is an end.
    pub(crate) fn look(&mut self, deadline: Instant) -> Look {
        if self.is_at_end {
            return Look::End;
        }
        let wait = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut chunk = [0; 64 * 1024];
        match self.socket.read(&mut chunk) {
            Ok(0) => self.is_at_end = true,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                return Look::Bytes;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Look::Nothing;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Look::Nothing,
            Err(_) => self.is_at_end = true,
        }
        Look::End
    }

    /// Takes everything up to and including `mark`, if `mark` has arrived.
    pub(crate) fn take_through(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        let at = self.buffer.windows(mark.len()).position(|window| window == mark)?;
        Some(self.buffer.drain(..at + mark.len()).collect())
    }

    /// Returns the received bytes that no caller has taken.
    pub(crate) fn seen(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes this many bytes, if they have arrived.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        (self.buffer.len() >= count).then(|| self.buffer.drain(..count).collect())
    }

    /// Waits for a whole head.
    pub(crate) fn head(&mut self) -> Head {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(head) = self.take_through(b"\r\n\r\n") {
                return Head::parse(&head);
            }
            let look = self.look(deadline);
            assert_eq!(
                look,
                Look::Bytes,
                "no whole head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    /// Waits for a body of this length.
    pub(crate) fn body(&mut self, length: usize) -> Vec<u8> {
        let deadline = Instant::now() + TIMEOUT;
        let (mut framing, mut body) = (Framing::Length(length), Vec::new());
        while !self.decode(&mut framing, &mut body) {
            assert_eq!(self.look(deadline), Look::Bytes, "no whole body");
        }
        body
    }

    /// Waits until the peer closes the connection, and returns the bytes before the end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + TIMEOUT;
        while self.look(deadline) != Look::End {
            assert!(Instant::now() < deadline, "the peer does not close the connection");
        }
        std::mem::take(&mut self.buffer)
    }

    /// Takes the part of a body that has arrived, and returns true if the body is complete.
    pub(crate) fn decode(&mut self, framing: &mut Framing, into: &mut Vec<u8>) -> bool {
        match framing {
            Framing::UntilClose => {
                into.append(&mut self.buffer);
                self.is_at_end
            }
            Framing::Length(left) => {
                let count = self.buffer.len().min(*left);
                into.extend(self.buffer.drain(..count));
                *left -= count;
                *left == 0
            }
            Framing::Chunked => self.decode_chunks(into),
        }
    }

    fn decode_chunks(&mut self, into: &mut Vec<u8>) -> bool {
        let mut used = 0;
        let mut is_whole = false;
        while let Some(line) = self.buffer[used..].windows(2).position(|window| window == b"\r\n") {
            let size = std::str::from_utf8(&self.buffer[used..used + line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let (begin, end) = (used + line + 2, used + line + 2 + size);
            let Some(b"\r\n") = self.buffer.get(end..end + 2) else {
                break;
            };
            into.extend_from_slice(&self.buffer[begin..end]);
            used = end + 2;
            if size == 0 {
                is_whole = true;
                break;
            }
        }
        self.buffer.drain(..used);
        is_whole
    }

    /// Returns true if the peer has closed the connection.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end
    }
}

/// Marking of the end of a body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    Chunked,
    Length(usize),
    UntilClose,
}

/// The first line and the fields of a request or response; names in lower case.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    pub(crate) fields: Vec<(String, String)>,
    /// The names as they were spelled.
    pub(crate) spelled: Vec<String>,
}

impl Head {
    /// Parses a head.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).unwrap();
        let mut lines = text.trim_end().split("\r\n");
        let first_line = lines.next().unwrap().to_owned();
        let fields: Vec<_> = lines.map(|line| line.split_once(':').unwrap()).collect();
        let spelled = fields.iter().map(|field| field.0.to_owned()).collect();
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Self { first_line, fields: fields.collect(), spelled }
    }

    /// Returns the value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|field| field.0 == name).map(|(_, value)| value.as_str())
    }

    /// Returns the status of a response.
    pub(crate) fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Returns the path and query of a request.
    pub(crate) fn path(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap()
    }

    /// Returns the framing of the body that follows this head.
    pub(crate) fn framing(&self) -> Framing {
        if self.field("transfer-encoding") == Some("chunked") {
            return Framing::Chunked;
        }
        if self.first_line.starts_with("HTTP/1.1 204") {
            return Framing::Length(0);
        }
        self.field("content-length")
            .map_or(Framing::UntilClose, |length| Framing::Length(length.parse().unwrap()))
    }
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that this is a problem (RFC 9457) of this status, and returns it.
    pub(crate) fn problem(self, status: u16) -> Self {
        assert_eq!(self.status(), status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.field("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{member} of {problem}");
        }
        self
    }
}

/// Sends a GET request, and waits for the whole response; `Host` is the address unless `fields` has
/// it.
pub(crate) fn get(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Answer {
    ask(to, "GET", path, fields)
}

/// Sends a request without a body, and waits for the whole response.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    ask_with(to, method, path, fields, "")
}

/// Sends a request, with a body unless that is empty, and waits for the whole response.
pub(crate) fn ask_with(
    to: SocketAddr,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Answer {
    let length = body.len().to_string();
    let mut fields = fields.to_vec();
    if !body.is_empty() {
        fields.push(("Content-Length", &length));
    }
    let mut wire = Wire::connect(to);
    wire.send(request(to, method, path, &fields) + body);
    let head = wire.head();
    let mut body = Vec::new();
    if method == "HEAD" {
        return Answer { head, body };
    }
    let mut framing = head.framing();
    let deadline = Instant::now() + TIMEOUT;
    while !wire.decode(&mut framing, &mut body) {
        assert!(
            wire.look(deadline) != Look::Nothing,
            "{method} {path} has no end: {head:?} {:?}",
            String::from_utf8_lossy(&body)
        );
        assert!(
            !wire.is_at_end() || framing == Framing::UntilClose,
            "{method} {path} breaks off: {head:?}"
        );
    }
    Answer { head, body }
}

/// Returns the text of a request without a body.
pub(crate) fn request(to: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\n");
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request += &format!("Host: {to}\r\n");
    }
    for (name, value) in fields {
        request += &format!("{name}: {value}\r\n");
    }
    request + "\r\n"
}

/// Returns the status of a response that may have no end; closes the connection at once.
pub(crate) fn status(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> u16 {
    let mut wire = Wire::connect(to);
    wire.send(request(to, "GET", path, fields));
    wire.head().status()
}
