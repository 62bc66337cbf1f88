//! Five thousand subscribers are drained, and resume.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::common::{
    STREAM,
    connector::{Connector, Link},
    events::{event, number},
    http, process,
    relay::Setup,
    subscriber::Frame,
};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

#[test]
fn a_drain_spreads_thousands_of_subscribers_over_its_window_and_loses_no_event() {
    let files = process::raise_descriptor_limit();
    assert!(
        files > 2 * SUBSCRIBERS as u64,
        "a descriptor for each end of each subscriber: {files}"
    );
    let directory = tempfile::tempdir().unwrap();
    let data = format!("data_dir = '{}'", directory.path().display());
    let connector = Connector::new();
    let setup =
        Setup::behind(&connector).log(&data).server(&format!("drain_window = '{WINDOW_SECONDS}s'"));
    let mut relay = setup.start();
    let mut link = connector.stream();
    let mut clients = Clients::connect(relay.public);
    relay.wait_for_subscribers(SUBSCRIBERS as f64);
    let mut sent = 0;
    clients.read_for(Duration::from_secs(1), || send_next(&mut link, &mut sent));
    relay.process.signal("TERM");
    let draining = Instant::now();
    while clients.clients.iter().any(|client| client.ended.is_none()) {
        assert!(draining.elapsed() < Duration::from_secs(60), "all subscribers are disconnected");
        // The upstream may have closed: that is the last step of the relay's shutdown.
        clients.read_for(Duration::from_millis(100), || send_next(&mut link, &mut sent));
    }
    assert_eq!(relay.process.exit_code(), Some(0));
    clients.check_even_drain(draining);

    let last_ids: Vec<(usize, String)> = clients.clients.iter().map(Client::check).collect();
    let relay = setup.start();
    let mut link = connector.stream();
    relay.wait_for_upstream("connected");
    link.event(event(sent));
    // At least the events that the last drained client received are kept.
    let kept = last_ids.iter().map(|(next, _)| *next).max().unwrap();
    for (next, id) in last_ids.iter().step_by(25) {
        let mut subscriber = relay.resume(id);
        let mut next = *next;
        let gap = loop {
            let frame = subscriber.item();
            if frame.event.as_deref() == Some("gap") {
                break frame;
            }
            assert_eq!(number(&frame.data), next);
            next += 1;
        };
        assert!(next >= kept, "no received event is missing");
        assert_eq!(gap.json()["reason"], "upstream_reconnect", "the connector's own outage");
        assert_eq!(number(&subscriber.event().data), sent);
    }
}

/// Sends the next event while the relay keeps the connection open.
fn send_next(link: &mut Link, sent: &mut usize) {
    if link.is_open() {
        link.event(event(*sent));
        *sent += 1;
    }
}

/// Thousands of subscribers on one thread.
struct Clients {
    poll: Poll,
    clients: Vec<Client>,
}

struct Client {
    socket: TcpStream,
    received: Vec<u8>,
    ended: Option<Instant>,
}

impl Clients {
    fn connect(to: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let clients = (0..SUBSCRIBERS).map(|number| {
            let mut socket = std::net::TcpStream::connect(to).unwrap();
            socket.write_all(http::request(to, "GET", STREAM, &[]).as_bytes()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut socket = TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(number), Interest::READABLE).unwrap();
            Client { socket, received: Vec::new(), ended: None }
        });
        let clients = clients.collect();
        Self { poll, clients }
    }

    /// Reads all sockets for `time`, and calls `each_time` every hundred milliseconds.
    fn read_for(&mut self, time: Duration, mut each_time: impl FnMut()) {
        let end = Instant::now() + time;
        let mut events = Events::with_capacity(1024);
        while Instant::now() < end {
            each_time();
            let next = (Instant::now() + Duration::from_millis(100)).min(end);
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                self.poll.poll(&mut events, Some(left)).unwrap();
                events.iter().for_each(|event| self.clients[event.token().0].read());
            }
        }
    }

    /// Checks that no half second has more than twice the mean of disconnects, and that retry times
    /// differ.
    fn check_even_drain(&self, draining: Instant) {
        let mut halves = vec![0; 2 * WINDOW_SECONDS + 8];
        for client in &self.clients {
            let after = client.ended.unwrap().duration_since(draining);
            halves[(after.as_millis() / 500) as usize] += 1;
        }
        let mean = SUBSCRIBERS / (2 * WINDOW_SECONDS);
        assert!(halves.iter().all(|left| *left <= 2 * mean), "{halves:?}");
        assert!(
            halves[0] > 0 && halves[2 * WINDOW_SECONDS - 1] > 0,
            "over the whole window: {halves:?}"
        );
        let waits: BTreeSet<&str> = self.clients.iter().map(Client::last_retry).collect();
        assert!(waits.len() > 500, "{} different waits", waits.len());
    }
}

impl Client {
    fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        if self.ended.is_none() && self.received.ends_with(b"\r\n0\r\n\r\n") {
            self.ended = Some(Instant::now());
        }
    }

    fn last_retry(&self) -> &str {
        let received = std::str::from_utf8(&self.received).unwrap();
        received.rsplit_once("retry: ").unwrap().1.split_once('\n').unwrap().0
    }

    /// Checks that all events arrived in order, and returns the number of the next one and the last
    /// id.
    fn check(&self) -> (usize, String) {
        let received = std::str::from_utf8(&self.received).unwrap();
        let mut next = 0;
        let mut last_id = None;
        // Each event is small enough for one chunk.
        for block in received.split("id: ").skip(1) {
            let frame =
                Frame::parse(format!("id: {}\n\n", block.split_once("\n\n").unwrap().0).as_bytes());
            assert_eq!(number(&frame.data), next);
            next += 1;
            last_id = frame.id;
        }
        (next, last_id.unwrap())
    }
}

/// Number of subscribers.
const SUBSCRIBERS: usize = 5000;

const WINDOW_SECONDS: usize = 5;
