//! A WebSocket client (RFC 6455) written by hand, so that it shares no code with the relay.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    http::{self, Head, Look, Wire},
    wait::TIMEOUT,
};

/// The header fields of a valid handshake, except `Host`.
pub(crate) const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Opcodes.
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// An upgraded connection.
pub(crate) struct Socket {
    pub(crate) wire: Wire,
}

/// A frame sent by the relay, which never fragments messages.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct WsFrame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// Requests a WebSocket, and returns the response head and the connection.
pub(crate) fn ask(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> (Head, Wire) {
    let mut wire = Wire::connect(to);
    let fields: Vec<_> = UPGRADE.iter().chain(fields).copied().collect();
    wire.send(http::request(to, "GET", path, &fields));
    (wire.head(), wire)
}

impl Socket {
    /// Subscribes, and checks the relay's half of the handshake.
    pub(crate) fn open(to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Self {
        let (head, wire) = ask(to, path, fields);
        assert_eq!(head.status(), 101, "{head:?}");
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(
            head.field("connection").map(str::to_ascii_lowercase).as_deref(),
            Some("upgrade")
        );
        assert_eq!(head.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!((head.field("content-length"), head.field("transfer-encoding")), (None, None));
        Self { wire }
    }

    /// Sends one masked frame.
    pub(crate) fn send(&mut self, opcode: u8, is_last: bool, payload: &[u8]) {
        self.wire.send(frame(opcode, is_last, payload));
    }

    /// Sends a text message.
    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(TEXT, true, text.as_bytes());
    }

    /// Sends a filter.
    pub(crate) fn send_filter(&mut self, sessions: &[&str], types: &[&str]) {
        self.send_text(
            &serde_json::json!({ "subscribe": { "session_ids": sessions, "types": types } })
                .to_string(),
        );
    }

    /// Waits for the next frame.
    pub(crate) fn frame(&mut self) -> WsFrame {
        self.frame_within(TIMEOUT).expect("a frame comes")
    }

    /// Returns the next frame, or `None` if no frame arrives in time or the connection has ended.
    pub(crate) fn frame_within(&mut self, time: Duration) -> Option<WsFrame> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            match self.wire.look(deadline) {
                Look::Bytes => {}
                Look::Nothing if Instant::now() < deadline => {}
                Look::End | Look::Nothing => return None,
            }
        }
    }

    fn take_frame(&mut self) -> Option<WsFrame> {
        let seen = self.wire.seen();
        let (first, second) = (*seen.first()?, *seen.get(1)?);
        assert_eq!(first & 0xf0, 0x80, "whole messages, no extension");
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (length, head) = match second {
            126 => (usize::from(u16::from_be_bytes(seen.get(2..4)?.try_into().unwrap())), 4),
            127 => (
                usize::try_from(u64::from_be_bytes(seen.get(2..10)?.try_into().unwrap())).unwrap(),
                10,
            ),
            short => (usize::from(short), 2),
        };
        let whole = self.wire.take(head + length)?;
        Some(WsFrame { opcode: first & 0x0f, payload: whole[head..].to_vec() })
    }

    /// Waits for the next text message.
    pub(crate) fn text(&mut self) -> String {
        let frame = self.frame();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).unwrap()
    }

    /// Waits for the next message, parsed as JSON.
    pub(crate) fn message(&mut self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// Waits for the next message other than a heartbeat.
    pub(crate) fn item(&mut self) -> Value {
        loop {
            let message = self.message();
            if message["event"] != "heartbeat" {
                return message;
            }
        }
    }

    /// Waits for the next event.
    pub(crate) fn event(&mut self) -> Value {
        let message = self.item();
        assert_eq!(message["event"], "message", "{message}");
        message
    }

    /// Waits for the next events, and returns their numbers.
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| number(&self.event())).collect()
    }

    /// Checks for `time` that only heartbeats arrive.
    pub(crate) fn expect_nothing(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(frame) = self.frame_within(left) else { break };
            let text = String::from_utf8(frame.payload).unwrap();
            assert!(text.contains(r#""event":"heartbeat""#), "unexpected: {text}");
        }
        assert!(!self.wire.is_at_end(), "the connection has ended");
    }

    /// Waits for the relay's close frame, replies, waits for the end of the connection, and returns
    /// the code. Skips all frames before.
    pub(crate) fn close_code(&mut self) -> u16 {
        let code = self.close_code_unanswered();
        // The relay has closed the connection already if the client broke the protocol.
        let _ = std::io::Write::write_all(
            &mut self.wire.socket,
            &frame(CLOSE, true, &code.to_be_bytes()),
        );
        self.wire.rest();
        code
    }

    /// Waits for the relay's close frame without a reply, and returns the code.
    pub(crate) fn close_code_unanswered(&mut self) -> u16 {
        loop {
            let frame = self.frame();
            if frame.opcode == CLOSE {
                return u16::from_be_bytes(frame.payload[..2].try_into().unwrap());
            }
        }
    }
}

/// Returns the number of an event made by the tests.
pub(crate) fn number(message: &Value) -> usize {
    usize::try_from(message["data"]["count"].as_u64().unwrap()).unwrap()
}

/// Returns a masked frame, as a client sends it.
pub(crate) fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5a, 0x01, 0xfe, 0x33];
    let mut frame = vec![opcode | if is_last { 0x80 } else { 0 }];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
