//! Hostile HTTP/2 clients: floods, decompression bombs and windows, frame by frame.

use std::{net::SocketAddr, thread, time::Duration};

use crate::common::{
    STREAM,
    canaries::Canaries,
    connector::Connector,
    frames::{
        CONTINUATION, ConnectionEnd, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM,
        FLOW_CONTROL_ERROR, Frames, HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW_SIZE, PING,
        PROTOCOL_ERROR, RST_STREAM, WINDOW_UPDATE, field, frame, head, settings,
    },
    page::PAGES,
    relay::{Relay, Setup},
    wait,
};

#[test]
fn a_client_that_resets_every_stream_is_disconnected() {
    let scene = Scene::new("");
    let cancel = |stream| [scene.get(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
    let flood: Vec<u8> = (0..5000).flat_map(|n| cancel(2 * n + 1)).collect();
    scene.run_attack(|to| {
        assert_eq!(flood_with(to, &flood), ConnectionEnd::GoAway(ENHANCE_YOUR_CALM));
    });
}

#[test]
fn a_head_of_endless_continuation_frames_is_refused() {
    let scene = Scene::new("");
    scene.run_attack(|to| {
        for (piece, count) in
            [(Vec::new(), 200), (field("x-a", "b"), 200), (field("x-a", "b"), 20_000)]
        {
            let begin = frame(HEADERS, END_STREAM, 1, &head(to, "GET", STREAM));
            let flood = [begin, frame(CONTINUATION, 0, 1, &piece).repeat(count)].concat();
            assert_eq!(
                flood_with(to, &flood),
                ConnectionEnd::GoAway(ENHANCE_YOUR_CALM),
                "{count} of {piece:?}"
            );
        }
    });
}

#[test]
fn a_head_that_grows_when_decompressed_is_refused_without_memory() {
    const BOMBS: usize = 50;
    let scene = Scene::new("");
    // A field of 3 KiB goes into the dynamic table (RFC 7541, section 6.2.1), and each further byte
    // names it: 14 MiB in all.
    let name = [&[0x40, 3][..], b"x-a", &[0x7F, 0x81, 0x17], &[b'b'; 3072]].concat();
    scene.run_attack(|to| {
        for _ in 0..BOMBS {
            let bytes = [head(to, "GET", STREAM), name.clone(), vec![0xBE; 4800]].concat();
            let bomb = frame(HEADERS, END_STREAM | END_HEADERS, 1, &bytes);
            assert_eq!(flood_with(to, &bomb), ConnectionEnd::GoAway(ENHANCE_YOUR_CALM));
        }
    });
}

#[test]
fn floods_that_require_replies_are_closed_when_the_replies_are_not_read() {
    let scene = Scene::new("head_timeout = '700ms'\nwrite_timeout = '700ms'");
    let ping = frame(PING, 0, 0, b"whatever").repeat(200_000);
    let same_settings = settings(&[(INITIAL_WINDOW_SIZE, 1 << 20)]).repeat(200_000);
    scene.run_attack(|to| {
        for flood in [&ping, &same_settings] {
            let mut client = Frames::connect(to, &[]);
            client.send(flood);
            wait::until("the connection is closed", || {
                client.has_ended_within(Duration::from_millis(50))
            });
        }
    });
}

#[test]
fn a_flood_of_replies_that_answer_nothing_fills_no_log() {
    const ACK: u8 = 1;
    let mut scene = Scene::new("");
    let flood = frame(PING, ACK, 0, b"whatever").repeat(200_000);
    scene.run_attack(|to| {
        for _ in 0..2 {
            let mut client = Frames::connect(to, &[]);
            client.send(&flood);
            client.send(&frame(PING, 0, 0, b"the last"));
            wait::until("the relay has read the flood", || {
                client.next().is_none_or(|frame| frame.payload == b"the last")
            });
        }
    });
    scene.relay.process.signal("TERM");
    let log = scene.relay.process.stderr.whole();
    let lines = log.lines().filter(|line| line.contains("recv PING ack")).count();
    assert_eq!(lines, 1, "one line a minute");
    assert_eq!(scene.relay.process.exit_code(), Some(0));
}

#[test]
fn a_body_of_empty_frames_is_refused() {
    let scene = Scene::new("");
    scene.run_attack(|to| {
        let begin = frame(HEADERS, END_HEADERS, 1, &head(to, "POST", PAGES));
        let flood = [begin, frame(DATA, 0, 1, b"").repeat(200_000)].concat();
        assert_eq!(flood_with(to, &flood), ConnectionEnd::GoAway(ENHANCE_YOUR_CALM));
    });
}

#[test]
fn an_invalid_window_ends_the_connection() {
    let scene = Scene::new("");
    let max = 0x7FFF_FFFF_u32;
    let cases = [
        (frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, &max.to_be_bytes()), FLOW_CONTROL_ERROR),
        (settings(&[(INITIAL_WINDOW_SIZE, max + 1)]), PROTOCOL_ERROR),
    ];
    scene.run_attack(|to| {
        for (wrong, code) in cases {
            assert_eq!(
                flood_with(to, &[scene.get(1), wrong].concat()),
                ConnectionEnd::GoAway(code)
            );
        }
    });
}

#[test]
fn a_stream_whose_window_never_opens_is_ended() {
    let scene = Scene::new("write_timeout = '1s'\nhead_timeout = '1s'");
    scene.run_attack(|to| {
        let mut client = Frames::connect(to, &[(INITIAL_WINDOW_SIZE, 0)]);
        (0..100).for_each(|n| assert!(client.send(&scene.get(2 * n + 1))));
        // The settings change for all streams, again and again, but never open a window.
        let flood: Vec<u8> = (0..500).flat_map(|n| settings(&[(HEADER_TABLE_SIZE, n)])).collect();
        client.send(&flood);
        let labels = [("transport", "sse"), ("reason", "stalled")];
        scene.relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 100.0);
        drop(client);
    });
}

#[test]
fn a_head_that_never_ends_is_closed_after_the_head_timeout() {
    let scene = Scene::new("head_timeout = '700ms'");
    scene.run_attack(|to| {
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(move || {
                    let mut client = Frames::connect(to, &[]);
                    client.send(&frame(HEADERS, END_STREAM, 1, &head(to, "GET", STREAM)));
                    let mut more = frame(CONTINUATION, 0, 1, &[0; 16_000]).into_iter();
                    wait::until("the connection is closed", || {
                        let byte = more.next().unwrap();
                        !client.send(&[byte]) || client.has_ended_within(Duration::from_millis(20))
                    });
                });
            }
        });
    });
}

/// A relay whose subscribers must be unaffected.
struct Scene {
    relay: Relay,
    connector: Connector,
}

impl Scene {
    fn new(server: &str) -> Self {
        let connector = Connector::new();
        let auth = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";
        let relay = Setup::behind(&connector).auth(auth).server(server).start();
        Self { relay, connector }
    }

    /// Returns the frame that requests an event stream on this HTTP/2 stream.
    fn get(&self, stream: u32) -> Vec<u8> {
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(self.relay.public, "GET", STREAM))
    }

    /// Runs `attack` while subscribers receive events.
    fn run_attack(&self, attack: impl FnOnce(SocketAddr) + Send) {
        let mut canaries = Canaries::of(&self.relay, &self.connector);
        canaries.during(&self.relay, || attack(self.relay.public));
    }
}

/// Sends as much of the flood as the relay takes, and waits for the end of the connection.
fn flood_with(to: SocketAddr, flood: &[u8]) -> ConnectionEnd {
    let mut client = Frames::connect(to, &[]);
    client.send(flood);
    client.wait_for_end()
}
