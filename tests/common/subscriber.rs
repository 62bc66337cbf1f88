//! A subscriber over SSE and HTTP/1.1 that checks every byte.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    http::{self, Framing, Head, Look, Wire},
    wait::TIMEOUT,
};

/// One stream, read block by block. Every block must have a `data` line: the SDK logs an error for
/// a block without one.
pub(crate) struct Subscriber {
    pub(crate) head: Head,
    /// The `retry:` line, which the relay sends at once.
    pub(crate) retry: String,
    pub(crate) wire: Wire,
    framing: Framing,
    body: Vec<u8>,
    is_whole: bool,
}

impl Subscriber {
    /// Subscribes, and waits for the head and the `retry:` line, which the relay sends at once.
    pub(crate) fn open(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Self {
        let mut wire = Wire::connect(to);
        wire.send(http::request(to, "GET", path, fields));
        Self::on(wire)
    }

    /// Waits for the head and the `retry:` line on a connection on which a stream has been
    /// requested.
    pub(crate) fn on(mut wire: Wire) -> Self {
        let head = wire.head();
        assert_eq!(head.status(), 200, "{head:?}");
        let mut subscriber = Self {
            framing: head.framing(),
            head,
            retry: String::new(),
            wire,
            body: Vec::new(),
            is_whole: false,
        };
        subscriber.retry = subscriber.take_line();
        let wait =
            subscriber.retry.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix('\n'));
        let is_number =
            |wait: &str| !wait.is_empty() && wait.bytes().all(|byte| byte.is_ascii_digit());
        assert!(wait.is_some_and(is_number), "the first line is {:?}", subscriber.retry);
        subscriber
    }

    fn take_line(&mut self) -> String {
        let line = self.take_through(b"\n", Instant::now() + TIMEOUT).expect("a line comes");
        String::from_utf8(line).unwrap()
    }

    /// Returns the bytes up to and including `mark`, or `None` if they do not arrive until
    /// `deadline` or the stream ends before.
    fn take_through(&mut self, mark: &[u8], deadline: Instant) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.body.windows(mark.len()).position(|window| window == mark) {
                return Some(self.body.drain(..at + mark.len()).collect());
            }
            if !self.look(deadline) {
                return None;
            }
        }
    }

    /// Waits for more bytes of the body, and returns false if none arrive until `deadline` or the
    /// stream has ended.
    fn look(&mut self, deadline: Instant) -> bool {
        let before = self.body.len();
        self.is_whole = self.is_whole || self.wire.decode(&mut self.framing, &mut self.body);
        while self.body.len() == before && !self.is_whole {
            match self.wire.look(deadline) {
                Look::Bytes => self.is_whole = self.wire.decode(&mut self.framing, &mut self.body),
                Look::Nothing if Instant::now() < deadline => {}
                Look::End | Look::Nothing => return false,
            }
        }
        self.body.len() > before
    }

    /// Waits for the next block, and returns its exact bytes with the blank line.
    pub(crate) fn block(&mut self) -> Vec<u8> {
        self.block_within(TIMEOUT).unwrap_or_else(|| {
            panic!(
                "no whole block comes; whole: {}, closed: {}, so far: {:?}",
                self.is_whole,
                self.wire.is_at_end(),
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    fn block_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        let block = self.take_through(b"\n\n", Instant::now() + time)?;
        let has_data = block.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"data:"));
        assert!(has_data, "a block without data: {:?}", String::from_utf8_lossy(&block));
        Some(block)
    }

    /// Waits for the next block.
    pub(crate) fn frame(&mut self) -> Frame {
        Frame::parse(&self.block())
    }

    /// Waits for the next block; `None` if the stream has broken off.
    pub(crate) fn try_frame(&mut self) -> Option<Frame> {
        self.take_through(b"\n\n", Instant::now() + TIMEOUT).map(|block| Frame::parse(&block))
    }

    /// Waits for the next block other than a heartbeat.
    pub(crate) fn item(&mut self) -> Frame {
        loop {
            let frame = self.frame();
            if frame.event.as_deref() != Some("heartbeat") {
                return frame;
            }
        }
    }

    /// Waits for the next event, and checks that only heartbeats precede it.
    pub(crate) fn event(&mut self) -> Frame {
        let frame = self.item();
        assert_eq!(frame.event, None, "not a payload: {frame:?}");
        frame
    }

    /// Waits for the next events, and returns their numbers.
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| super::events::number(&self.event().data)).collect()
    }

    /// Waits for the next gap notice, and checks the fields that every notice has.
    pub(crate) fn gap(&mut self) -> Frame {
        let frame = self.item();
        assert_eq!(frame.event.as_deref(), Some("gap"), "not a gap: {frame:?}");
        let notice = frame.json();
        assert_eq!(notice["type"], "gap");
        assert!(notice["product_id"].is_string() && notice["reason"].is_string(), "{notice}");
        assert!(notice.get("after").is_some() && notice.get("before").is_some(), "{notice}");
        assert!(frame.id.is_some(), "a gap carries an id: {frame:?}");
        frame
    }

    /// Checks for `time` that only heartbeats arrive.
    pub(crate) fn expect_nothing(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(block) = self.block_within(left) else { break };
            let frame = Frame::parse(&block);
            assert_eq!(frame.event.as_deref(), Some("heartbeat"), "unexpected: {frame:?}");
        }
        assert!(!self.is_whole && !self.wire.is_at_end(), "the stream has ended");
    }

    /// Waits for the end of the stream, and returns the bytes before it and how the stream ended.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, Ending) {
        let deadline = Instant::now() + TIMEOUT;
        while self.look(deadline) {}
        let is_proper = self.is_whole;
        assert!(is_proper || self.wire.is_at_end(), "the stream does not end");
        let ending = if is_proper { Ending::Proper } else { Ending::BrokenOff };
        (std::mem::take(&mut self.body), ending)
    }

    /// Reads without waiting, and returns true if the stream has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.look(Instant::now());
        self.is_whole || self.wire.is_at_end()
    }
}

/// Ways in which a stream ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// With the last chunk (RFC 9112, section 7.1).
    Proper,
    /// With the connection, without the last chunk.
    BrokenOff,
}

/// A parsed block.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) data: Vec<u8>,
}

impl Frame {
    /// Parses a block (WHATWG HTML, section 9.2.6). Lines end with LF, the only line end that the
    /// relay writes.
    pub(crate) fn parse(block: &[u8]) -> Self {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let mut frame = Self { id: None, event: None, data: Vec::new() };
        let mut data = Vec::new();
        for line in block.strip_suffix(b"\n\n").unwrap().split(|byte| *byte == b'\n') {
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let value = line.get(colon + 1..).unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &line[..colon] {
                b"id" => frame.id = Some(text(value)),
                b"event" => frame.event = Some(text(value)),
                b"data" => data.push(value),
                name => panic!("unexpected field {:?}", String::from_utf8_lossy(name)),
            }
        }
        frame.data = data.join(&b'\n');
        frame
    }

    /// Parses the data as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.data).unwrap()
    }

    /// Returns the reason of a gap notice.
    pub(crate) fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap().to_owned()
    }

    /// Returns the id, which must be present.
    pub(crate) fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_else(|| panic!("no id: {self:?}"))
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, event, data } = self;
        write!(f, "{{id: {id:?}, event: {event:?}, data: {}}}", String::from_utf8_lossy(data))
    }
}
