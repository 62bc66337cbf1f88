//! Subscribers that connect, receive an event and disconnect, at an even rate.

use std::{
    collections::{HashMap, VecDeque},
    io::{ErrorKind, Read, Write},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{
    request::request,
    response::Response,
    support::{Result, histogram::Histogram, payload::now_us, target::kind::Endpoint},
};

/// Rate and duration of the visits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visiting {
    /// Visits per second.
    pub(crate) per_second: u64,
    /// Duration in seconds.
    pub(crate) seconds: u64,
}

/// Results of the visits.
#[derive(Clone, Debug)]
pub(crate) struct Visits {
    /// Visitors that connected.
    pub(crate) connected: u64,
    /// Visitors that received a stream.
    pub(crate) answered: u64,
    /// Visitors that received an event.
    pub(crate) saw_event: u64,
    /// Gap notices received; no visitor missed an event.
    pub(crate) gaps: u64,
    /// The first failure of a visitor without a stream.
    pub(crate) failure: Option<String>,
    /// From the connect to the response head, in microseconds.
    pub(crate) head_us: Histogram,
}

impl Visiting {
    /// Starts the visits on their own thread.
    pub(crate) fn start(self, target: Endpoint) -> JoinHandle<Result<Visits>> {
        thread::spawn(move || Visitors::new(target)?.run(self))
    }
}

/// All current visitors, and their results.
#[derive(Debug)]
struct Visitors {
    target: Endpoint,
    poll: Poll,
    visitors: HashMap<Token, Visitor>,
    /// In the order of their departure.
    departures: VecDeque<(Instant, Token)>,
    visits: Visits,
}

#[derive(Debug)]
struct Visitor {
    stream: TcpStream,
    has_asked: bool,
    connected_us: u64,
    response: Response,
}

/// The next step of a visitor.
#[derive(Debug)]
enum Step {
    Stay,
    Disconnect,
}

impl Visitors {
    fn new(target: Endpoint) -> Result<Self> {
        Ok(Self {
            target,
            poll: Poll::new()?,
            visitors: HashMap::new(),
            departures: VecDeque::new(),
            visits: Visits {
                connected: 0,
                answered: 0,
                saw_event: 0,
                gaps: 0,
                failure: None,
                head_us: Histogram::new(),
            },
        })
    }

    /// Runs all visits.
    fn run(mut self, visiting: Visiting) -> Result<Visits> {
        let start = Instant::now();
        let all = visiting.per_second * visiting.seconds;
        let mut events = Events::with_capacity(256);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let due = start.elapsed().as_secs_f64() * visiting.per_second as f64;
            while self.visits.connected < all.min(due as u64) {
                self.connect()?;
            }
            self.disconnect_due(Instant::now());
            if self.visits.connected == all && self.visitors.is_empty() {
                return Ok(self.visits);
            }
            match self.poll.poll(&mut events, Some(Duration::from_millis(1))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for token in events.iter().map(mio::event::Event::token) {
                self.turn(token, &mut buffer);
            }
        }
    }

    fn connect(&mut self) -> Result<()> {
        let mut stream = TcpStream::connect(self.target.address)?;
        let token = Token(self.visits.connected as usize);
        self.poll.registry().register(
            &mut stream,
            token,
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.visitors.insert(
            token,
            Visitor { stream, has_asked: false, connected_us: now_us(), response: Response::new() },
        );
        self.departures.push_back((Instant::now() + STAY, token));
        self.visits.connected += 1;
        Ok(())
    }

    /// Disconnects visitors whose time is over, but waits for their response up to
    /// [`RESPONSE_TIMEOUT`].
    fn disconnect_due(&mut self, now: Instant) {
        while let Some(&(until, token)) = self.departures.front() {
            let is_waiting = |visitor: &Visitor| !visitor.response.has_begun();
            let is_waiting = self.visitors.get(&token).is_some_and(is_waiting);
            if now < until || is_waiting && now < until + RESPONSE_TIMEOUT {
                return;
            }
            if is_waiting {
                self.visits.failure.get_or_insert_with(|| "not answered in time".to_owned());
            }
            self.visitors.remove(&token);
            self.departures.pop_front();
        }
    }

    fn turn(&mut self, token: Token, buffer: &mut [u8]) {
        let Some(visitor) = self.visitors.get_mut(&token) else {
            return;
        };
        match visitor.turn(self.target, buffer, &mut self.visits) {
            Ok(Step::Stay) => {}
            Ok(Step::Disconnect) => drop(self.visitors.remove(&token)),
            Err(error) => {
                self.visitors.remove(&token);
                self.visits.failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

impl Visitor {
    fn turn(&mut self, target: Endpoint, buffer: &mut [u8], visits: &mut Visits) -> Result<Step> {
        if !self.has_asked {
            self.stream.write_all(request(target, None, None).as_bytes())?;
            self.has_asked = true;
        }
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err("the stream ended".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Stay),
                Err(error) => return Err(error.into()),
            };
            let had_begun = self.response.has_begun();
            let (mut events, mut gaps) = (0, 0);
            self.response.feed(&buffer[..length], |block| match block.name {
                None => events += usize::from(block.data.is_some()),
                Some(b"gap") => gaps += 1,
                Some(_) => {}
            })?;
            if !had_begun && self.response.has_begun() {
                visits.answered += 1;
                visits.head_us.record(now_us().saturating_sub(self.connected_us));
            }
            visits.gaps += gaps;
            if events > 0 {
                visits.saw_event += 1;
                return Ok(Step::Disconnect);
            }
        }
    }
}

/// Duration of a visit without an event.
const STAY: Duration = Duration::from_millis(100);

/// Maximum wait for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
