//! HTTP/2 frames (RFC 9113) written by hand, so that tests can also send invalid ones.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    http::{Look, Wire},
    wait::TIMEOUT,
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

/// The connection preface of a client.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection on which the preface and settings have been sent.
pub(crate) struct Frames {
    wire: Wire,
}

/// A frame sent by the relay.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

/// Ways in which the relay ends a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ConnectionEnd {
    /// With GOAWAY and this error code.
    GoAway(u32),
    /// Without GOAWAY.
    Closed,
}

impl Frames {
    pub(crate) fn connect(to: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut wire = Wire::connect(to);
        wire.send([PREFACE, &self::settings(settings)].concat());
        wire.socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        Self { wire }
    }

    /// Sends bytes, and returns false if the relay does not take all of them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.wire.socket.write_all(bytes).is_ok()
    }

    /// Waits for bytes or the end for at most `time`, and returns true if the relay has closed.
    pub(crate) fn has_ended_within(&mut self, time: Duration) -> bool {
        self.wire.look(Instant::now() + time) == Look::End
    }

    /// Waits for the next frame; `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let deadline = Instant::now() + TIMEOUT;
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

    /// Waits for the end of the connection.
    pub(crate) fn wait_for_end(&mut self) -> ConnectionEnd {
        let mut end = ConnectionEnd::Closed;
        while let Some(Frame { kind, payload, .. }) = self.next() {
            if kind == GOAWAY {
                end = ConnectionEnd::GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        end
    }
}

/// Encodes a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// Encodes a SETTINGS frame.
pub(crate) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let pairs = settings
        .iter()
        .map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &pairs.collect::<Vec<_>>().concat())
}

/// Encodes the head of a request as a header block (RFC 7541) of literals without indexing.
pub(crate) fn head(to: SocketAddr, method: &str, path: &str) -> Vec<u8> {
    let authority = to.to_string();
    let fields =
        [(":method", method), (":scheme", "http"), (":authority", &authority), (":path", path)];
    fields.map(|(name, value)| field(name, value)).concat()
}

/// Encodes one field of a header block; both texts are shorter than 128 bytes.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap() & 0x7F], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}
