//! Five thousand subscribers leave, and come back.

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
    let files = process::allow_files();
    assert!(
        files > 2 * CROWD as u64,
        "the test has a file for each subscriber, and so has the relay: {files}"
    );
    let directory = tempfile::tempdir().unwrap();
    let data = format!("data_dir = '{}'", directory.path().display());
    let connector = Connector::new();
    let setup =
        Setup::behind(&connector).log(&data).server(&format!("drain_window = '{WINDOW_SECONDS}s'"));
    let mut relay = setup.start();
    let mut link = connector.stream();
    let mut crowd = Crowd::connect(relay.public);
    relay.wait_for_subscribers(CROWD as f64);
    let mut sent = 0;
    crowd.read_for(Duration::from_secs(1), || send_next(&mut link, &mut sent));
    relay.process.signal("TERM");
    let leaving = Instant::now();
    while crowd.members.iter().any(|member| member.ended.is_none()) {
        assert!(leaving.elapsed() < Duration::from_secs(60), "everybody leaves");
        // An upstream that is gone by now is what ends the relay's last moment.
        crowd.read_for(Duration::from_millis(100), || send_next(&mut link, &mut sent));
    }
    assert_eq!(relay.process.exit_code(), Some(0));
    crowd.left_evenly(leaving);

    let last_ids: Vec<(usize, String)> = crowd.members.iter().map(Member::check).collect();
    let relay = setup.start();
    let mut link = connector.stream();
    relay.wait_for_upstream("connected");
    link.event(event(sent));
    // what the last to go has seen, at least, is kept
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
        assert!(next >= kept, "nothing that anybody has seen is missing");
        assert_eq!(gap.json()["reason"], "upstream_reconnect", "the connector's own outage");
        assert_eq!(number(&subscriber.event().data), sent);
    }
}

/// Sends the next event, as long as the relay listens.
fn send_next(link: &mut Link, sent: &mut usize) {
    if link.is_open() {
        link.event(event(*sent));
        *sent += 1;
    }
}

/// Subscribers by the thousand, on one thread.
struct Crowd {
    poll: Poll,
    members: Vec<Member>,
}

struct Member {
    socket: TcpStream,
    received: Vec<u8>,
    ended: Option<Instant>,
}

impl Crowd {
    fn connect(to: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let members = (0..CROWD).map(|number| {
            let mut socket = std::net::TcpStream::connect(to).unwrap();
            socket.write_all(http::request(to, "GET", STREAM, &[]).as_bytes()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut socket = TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(number), Interest::READABLE).unwrap();
            Member { socket, received: Vec::new(), ended: None }
        });
        let members = members.collect();
        Self { poll, members }
    }

    /// Takes what comes for a while; does `each_time` a hundred milliseconds apart.
    fn read_for(&mut self, time: Duration, mut each_time: impl FnMut()) {
        let end = Instant::now() + time;
        let mut events = Events::with_capacity(1024);
        while Instant::now() < end {
            each_time();
            let next = (Instant::now() + Duration::from_millis(100)).min(end);
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                self.poll.poll(&mut events, Some(left)).unwrap();
                events.iter().for_each(|event| self.members[event.token().0].read());
            }
        }
    }

    /// In no half second more than twice the mean, and everybody told to come back at a time of its
    /// own.
    fn left_evenly(&self, leaving: Instant) {
        let mut halves = vec![0; 2 * WINDOW_SECONDS + 8];
        for member in &self.members {
            let after = member.ended.unwrap().duration_since(leaving);
            halves[(after.as_millis() / 500) as usize] += 1;
        }
        let mean = CROWD / (2 * WINDOW_SECONDS);
        assert!(halves.iter().all(|left| *left <= 2 * mean), "{halves:?}");
        assert!(
            halves[0] > 0 && halves[2 * WINDOW_SECONDS - 1] > 0,
            "over the whole window: {halves:?}"
        );
        let waits: BTreeSet<&str> = self.members.iter().map(Member::last_retry).collect();
        assert!(waits.len() > 500, "{} different waits", waits.len());
    }
}

impl Member {
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

    /// Checks that every event came in order, and returns the number of the next one and the last
    /// id.
    fn check(&self) -> (usize, String) {
        let received = std::str::from_utf8(&self.received).unwrap();
        let mut next = 0;
        let mut last_id = None;
        // Each event is small enough to stand in one chunk.
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

/// As many as the issue of leaving is about.
const CROWD: usize = 5000;

const WINDOW_SECONDS: usize = 5;
