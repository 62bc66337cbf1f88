//! A subscriber that reads only when it is called.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    request::request,
    response::Response,
    support::{Result, payload::now_us, target::kind::Endpoint},
    tally::{SubscriberRecord, Tally},
};

/// A connection on which the request has been sent.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: TcpStream,
    response: Response,
    record: SubscriberRecord,
}

impl Reader {
    /// Connects, and sends the request.
    pub(crate) fn ask(target: Endpoint, mut record: SubscriberRecord) -> Result<Self> {
        record.start_timing();
        Self::begin(TcpStream::connect(target.address)?, target, record)
    }

    /// Connects with a window so small that the target's socket is soon full, sends the request,
    /// and reads the head.
    pub(crate) fn stall(target: Endpoint, mut record: SubscriberRecord) -> Result<Self> {
        record.start_timing();
        let socket = Socket::new(Domain::for_address(target.address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(SMALL_WINDOW_BYTES)?;
        socket.connect(&target.address.into())?;
        let mut reader = Self::begin(socket.into(), target, record)?;
        let mut byte = [0];
        while !reader.response.has_begun() {
            reader.stream.read_exact(&mut byte)?;
            reader.response.feed(&byte, |_| ())?;
        }
        Ok(reader)
    }

    fn begin(mut stream: TcpStream, target: Endpoint, record: SubscriberRecord) -> Result<Self> {
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.write_all(request(target, record.session.as_deref(), record.resume).as_bytes())?;
        Ok(Self { stream, response: Response::new(), record })
    }

    /// Reads until it has received this many events in all, and checks them into `tally`. Returns
    /// the time since the connect.
    ///
    /// # Errors
    ///
    /// If the stream ends or stalls before that.
    pub(crate) fn read_until(&mut self, events: u64, tally: &mut Tally) -> Result<Duration> {
        self.read_while(|record| record.received < events, tally)
    }

    /// Reads until it has received this event or a later one.
    ///
    /// # Errors
    ///
    /// If the stream ends or stalls before that.
    pub(crate) fn read_through(&mut self, event: u64, tally: &mut Tally) -> Result<Duration> {
        self.read_while(|record| record.last_sequence() < event, tally)
    }

    fn read_while(
        &mut self,
        is_missing: impl Fn(&SubscriberRecord) -> bool,
        tally: &mut Tally,
    ) -> Result<Duration> {
        let mut buffer = vec![0; READ_BYTES];
        while is_missing(&self.record) {
            let length = self.stream.read(&mut buffer).map_err(|error| {
                let received = self.record.received;
                format!("a reader has {received} events, and no more come: {error}")
            })?;
            let (record, now_us) = (&mut self.record, now_us());
            self.response.feed(&buffer[..length], |block| tally.check(record, block, now_us))?;
            if length == 0 || self.response.has_ended() {
                return Err("a stream ended before it was left".into());
            }
        }
        Ok(self.record.elapsed())
    }

    /// Returns the epoch of the last id.
    pub(crate) fn epoch(&self) -> u64 {
        self.record.epoch()
    }
}

/// The kernel raises it to its minimum.
const SMALL_WINDOW_BYTES: usize = 1024;

const READ_BYTES: usize = 256 * 1024;

/// A stream without bytes for this long has stalled.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
