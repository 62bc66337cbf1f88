//! The load: a few threads with thousands of subscribers each, one `epoll` per thread, one `read`
//! per wake-up. Subscribers over TLS or HTTP/2 are in `load/streams.rs`.

mod shared;
mod streams;

use std::{
    io::{ErrorKind, Read, Write},
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use self::shared::{MAX_PENDING, Shared, ThreadResults};
use crate::{
    request::request,
    response::Response,
    support::{
        Result,
        payload::{Series, now_us, session_name},
        target::kind::{Endpoint, Protocol},
    },
    tally::{Resume, SubscriberRecord, Tally},
};

/// The subscribers of a run and their events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Number of subscribers.
    pub(crate) subscribers: usize,
    /// Whether each subscribes to the session of its own number, instead of all to every event.
    pub(crate) own_session: bool,
    /// The events that will be sent.
    pub(crate) series: Series,
    /// Events before this one are checked, but not timed.
    pub(crate) measured_from: u64,
    /// Whether subscribers may miss events if a gap is announced in their place.
    pub(crate) may_miss: bool,
    /// The position from which all subscribers resume, with every event as their filter. They are
    /// caught up when they receive the first measured event.
    pub(crate) resume: Option<Resume>,
}

/// Connected subscribers.
#[derive(Debug)]
pub(crate) struct Load {
    workload: Workload,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<std::result::Result<ThreadResults, String>>>,
}

impl Workload {
    /// Returns the number of deliveries without a loss.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries_through(self.series.events)
    }

    /// Returns the number of deliveries of the events up to this one without a loss.
    pub(crate) fn deliveries_through(&self, last: u64) -> u64 {
        match self.own_session {
            true => last,
            false => (last - self.after()) * self.subscribers as u64,
        }
    }

    /// Returns the event after which the subscribers begin.
    fn after(&self) -> u64 {
        self.resume.map_or(0, |resume| resume.after)
    }

    fn record(&self, number: usize, endpoint: Endpoint) -> SubscriberRecord {
        let behind = self.measured_from - 1 - self.after();
        let record = SubscriberRecord::new(
            number,
            self.own_session.then(|| session_name(number)),
            self.resume,
            behind,
        );
        record.at(endpoint, self.may_miss)
    }
}

impl Load {
    /// Connects all subscribers, and returns when each has its response head.
    ///
    /// # Errors
    ///
    /// If a subscriber is refused, or the connects take too long.
    pub(crate) fn connect(target: Endpoint, workload: Workload) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let threads = (0..THREADS).map(|nth| {
            let subscribers = (nth..workload.subscribers).step_by(THREADS);
            let results = ThreadResults {
                tally: Tally::new(workload.series.events, workload.measured_from),
                records: subscribers.map(|number| workload.record(number, target)).collect(),
            };
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let done = match target.protocol {
                    Protocol::Sse | Protocol::CentrifugoSse | Protocol::WebSocket => {
                        LoadThread::of(results).run(target, &shared)
                    }
                    Protocol::Http2 | Protocol::Tls | Protocol::TlsHttp2 => {
                        streams::run(target, results, &shared)
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
        let load = Self { threads: threads.collect(), workload, shared };
        load.wait(|shared| {
            let connected = shared.connected.load(Ordering::Relaxed);
            (connected as u64, connected == workload.subscribers)
        })?;
        let connected = load.shared.connected.load(Ordering::Relaxed);
        if connected < workload.subscribers {
            return Err(format!(
                "only {connected} of {} subscribers are connected",
                workload.subscribers
            )
            .into());
        }
        Ok(load)
    }

    /// Waits until this many deliveries have been received, or no more arrive.
    pub(crate) fn wait_for(&self, deliveries: u64) -> Result<()> {
        self.wait(|shared| {
            let received = shared.received.load(Ordering::Relaxed);
            (received, received >= deliveries)
        })
    }

    /// Returns the number of deliveries that have been received.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Waits until all resumed subscribers are caught up, or no more events arrive.
    pub(crate) fn wait_for_caught_up(&self) -> Result<()> {
        let missed = self.workload.deliveries_through(self.workload.measured_from - 1);
        self.wait(|shared| {
            let is_done =
                shared.caught_up.load(Ordering::Relaxed) == self.workload.subscribers as u64;
            // Live events do not show that missed events still arrive.
            (shared.received.load(Ordering::Relaxed).min(missed), is_done)
        })
    }

    /// Waits until `look` returns true, or its number stops growing.
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

    /// Sets the last event of a series that ended early.
    pub(crate) fn ended_with(&mut self, event: u64) {
        self.workload.series.events = event;
    }

    /// Disconnects all subscribers and checks their records, after a moment for duplicate events.
    pub(crate) fn finish(mut self) -> Result<Tally> {
        thread::sleep(AFTERMATH);
        self.shared.stop.store(true, Ordering::Relaxed);
        let series = self.workload.series;
        let after = self.workload.after();
        let per_session = self.workload.own_session.then(|| series.per_session(after));
        let mut tally = Tally::new(series.events, self.workload.measured_from);
        for thread in std::mem::take(&mut self.threads) {
            let results = thread.join().map_err(|_| "a thread of the load panicked")??;
            tally.merge(&results.tally);
            for record in &results.records {
                let expected = per_session
                    .as_ref()
                    .map_or(series.events - after, |counts| counts[record.number]);
                record.close(expected, &mut tally.faults);
            }
        }
        Ok(tally)
    }
}

impl Drop for Load {
    /// Closes the sockets of a load that failed: the next target needs the file descriptors.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// The subscribers of one thread.
#[derive(Debug)]
struct LoadThread {
    /// Subscribers that are not connected yet.
    waiting: Vec<SubscriberRecord>,
    subscribers: Vec<Subscriber>,
    /// Number of subscribers that are connected, but have no response head yet.
    pending: usize,
    tally: Tally,
}

/// One subscriber.
#[derive(Debug)]
struct Subscriber {
    stream: TcpStream,
    has_asked: bool,
    is_over: bool,
    response: Response,
    record: SubscriberRecord,
}

impl LoadThread {
    fn of(ThreadResults { tally, mut records }: ThreadResults) -> Self {
        records.reverse(); // `pop` takes the first one first
        Self { waiting: records, subscribers: Vec::new(), pending: 0, tally }
    }

    /// Connects, reads and checks until `shared.stop` is set.
    fn run(mut self, target: Endpoint, shared: &Shared) -> Result<ThreadResults> {
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BYTES];
        while !shared.stop.load(Ordering::Relaxed) {
            self.connect_some(target, &poll)?;
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
        Ok(ThreadResults {
            tally: self.tally,
            records: self.subscribers.into_iter().map(|subscriber| subscriber.record).collect(),
        })
    }

    /// Starts connections, a bounded number at a time.
    fn connect_some(&mut self, target: Endpoint, poll: &Poll) -> Result<()> {
        while self.pending < MAX_PENDING {
            let Some(mut record) = self.waiting.pop() else { break };
            record.start_timing();
            let mut stream = TcpStream::connect(target.address)
                .map_err(|error| format!("cannot connect: {error}"))?;
            let token = Token(self.subscribers.len());
            poll.registry().register(
                &mut stream,
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.subscribers.push(Subscriber {
                stream,
                has_asked: false,
                is_over: false,
                response: Response::new(),
                record,
            });
            self.pending += 1;
        }
        Ok(())
    }

    /// Handles a readiness event of a connection.
    fn turn(&mut self, nth: usize, target: Endpoint, buffer: &mut [u8]) -> Result<()> {
        let subscriber = &mut self.subscribers[nth];
        if !subscriber.has_asked {
            let request =
                request(target, subscriber.record.session.as_deref(), subscriber.record.resume);
            // A request is so small that it fits into an empty socket.
            subscriber
                .stream
                .write_all(request.as_bytes())
                .map_err(|error| format!("cannot ask: {error}"))?;
            subscriber.has_asked = true;
        }
        loop {
            let length = match subscriber.stream.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if length == 0 {
                return self.ended(nth);
            }
            let now_us = now_us();
            let had_begun = subscriber.response.has_begun();
            let (tally, record) = (&mut self.tally, &mut subscriber.record);
            subscriber
                .response
                .feed(&buffer[..length], |block| tally.check(record, block, now_us))?;
            self.pending -= usize::from(!had_begun && subscriber.response.has_begun());
            if subscriber.response.has_ended() {
                return self.ended(nth);
            }
            // Edge-triggered: a short read has emptied the socket, and later bytes are a new
            // readiness event.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handles the end of a stream.
    fn ended(&mut self, nth: usize) -> Result<()> {
        let subscriber = &mut self.subscribers[nth];
        if !subscriber.response.has_begun() {
            return Err("a connection was closed before it was answered".into());
        }
        self.tally.faults.ended += u64::from(!subscriber.is_over);
        subscriber.is_over = true;
        Ok(())
    }
}

/// Few threads, so that the load takes little of the machine from the target.
const THREADS: usize = 2;

const READ_BYTES: usize = 256 * 1024;

/// A count that does not change for this long will not change any more.
const STANDSTILL: Duration = Duration::from_secs(5);

/// Time for duplicate events to arrive.
const AFTERMATH: Duration = Duration::from_millis(200);
