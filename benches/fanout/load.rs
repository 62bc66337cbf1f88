//! The subscribers: a few threads with thousands of connections each, one `epoll` a thread, one
//! `read` a wake-up. Those who speak TLS or HTTP/2 are in `load/streams.rs`.

mod books;
mod streams;

use std::{
    io::{ErrorKind, Read, Write},
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use self::books::{Books, MOST_PENDING, Shared};
use crate::{
    request::request,
    response::Response,
    support::{
        Result,
        payload::{Series, now_us, session_name},
        target::kind::{Door, Way},
    },
    tally::{Ledger, Resume, Tally},
};

/// Who listens to what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audience {
    /// How many.
    pub(crate) subscribers: usize,
    /// Each to the session of its own number; otherwise all to everything.
    pub(crate) own_session: bool,
    /// What they will be sent.
    pub(crate) series: Series,
    /// Events before this one are checked, but not timed.
    pub(crate) measured_from: u64,
    /// Whether they may miss events, if they are told so in that place.
    pub(crate) may_miss: bool,
    /// Where all of them come back to, who listen to everything then. They have caught up when they
    /// are given what is measured.
    pub(crate) resume: Option<Resume>,
}

/// Subscribers, connected.
#[derive(Debug)]
pub(crate) struct Load {
    audience: Audience,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<std::result::Result<Books, String>>>,
}

impl Audience {
    /// Deliveries when nothing is lost.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries_through(self.series.events)
    }

    /// Deliveries of the events up to this one when nothing is lost.
    pub(crate) fn deliveries_through(&self, last: u64) -> u64 {
        match self.own_session {
            true => last,
            false => (last - self.after()) * self.subscribers as u64,
        }
    }

    /// The event behind which theirs begin.
    fn after(&self) -> u64 {
        self.resume.map_or(0, |resume| resume.after)
    }

    fn ledger(&self, number: usize, door: Door) -> Ledger {
        let behind = self.measured_from - 1 - self.after();
        let ledger = Ledger::new(
            number,
            self.own_session.then(|| session_name(number)),
            self.resume,
            behind,
        );
        ledger.at(door, self.may_miss)
    }
}

impl Load {
    /// Connects them all; returns when each has its head.
    ///
    /// # Errors
    ///
    /// When one of them is turned away, or it takes too long.
    pub(crate) fn connect(target: Door, audience: Audience) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let threads = (0..THREADS).map(|nth| {
            let members = (nth..audience.subscribers).step_by(THREADS);
            let books = Books {
                tally: Tally::new(audience.series.events, audience.measured_from),
                ledgers: members.map(|number| audience.ledger(number, target)).collect(),
            };
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let done = match target.way {
                    Way::Sse | Way::WebSocket => Crowd::of(books).attend(target, &shared),
                    Way::Http2 | Way::Tls | Way::TlsHttp2 => {
                        streams::attend(target, books, &shared)
                    }
                };
                done.map_err(|error| {
                    let failure = error.to_string();
                    *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(failure.clone());
                    failure
                })
            })
        });
        let load = Self { threads: threads.collect(), audience, shared };
        load.wait(|shared| {
            let connected = shared.connected.load(Ordering::Relaxed);
            (connected as u64, connected == audience.subscribers)
        })?;
        let connected = load.shared.connected.load(Ordering::Relaxed);
        if connected < audience.subscribers {
            return Err(
                format!("only {connected} of {} subscribers got in", audience.subscribers).into()
            );
        }
        Ok(load)
    }

    /// Waits until so many deliveries have been made, or none comes any more.
    pub(crate) fn wait_for(&self, deliveries: u64) -> Result<()> {
        self.wait(|shared| {
            let received = shared.received.load(Ordering::Relaxed);
            (received, received >= deliveries)
        })
    }

    /// Waits until all who came back have caught up, or nothing comes any more.
    pub(crate) fn wait_for_caught_up(&self) -> Result<()> {
        let missed = self.audience.deliveries_through(self.audience.measured_from - 1);
        self.wait(|shared| {
            let is_done =
                shared.caught_up.load(Ordering::Relaxed) == self.audience.subscribers as u64;
            // What is live does not show that the others still come.
            (shared.received.load(Ordering::Relaxed).min(missed), is_done)
        })
    }

    /// Waits until `look` says that it is done, or its number stands still.
    fn wait(&self, look: impl Fn(&Shared) -> (u64, bool)) -> Result<()> {
        let (mut number, mut since) = (0, Instant::now());
        loop {
            let (now, is_done) = look(&self.shared);
            if let Some(failure) =
                &*self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner)
            {
                return Err(format!("a subscriber failed: {failure}").into());
            }
            if now != number {
                (number, since) = (now, Instant::now());
            }
            if is_done || since.elapsed() > STANDSTILL {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Notes that the series has ended with this event, earlier than it could have.
    pub(crate) fn ended_with(&mut self, event: u64) {
        self.audience.series.events = event;
    }

    /// Lets them all leave and closes the books. Waits a moment for what should not come.
    pub(crate) fn finish(self) -> Result<Tally> {
        thread::sleep(AFTERMATH);
        self.shared.stop.store(true, Ordering::Relaxed);
        let series = self.audience.series;
        let after = self.audience.after();
        let per_session = self.audience.own_session.then(|| series.per_session(after));
        let mut tally = Tally::new(series.events, self.audience.measured_from);
        for thread in self.threads {
            let books = thread.join().map_err(|_| "a thread of the load panicked")??;
            tally.merge(&books.tally);
            for ledger in &books.ledgers {
                let expected = per_session
                    .as_ref()
                    .map_or(series.events - after, |counts| counts[ledger.number]);
                ledger.close(expected, &mut tally.faults);
            }
        }
        Ok(tally)
    }
}

/// The subscribers of one thread.
#[derive(Debug)]
struct Crowd {
    /// Those who have not come yet.
    waiting: Vec<Ledger>,
    members: Vec<Member>,
    /// Those who have come, but have no head yet.
    pending: usize,
    tally: Tally,
}

/// One subscriber.
#[derive(Debug)]
struct Member {
    stream: TcpStream,
    has_asked: bool,
    is_over: bool,
    response: Response,
    ledger: Ledger,
}

impl Crowd {
    fn of(Books { tally, mut ledgers }: Books) -> Self {
        ledgers.reverse(); // the last of them comes first
        Self { waiting: ledgers, members: Vec::new(), pending: 0, tally }
    }

    /// Connects, reads and checks until told to stop.
    fn attend(mut self, target: Door, shared: &Shared) -> Result<Books> {
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        while !shared.stop.load(Ordering::Relaxed) {
            self.let_in(target, &poll)?;
            match poll.poll(&mut events, Some(Duration::from_millis(50))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            let (received, caught_up, pending) =
                (self.tally.received, self.tally.caught_up_us.count(), self.pending);
            for event in &events {
                self.turn(event.token().0, target, &mut buffer)?;
            }
            shared.received.fetch_add(self.tally.received - received, Ordering::Relaxed);
            shared
                .caught_up
                .fetch_add(self.tally.caught_up_us.count() - caught_up, Ordering::Relaxed);
            shared.connected.fetch_add(pending - self.pending, Ordering::Relaxed);
        }
        Ok(Books {
            tally: self.tally,
            ledgers: self.members.into_iter().map(|member| member.ledger).collect(),
        })
    }

    /// Begins connections, a bounded number at a time.
    fn let_in(&mut self, target: Door, poll: &Poll) -> Result<()> {
        while self.pending < MOST_PENDING {
            let Some(mut ledger) = self.waiting.pop() else { break };
            ledger.comes();
            let mut stream = TcpStream::connect(target.address)
                .map_err(|error| format!("cannot connect: {error}"))?;
            let token = Token(self.members.len());
            poll.registry().register(
                &mut stream,
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.members.push(Member {
                stream,
                has_asked: false,
                is_over: false,
                response: Response::new(),
                ledger,
            });
            self.pending += 1;
        }
        Ok(())
    }

    /// Something happened on a connection.
    fn turn(&mut self, nth: usize, target: Door, buffer: &mut [u8]) -> Result<()> {
        let member = &mut self.members[nth];
        if !member.has_asked {
            let request = request(target, member.ledger.session.as_deref(), member.ledger.resume);
            // So small that it fits whole into an empty socket.
            member
                .stream
                .write_all(request.as_bytes())
                .map_err(|error| format!("cannot ask: {error}"))?;
            member.has_asked = true;
        }
        loop {
            let length = match member.stream.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if length == 0 {
                return self.ended(nth);
            }
            let now_us = now_us();
            let had_begun = member.response.has_begun();
            let (tally, ledger) = (&mut self.tally, &mut member.ledger);
            member.response.feed(&buffer[..length], |block| tally.enter(ledger, block, now_us))?;
            self.pending -= usize::from(!had_begun && member.response.has_begun());
            if member.response.has_ended() {
                return self.ended(nth);
            }
            // Edge-triggered: a short read has emptied the socket, and what comes later is a new
            // event.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Somebody was sent away.
    fn ended(&mut self, nth: usize) -> Result<()> {
        let member = &mut self.members[nth];
        if !member.response.has_begun() {
            return Err("a connection was closed before it was answered".into());
        }
        self.tally.faults.ended += u64::from(!member.is_over);
        member.is_over = true;
        Ok(())
    }
}

/// Few, so that the load takes little of the machine from what it measures.
const THREADS: usize = 2;

const READ_BYTES: usize = 256 * 1024;

/// When nothing moves for this long, nothing will.
const STANDSTILL: Duration = Duration::from_secs(5);

/// For events that come twice.
const AFTERMATH: Duration = Duration::from_millis(200);
