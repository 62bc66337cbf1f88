//! Answers that come before the request has been read (RFC 9112, section 9.6; RFC 9113, section
//! 8.1): the client gets them, however much it is still sending.

use std::{
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT,
    frames::{
        DATA, END_HEADERS, END_STREAM, Frame, Frames, HEADERS, RST_STREAM, field, frame, head,
    },
    http::{self, Answer, Wire},
    page::PAGES,
    relay::{KEYS, Relay, Setup},
    wait,
};

fn relay() -> Relay {
    Setup::new()
        .upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "")
        .auth(&format!("admin_key = '{ADMIN_KEY}'\n{KEYS}"))
        .start()
}

/// Sends the whole of a request, and only then looks for the answer, as blocking clients do.
fn sent_whole(to: SocketAddr, head: &str, body: &[u8]) -> Answer {
    sent_on(&mut Wire::connect(to), head, body)
}

/// Sends the whole of a request behind others, of which the last is answered.
fn sent_on(wire: &mut Wire, head: &str, body: &[u8]) -> Answer {
    wire.send(head);
    for piece in body.chunks(PIECE) {
        wire.send(piece);
    }
    answered(wire)
}

/// Reads the last answer of a connection.
fn answered(wire: &mut Wire) -> Answer {
    let head = wire.head();
    let length = head.field("content-length").unwrap().parse().unwrap();
    let body = wire.body(length);
    assert_eq!(wire.rest(), b"", "the answer is the last that comes");
    assert_eq!(head.field("connection"), Some("close"), "{head:?}");
    Answer { head, body }
}

fn post(to: SocketAddr, path: &str, key: &str, framing: (&str, &str)) -> String {
    http::request(to, "POST", path, &[("Authorization", &format!("Bearer {key}")), framing])
}

#[test]
fn eight_mebibytes_with_a_wrong_key_are_401_and_no_reset() {
    let relay = relay();
    let body = vec![b' '; 8 << 20];
    let length = body.len().to_string();
    let head = post(relay.public, PAGES, "wrong", ("Content-Length", &length));
    sent_whole(relay.public, &head, &body).problem(401);
}

#[test]
fn a_large_body_behind_a_small_one_that_was_not_read_is_401_and_no_reset() {
    let relay = relay();
    let (small, large) = (vec![b' '; 60_000], vec![b' '; 8 << 20]);
    let head_of = |body: &[u8]| {
        post(relay.public, PAGES, "wrong", ("Content-Length", &body.len().to_string()))
    };
    // The relay may still be dropping the small body when it answers the large one's request.
    for _ in 0..20 {
        let mut wire = Wire::connect(relay.public);
        wire.send(head_of(&small));
        wire.send(&small);
        let head = wire.head();
        assert_eq!((head.status(), head.field("connection")), (401, None), "{head:?}");
        wire.body(head.field("content-length").unwrap().parse().unwrap());
        sent_on(&mut wire, &head_of(&large), &large).problem(401);
    }
}

#[test]
fn every_answer_before_the_end_of_a_body_in_pieces_arrives_on_every_listener() {
    let relay = relay();
    let piece = [format!("{PIECE:x}\r\n").as_bytes(), &[b' '; PIECE], b"\r\n"].concat();
    // Over what is published at most: the last of them is 413 in the midst of it.
    let body = piece.repeat(1_200_000 / PIECE);
    let chunked = ("Transfer-Encoding", "chunked");
    for (to, path, key, status) in [
        (relay.public, PAGES, "wrong", 401),
        (relay.public, PAGES, "key-of-agent-a", 403),
        (relay.public, "/events/unknown", "key-of-all", 404),
        (relay.public, "/nowhere", "key-of-all", 404),
        (relay.public, "/stream/prod_abc", "key-of-all", 405),
        (relay.public, PAGES, "key-of-all", 413),
        (relay.admin, "/products", "wrong", 401),
        (relay.admin, "/products", ADMIN_KEY, 413),
        (relay.admin, "/healthz", "none", 405),
    ] {
        sent_whole(to, &post(to, path, key, chunked), &body).problem(status);
    }
}

#[test]
fn a_head_that_is_refused_arrives_although_the_client_goes_on_sending_at_its_own_pace() {
    let relay = relay();
    let body = vec![b' '; 900_000];
    let length = body.len().to_string();
    let long_target = format!("{PAGES}?{}", "x".repeat(66_000));
    let many_fields = (0..110).map(|number| format!("X-{number}: x\r\n")).collect::<String>();
    let many_fields = post(relay.public, PAGES, "wrong", ("Content-Length", &length))
        .replace("\r\n\r\n", &format!("\r\n{many_fields}\r\n"));
    for (head, status) in [
        (post(relay.public, &long_target, "wrong", ("Content-Length", &length)), 414),
        (many_fields, 431),
        (post(relay.public, PAGES, "wrong", ("Transfer-Encoding", "gzip")), 400),
    ] {
        let mut wire = Wire::connect(relay.public);
        wire.send(head);
        for piece in body.chunks(15_000) {
            // Slower than the relay reads, so that no bytes wait when it closes.
            thread::sleep(Duration::from_millis(2));
            wire.send(piece);
        }
        answered(&mut wire).problem(status);
    }
}

#[test]
fn a_small_rest_leaves_the_connection_open_and_so_does_a_body_that_was_read() {
    let relay = relay();
    let mut wire = Wire::connect(relay.public);
    for (key, status) in [("wrong", 401), ("wrong", 401), ("key-of-all", 202), ("wrong", 401)] {
        let event = r#"{"type":"x"}"#;
        let length = event.len().to_string();
        // Two segments: the answer is ready before the body has come.
        wire.send(post(relay.public, PAGES, key, ("Content-Length", &length)));
        wire.send(event);
        let head = wire.head();
        assert_eq!((head.status(), head.field("connection")), (status, None), "{head:?}");
        wire.body(head.field("content-length").unwrap().parse().unwrap());
    }
}

#[test]
fn a_client_that_waits_for_100_continue_is_refused_without_it() {
    let relay = relay();
    let mut wire = Wire::connect(relay.public);
    let fields =
        [("Authorization", "Bearer wrong"), ("Content-Length", "10"), ("Expect", "100-continue")];
    wire.send(http::request(relay.public, "POST", PAGES, &fields));
    let head = wire.head();
    assert_eq!((head.status(), head.field("connection")), (401, Some("close")));
}

#[test]
fn a_client_that_neither_sends_nor_closes_is_not_waited_for_much_longer() {
    let relay = relay();
    let before = relay.process.open_sockets();
    let mut wire = Wire::connect(relay.public);
    wire.send(post(relay.public, PAGES, "wrong", ("Content-Length", "10000000")));
    assert_eq!(wire.head().status(), 401);
    let began = Instant::now();
    assert!(relay.process.open_sockets() > before, "the relay lingers");
    wait::until("the relay closes the socket", || relay.process.open_sockets() <= before);
    wait::assert_within(Duration::from_secs(3), began);
}

#[test]
fn a_client_that_sends_without_end_is_cut_off_and_holds_up_no_shutdown() {
    let relay = relay();
    let mut wires: Vec<_> = (0..3).map(|_| Wire::connect(relay.public)).collect();
    for wire in &mut wires {
        wire.send(post(relay.public, PAGES, "wrong", ("Content-Length", "1000000000000")));
        assert_eq!(wire.head().status(), 401);
    }
    let mut endless = wires.pop().unwrap();
    let mebibyte = vec![b' '; 1 << 20];
    let taken = (0..200).take_while(|_| endless.socket.write_all(&mebibyte).is_ok()).count();
    assert!((64..128).contains(&taken), "{taken} MiB");
    // Clients that are silent and have not closed their connection.
    let began = Instant::now();
    relay.stop();
    wait::assert_within(Duration::from_secs(2), began);
    drop(wires);
}

#[test]
fn over_http2_the_stream_is_reset_without_error_behind_its_answer_and_others_go_on() {
    let relay = relay();
    let mut connection = Frames::connect(relay.public, &[]);
    let post = [head(relay.public, "POST", PAGES), field("authorization", "Bearer wrong")].concat();
    for stream in [1, 3] {
        assert!(connection.send(&frame(HEADERS, END_HEADERS, stream, &post)));
        assert!(connection.send(&frame(DATA, 0, stream, &[b' '; 16_000])));
        let mut is_answered = false;
        loop {
            let Frame { kind, flags, payload } = connection.next().expect("a frame comes");
            match kind {
                HEADERS => is_answered = true,
                DATA => assert!(is_answered || flags & END_STREAM == 0),
                RST_STREAM => {
                    assert_eq!(payload, [0, 0, 0, 0], "NO_ERROR");
                    assert!(is_answered, "behind the answer");
                    break;
                }
                _ => {}
            }
        }
    }
}

const ADMIN_KEY: &str = "the-admin-key-of-this-test";

/// Bytes that a client writes at one time.
const PIECE: usize = 10_000;
