//! A WebSocket client as RFC 6455 has it, written by hand, so that it shares no line with the
//! relay's.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    http::{self, Head, Look, Wire},
    wait::PATIENCE,
};

/// The fields of a proper handshake, but `Host`.
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

/// A connection that has been upgraded.
pub(crate) struct Socket {
    pub(crate) wire: Wire,
}

/// A frame of the relay, which splits nothing.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct WsFrame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// Asks for a WebSocket, and returns the answer's head with the connection.
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

    /// Sends one frame, masked.
    pub(crate) fn send(&mut self, opcode: u8, is_last: bool, payload: &[u8]) {
        self.wire.send(frame(opcode, is_last, payload));
    }

    /// Sends a text.
    pub(crate) fn say(&mut self, text: &str) {
        self.send(TEXT, true, text.as_bytes());
    }

    /// Asks for a filter.
    pub(crate) fn ask_for(&mut self, sessions: &[&str], types: &[&str]) {
        self.say(
            &serde_json::json!({ "subscribe": { "session_ids": sessions, "types": types } })
                .to_string(),
        );
    }

    /// Asks for a filter, and passes over what comes before the answer.
    pub(crate) fn change(&mut self, sessions: &[&str], types: &[&str]) -> Vec<Value> {
        self.ask_for(sessions, types);
        let mut before = Vec::new();
        loop {
            let message = self.message();
            if message["event"] == "subscribed" {
                return before;
            }
            assert_ne!(message["event"], "error", "{message}");
            before.push(message);
        }
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> WsFrame {
        self.frame_within(PATIENCE).expect("a frame comes")
    }

    /// The next frame; none when none comes in time, or the connection is at its end.
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

    /// The next text.
    pub(crate) fn text(&mut self) -> String {
        let frame = self.frame();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).unwrap()
    }

    /// The next message.
    pub(crate) fn message(&mut self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// The next message that is no heartbeat.
    pub(crate) fn item(&mut self) -> Value {
        loop {
            let message = self.message();
            if message["event"] != "heartbeat" {
                return message;
            }
        }
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Value {
        let message = self.item();
        assert_eq!(message["event"], "message", "{message}");
        message
    }

    /// The numbers of the next events.
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| number(&self.event())).collect()
    }

    /// Checks that nothing but heartbeats comes for a while.
    pub(crate) fn expect_nothing(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let Some(frame) = self.frame_within(left) else { break };
            let text = String::from_utf8(frame.payload).unwrap();
            assert!(text.contains(r#""event":"heartbeat""#), "unexpected: {text}");
        }
        assert!(!self.wire.is_at_end(), "the connection has ended");
    }

    /// The code with which the relay closes; what comes before is passed over. Answers, and waits
    /// for the connection's end.
    pub(crate) fn close_code(&mut self) -> u16 {
        let code = self.close_code_unanswered();
        // It may be gone already, if it was the client that had broken the protocol.
        let _ = std::io::Write::write_all(
            &mut self.wire.socket,
            &frame(CLOSE, true, &code.to_be_bytes()),
        );
        self.wire.rest();
        code
    }

    /// The same, but the client does not answer.
    pub(crate) fn close_code_unanswered(&mut self) -> u16 {
        loop {
            let frame = self.frame();
            if frame.opcode == CLOSE {
                return u16::from_be_bytes(frame.payload[..2].try_into().unwrap());
            }
        }
    }
}

/// The number of an event made by the tests.
pub(crate) fn number(message: &Value) -> usize {
    usize::try_from(message["data"]["count"].as_u64().unwrap()).unwrap()
}

/// A client's frame.
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
