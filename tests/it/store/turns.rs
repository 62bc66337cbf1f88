//! Turns at the store: what slow readers of one key leave to the others.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::common::{
    STREAM,
    connector::Connector,
    events::event_of,
    http,
    page::{PAGES, Page},
    relay::{KEYS, Relay},
    store::DataDir,
    wait,
};

#[test]
fn a_page_is_answered_while_slow_readers_of_another_key_are_far_from_their_end() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let setup = data.setup(&connector, "").server("max_concurrent_replays = 2").auth(KEYS);
    let relay = setup.start();
    let mut link = connector.stream();
    (0..EVENTS).for_each(|n| link.event(event_of(&"x".repeat(EVENT_BYTES), n)));
    relay.wait_until_persisted(EVENTS);
    let (began, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let received: Vec<usize> = thread::scope(|scope| {
        let read = || read_slowly(&relay, &began, &is_over);
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        wait::until("all replays have begun", || began.load(Ordering::SeqCst) == READERS);
        let path = format!("{PAGES}?last_event_id=0&limit=10");
        let answer = relay.get(&path, &[("Authorization", "Bearer key-of-all")]);
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(answer.status(), 200);
        assert!(Page::read(&answer).numbers().into_iter().eq(0..10));
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(received.iter().all(|bytes| *bytes < EVENTS * EVENT_BYTES), "{received:?}");
}

/// Replays everything, a little at a time and without a pause that would count as a stall, and
/// returns the bytes received.
fn read_slowly(relay: &Relay, began: &AtomicUsize, is_over: &AtomicBool) -> usize {
    let mut socket = TcpStream::connect(relay.public).unwrap();
    let path = format!("{STREAM}?last_event_id=0");
    let key = ("Authorization", "Bearer key-of-agent-a");
    socket.write_all(http::request(relay.public, "GET", &path, &[key]).as_bytes()).unwrap();
    let (mut buffer, mut received) = ([0; 16 * 1024], 0);
    while !is_over.load(Ordering::SeqCst) {
        let bytes = socket.read(&mut buffer).unwrap();
        assert!(bytes > 0, "the stream goes on");
        if received == 0 {
            began.fetch_add(1, Ordering::SeqCst);
        }
        received += bytes;
        thread::sleep(Duration::from_millis(40)); // the client's own pace
    }
    received
}

/// More than two sockets' buffers hold.
const EVENTS: usize = 2500;

const EVENT_BYTES: usize = 8000;

/// More than may read the store at one time.
const READERS: usize = 6;
