//! Subscribers who come, look and leave, at an even rate.

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
    support::{Result, histogram::Histogram, payload::now_us, target::kind::Door},
};

/// How many come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visiting {
    /// In a second.
    pub(crate) per_second: u64,
    /// For how long.
    pub(crate) seconds: u64,
}

/// What became of them.
#[derive(Clone, Debug)]
pub(crate) struct Visits {
    /// Those who came.
    pub(crate) come: u64,
    /// Those who were answered with a stream.
    pub(crate) answered: u64,
    /// Those who saw an event before they left.
    pub(crate) saw_event: u64,
    /// Gap notices they saw. None of them missed anything.
    pub(crate) gaps: u64,
    /// Why the first one who was not answered was not.
    pub(crate) failure: Option<String>,
    /// From coming to the head, in microseconds.
    pub(crate) head_us: Histogram,
}

impl Visiting {
    /// Begins on a thread of its own.
    pub(crate) fn start(self, target: Door) -> JoinHandle<Result<Visits>> {
        thread::spawn(move || Street::new(target)?.receive(self))
    }
}

/// Where they come from.
#[derive(Debug)]
struct Street {
    target: Door,
    poll: Poll,
    visitors: HashMap<Token, Visitor>,
    /// In the order in which their time is up.
    leaving: VecDeque<(Instant, Token)>,
    visits: Visits,
}

#[derive(Debug)]
struct Visitor {
    stream: TcpStream,
    has_asked: bool,
    came_us: u64,
    response: Response,
}

/// What a visitor does next.
#[derive(Debug)]
enum Next {
    Stay,
    Leave,
}

impl Street {
    fn new(target: Door) -> Result<Self> {
        Ok(Self {
            target,
            poll: Poll::new()?,
            visitors: HashMap::new(),
            leaving: VecDeque::new(),
            visits: Visits {
                come: 0,
                answered: 0,
                saw_event: 0,
                gaps: 0,
                failure: None,
                head_us: Histogram::new(),
            },
        })
    }

    /// Sends them all in and waits until the last has left.
    fn receive(mut self, visiting: Visiting) -> Result<Visits> {
        let start = Instant::now();
        let all = visiting.per_second * visiting.seconds;
        let mut events = Events::with_capacity(256);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let due = start.elapsed().as_secs_f64() * visiting.per_second as f64;
            while self.visits.come < all.min(due as u64) {
                self.come()?;
            }
            self.send_home(Instant::now());
            if self.visits.come == all && self.visitors.is_empty() {
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

    fn come(&mut self) -> Result<()> {
        let mut stream = TcpStream::connect(self.target.address)?;
        let token = Token(self.visits.come as usize);
        self.poll.registry().register(
            &mut stream,
            token,
            Interest::READABLE | Interest::WRITABLE,
        )?;
        self.visitors.insert(
            token,
            Visitor { stream, has_asked: false, came_us: now_us(), response: Response::new() },
        );
        self.leaving.push_back((Instant::now() + STAY, token));
        self.visits.come += 1;
        Ok(())
    }

    /// Those whose time is up leave, but not before they were answered or it has taken far too
    /// long.
    fn send_home(&mut self, now: Instant) {
        while let Some(&(until, token)) = self.leaving.front() {
            let is_waiting = |visitor: &Visitor| !visitor.response.has_begun();
            let is_waiting = self.visitors.get(&token).is_some_and(is_waiting);
            if now < until || is_waiting && now < until + PATIENCE {
                return;
            }
            if is_waiting {
                self.visits.failure.get_or_insert_with(|| "not answered in time".to_owned());
            }
            self.visitors.remove(&token);
            self.leaving.pop_front();
        }
    }

    fn turn(&mut self, token: Token, buffer: &mut [u8]) {
        let Some(visitor) = self.visitors.get_mut(&token) else {
            return;
        };
        match visitor.turn(self.target, buffer, &mut self.visits) {
            Ok(Next::Stay) => {}
            Ok(Next::Leave) => drop(self.visitors.remove(&token)),
            Err(error) => {
                self.visitors.remove(&token);
                self.visits.failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

impl Visitor {
    fn turn(&mut self, target: Door, buffer: &mut [u8], visits: &mut Visits) -> Result<Next> {
        if !self.has_asked {
            self.stream.write_all(request(target, None, None).as_bytes())?;
            self.has_asked = true;
        }
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err("the stream ended".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Stay),
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
                visits.head_us.record(now_us().saturating_sub(self.came_us));
            }
            visits.gaps += gaps;
            if events > 0 {
                visits.saw_event += 1;
                return Ok(Next::Leave);
            }
        }
    }
}

/// How long somebody stays who sees no event.
const STAY: Duration = Duration::from_millis(100);

/// How long somebody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
