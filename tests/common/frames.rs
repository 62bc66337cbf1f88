//! HTTP/2 as a client writes it by hand, frame by frame (RFC 9113), so that it can also be written
//! wrongly.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    http::{Look, Wire},
    wait::PATIENCE,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Settings.
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// Error codes.
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client sends first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that has begun with the preface and some settings.
pub(crate) struct Frames {
    wire: Wire,
}

/// A frame of the relay.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Farewell {
    /// With a last word and this error code.
    GoAway(u32),
    /// Without one.
    Closed,
}

impl Frames {
    pub(crate) fn connect(to: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut wire = Wire::connect(to);
        wire.send([PREFACE, &self::settings(settings)].concat());
        wire.socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        Self { wire }
    }

    /// Sends what the relay takes; false when it takes no more.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.wire.socket.write_all(bytes).is_ok()
    }

    /// Whether the relay has closed, after a look that takes no longer than this.
    pub(crate) fn has_ended_within(&mut self, time: Duration) -> bool {
        self.wire.look(Instant::now() + time) == Look::End
    }

    /// The next frame; none at the end.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.wire.seen();
            if let Some(head) = seen.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                if let Some(frame) = self.wire.take(9 + length) {
                    return Some(Frame { kind, flags, payload: frame[9..].to_vec() });
                }
            }
            match self.wire.look(deadline) {
                Look::End => return None,
                Look::Bytes => {}
                Look::Nothing => assert!(Instant::now() < deadline, "neither a frame nor an end"),
            }
        }
    }

    /// Waits for the connection's end.
    pub(crate) fn farewell(&mut self) -> Farewell {
        let mut farewell = Farewell::Closed;
        while let Some(Frame { kind, payload, .. }) = self.next() {
            if kind == GOAWAY {
                farewell = Farewell::GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        farewell
    }
}

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// A frame of settings.
pub(crate) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let pairs = settings
        .iter()
        .map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &pairs.collect::<Vec<_>>().concat())
}

/// The head of a request as a header block (RFC 7541): texts as they are, nothing indexed.
pub(crate) fn head(to: SocketAddr, method: &str, path: &str) -> Vec<u8> {
    let authority = to.to_string();
    let fields =
        [(":method", method), (":scheme", "http"), (":authority", &authority), (":path", path)];
    fields.map(|(name, value)| field(name, value)).concat()
}

/// One field of a header block; both texts are short.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap() & 0x7F], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}
