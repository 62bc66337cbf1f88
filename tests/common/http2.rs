//! A subscriber over HTTP/2 that does what the standard requires of a client, and no more.

use std::net::SocketAddr;

use super::{
    STREAM,
    events::number,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame,
        head,
    },
    subscriber::Frame,
};

/// One stream on its own connection.
pub(crate) struct Http2Subscriber {
    connection: Frames,
    body: Vec<u8>,
}

impl Http2Subscriber {
    /// Subscribes, and waits for the `retry:` line, which the relay sends at once.
    pub(crate) fn open(to: SocketAddr) -> Self {
        let mut connection = Frames::connect(to, &[]);
        connection.send(&frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            STREAM_ID,
            &head(to, "GET", STREAM),
        ));
        let mut subscriber = Self { connection, body: Vec::new() };
        let retry = subscriber.through(b"\n");
        assert!(
            retry.starts_with(b"retry: "),
            "the first line is {:?}",
            String::from_utf8_lossy(&retry)
        );
        subscriber
    }

    /// Waits for the next events, and returns their numbers.
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.number()).collect()
    }

    fn number(&mut self) -> usize {
        loop {
            let block = Frame::parse(&self.through(b"\n\n"));
            match block.event.as_deref() {
                None => return number(&block.data),
                Some("heartbeat") => {}
                Some(_) => panic!("not a payload: {block:?}"),
            }
        }
    }

    /// Waits for the bytes of the body up to and including `mark`.
    fn through(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.body.windows(mark.len()).position(|window| window == mark) {
                return self.body.drain(..at + mark.len()).collect();
            }
            self.take_frame();
        }
    }

    /// Takes one frame, and replies as the standard requires: WINDOW_UPDATE gives back the window
    /// that DATA has used.
    fn take_frame(&mut self) {
        let taken = self.connection.next().expect("the connection is open");
        let answer = match taken.kind {
            DATA if !taken.payload.is_empty() => {
                let increment = u32::try_from(taken.payload.len()).unwrap().to_be_bytes();
                [
                    frame(WINDOW_UPDATE, 0, 0, &increment),
                    frame(WINDOW_UPDATE, 0, STREAM_ID, &increment),
                ]
                .concat()
            }
            SETTINGS | PING if taken.flags & ACK == 0 => {
                let echo = if taken.kind == PING { &taken.payload[..] } else { b"" };
                frame(taken.kind, ACK, 0, echo)
            }
            HEADERS => return assert_eq!(taken.flags & END_STREAM, 0, "the stream is open"),
            _ => return,
        };
        assert!(self.connection.send(&answer), "the relay reads");
        self.body.extend(if taken.kind == DATA { taken.payload } else { Vec::new() });
    }
}

/// The first stream id of a client.
const STREAM_ID: u32 = 1;
