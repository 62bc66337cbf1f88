//! A subscriber that sees every byte.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    http::{self, Framing, Head, Look, Wire},
    wait::PATIENCE,
};

/// One stream, read block by block. Every block must have a `data` line: the SDK logs an error for
/// each that has none.
pub(crate) struct Subscriber {
    pub(crate) head: Head,
    /// The `retry:` line that came at once.
    pub(crate) retry: String,
    pub(crate) wire: Wire,
    framing: Framing,
    body: Vec<u8>,
    is_whole: bool,
}

impl Subscriber {
    /// Subscribes, and waits for the head and the `retry:` line, which come at once.
    pub(crate) fn open(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Self {
        let mut wire = Wire::connect(to);
        wire.send(http::request(to, "GET", path, fields));
        Self::on(wire)
    }

    /// Waits for the same on a connection on which a stream has been asked for.
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
        let line = self.take_through(b"\n", Instant::now() + PATIENCE).expect("a line comes");
        String::from_utf8(line).unwrap()
    }

    /// The bytes up to and including `mark`; none when they do not come until `deadline`, or the
    /// stream ends before.
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

    /// Waits for more; false when nothing came until `deadline`, or the stream is at its end.
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

    /// The next block with its blank line, exactly as it came.
    pub(crate) fn block(&mut self) -> Vec<u8> {
        self.block_within(PATIENCE).unwrap_or_else(|| {
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

    /// The next block.
    pub(crate) fn frame(&mut self) -> Frame {
        Frame::parse(&self.block())
    }

    /// The next block; none when the stream has broken off.
    pub(crate) fn try_frame(&mut self) -> Option<Frame> {
        self.take_through(b"\n\n", Instant::now() + PATIENCE).map(|block| Frame::parse(&block))
    }

    /// The next block that is no heartbeat.
    pub(crate) fn item(&mut self) -> Frame {
        loop {
            let frame = self.frame();
            if frame.event.as_deref() != Some("heartbeat") {
                return frame;
            }
        }
    }

    /// The next payload; anything else but a heartbeat is none.
    pub(crate) fn event(&mut self) -> Frame {
        let frame = self.item();
        assert_eq!(frame.event, None, "not a payload: {frame:?}");
        frame
    }

    /// The numbers of the next payloads.
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| super::events::number(&self.event().data)).collect()
    }

    /// The next gap notice, checked for what every notice has.
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

    /// Checks that nothing but heartbeats comes for a while.
    pub(crate) fn expect_nothing(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(block) = self.block_within(left) else { break };
            let frame = Frame::parse(&block);
            assert_eq!(frame.event.as_deref(), Some("heartbeat"), "unexpected: {frame:?}");
        }
        assert!(!self.is_whole && !self.wire.is_at_end(), "the stream has ended");
    }

    /// Waits for the stream's end, and returns what came before it and whether the end was a proper
    /// one.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, Ending) {
        let deadline = Instant::now() + PATIENCE;
        while self.look(deadline) {}
        let is_proper = self.is_whole;
        assert!(is_proper || self.wire.is_at_end(), "the stream does not end");
        let ending = if is_proper { Ending::Proper } else { Ending::BrokenOff };
        (std::mem::take(&mut self.body), ending)
    }

    /// Whether the stream has ended, as far as can be seen now.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.look(Instant::now());
        self.is_whole || self.wire.is_at_end()
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// With the last chunk that HTTP asks for.
    Proper,
    /// With the connection.
    BrokenOff,
}

/// A block, taken apart.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) data: Vec<u8>,
}

impl Frame {
    /// Reads a block as the standard has it; lines end with LF, for the relay writes no other.
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

    /// The data as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.data).unwrap()
    }

    /// The reason of a gap notice.
    pub(crate) fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap().to_owned()
    }

    /// The id it must have.
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
