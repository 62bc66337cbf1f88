//! The simulated connector: one stream, as many events as requested, at an even rate.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Result,
    payload::{PRODUCT, Series, Template},
};

/// A connector that waits for its one client.
#[derive(Debug)]
pub(crate) struct Upstream {
    listener: TcpListener,
}

/// A connector with its one client.
#[derive(Debug)]
pub(crate) struct Stream {
    listener: TcpListener,
    client: TcpStream,
    template: Template,
}

impl Upstream {
    /// Listens on a free port.
    pub(crate) fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Returns the address.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Accepts and answers the client, which must connect within [`TIMEOUT`].
    pub(crate) fn accept(self) -> Result<Stream> {
        let deadline = Instant::now() + TIMEOUT;
        let mut client = loop {
            match self.listener.accept() {
                Ok((client, _)) => break client,
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => {
                    return Err(
                        format!("the target did not connect to its upstream: {error}").into()
                    );
                }
            }
        };
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(TIMEOUT))?;
        client.set_write_timeout(Some(TIMEOUT))?;
        read_request(&mut client)?;
        client.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n\r\n")?;
        Ok(Stream { listener: self.listener, client, template: Template::new() })
    }
}

impl Stream {
    /// Sends these events of the series, `per_second` of them, each in its own write. Returns the
    /// maximum delay of an event.
    ///
    /// # Errors
    ///
    /// If the target has closed or takes no more.
    pub(crate) fn send(
        &mut self,
        series: Series,
        events: impl IntoIterator<Item = u64>,
        per_second: f64,
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut latest = Duration::ZERO;
        let mut frame = Vec::new();
        for (nth, sequence) in events.into_iter().enumerate() {
            let due = start + Duration::from_secs_f64(nth as f64 / per_second);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            latest = latest.max(due.elapsed());
            self.template.write(sequence, series.session(sequence), &mut frame);
            self.client
                .write_all(&frame)
                .map_err(|error| format!("the target does not take event {sequence}: {error}"))?;
        }
        Ok(latest)
    }

    /// Sends these events of the series in one write.
    ///
    /// # Errors
    ///
    /// If the target has closed or takes no more.
    pub(crate) fn send_batch(
        &mut self,
        series: Series,
        events: impl IntoIterator<Item = u64>,
    ) -> Result<()> {
        let (mut frame, mut frames) = (Vec::new(), Vec::new());
        for sequence in events {
            self.template.write(sequence, series.session(sequence), &mut frame);
            frames.extend_from_slice(&frame);
        }
        Ok(self
            .client
            .write_all(&frames)
            .map_err(|error| format!("the target does not take events: {error}"))?)
    }

    /// Sends these events when they are due, `per_second` of them, as the connector does: a queue
    /// of 256 events holds what the target does not take, and an event that finds the queue full is
    /// dropped. The events of a millisecond are due together, a millisecond after those before them
    /// or later.
    ///
    /// # Errors
    ///
    /// If the target has closed.
    pub(crate) fn flood(
        &mut self,
        series: Series,
        events: impl IntoIterator<Item = u64>,
        per_second: f64,
    ) -> Result<Flood> {
        socket2::SockRef::from(&self.client).set_send_buffer_size(SMALL_BUFFER_BYTES)?;
        self.client.set_nonblocking(true)?;
        let (mut start, mut flood, mut queue) =
            (Instant::now(), Flood::default(), Queue::default());
        let at_once = (per_second / 1000.0).max(1.0) as usize;
        let mut frame = Vec::new();
        for (nth, sequence) in events.into_iter().enumerate() {
            if nth % at_once == 0 {
                let due = start + Duration::from_secs_f64(nth as f64 / per_second);
                queue.write_to(&mut self.client)?;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // If the machine wakes this thread late, all later events are delayed: catching up
                // would be a burst that no connector sends.
                start += due.elapsed();
                flood.late += due.elapsed();
                queue.write_to(&mut self.client)?;
            }
            if queue.events.len() >= QUEUE {
                queue.write_to(&mut self.client)?;
            }
            if queue.events.len() >= QUEUE {
                flood.dropped += 1;
                continue;
            }
            self.template.write(sequence, series.session(sequence), &mut frame);
            queue.bytes.extend(&frame);
            queue.events.push_back(frame.len());
            (flood.sent, flood.last) = (flood.sent + 1, sequence);
        }
        flood.seconds = start.elapsed().as_secs_f64();
        let deadline = Instant::now() + TIMEOUT;
        while !queue.bytes.is_empty() && Instant::now() < deadline {
            queue.write_to(&mut self.client)?;
            thread::sleep(Duration::from_millis(1));
        }
        self.client.set_nonblocking(false)?;
        Ok(flood)
    }

    /// Drops the connection, and waits at the same address for the client's next one.
    pub(crate) fn reopen(self) -> Upstream {
        Upstream { listener: self.listener }
    }

    /// Returns true if the target has connected a second time.
    pub(crate) fn was_reconnected(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// Results of [`Stream::flood`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flood {
    /// Events sent to the target.
    pub(crate) sent: u64,
    /// The last sent event.
    pub(crate) last: u64,
    /// Events dropped because the queue was full.
    pub(crate) dropped: u64,
    /// Duration in seconds.
    pub(crate) seconds: f64,
    /// Total delay of the schedule.
    pub(crate) late: Duration,
}

/// Events that wait for the target.
#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Lengths of the queued events.
    events: VecDeque<usize>,
}

impl Queue {
    /// Writes as much as the target takes.
    fn write_to(&mut self, client: &mut TcpStream) -> Result<()> {
        while !self.bytes.is_empty() {
            match client.write(self.bytes.as_slices().0) {
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("the target takes no events: {error}").into()),
            }
        }
        // All frames have the same length.
        let length = self.events.front().copied().unwrap_or(1);
        self.events.truncate(self.bytes.len().div_ceil(length));
        Ok(())
    }
}

fn read_request(client: &mut TcpStream) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client
            .read_exact(&mut byte)
            .map_err(|error| format!("the target sent no whole request: {error}"))?;
        request.extend_from_slice(&byte);
    }
    let expected = format!("GET /stream/{PRODUCT} HTTP/1.1\r\n");
    if !request.starts_with(expected.as_bytes()) {
        return Err(format!(
            "the target asked for something else: {}",
            String::from_utf8_lossy(&request)
        )
        .into());
    }
    Ok(())
}

/// Events that a connector queues for a slow reader.
const QUEUE: usize = 256;

/// Small, so that the kernel's buffers do not act as the queue.
const SMALL_BUFFER_BYTES: usize = 256 * 1024;

/// Longer than any step takes that is not stuck.
const TIMEOUT: Duration = Duration::from_secs(30);
