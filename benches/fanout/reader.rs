//! One subscriber who reads when told to, and not before.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    request::request,
    response::Response,
    support::{Result, payload::now_us, target::kind::Door},
    tally::{Ledger, Tally},
};

/// A connection on which the question has been asked.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: TcpStream,
    response: Response,
    ledger: Ledger,
}

impl Reader {
    /// Connects and asks.
    pub(crate) fn ask(target: Door, mut ledger: Ledger) -> Result<Self> {
        ledger.comes();
        Self::begin(TcpStream::connect(target.address)?, target, ledger)
    }

    /// Connects with a window so small that the target's socket is soon full, asks, and reads the
    /// head.
    pub(crate) fn stall(target: Door, mut ledger: Ledger) -> Result<Self> {
        ledger.comes();
        let socket = Socket::new(Domain::for_address(target.address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(SMALL_WINDOW_BYTES)?;
        socket.connect(&target.address.into())?;
        let mut reader = Self::begin(socket.into(), target, ledger)?;
        let mut byte = [0];
        while !reader.response.has_begun() {
            reader.stream.read_exact(&mut byte)?;
            reader.response.feed(&byte, |_| ())?;
        }
        Ok(reader)
    }

    fn begin(mut stream: TcpStream, target: Door, ledger: Ledger) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request(target, ledger.session.as_deref(), ledger.resume).as_bytes())?;
        Ok(Self { stream, response: Response::new(), ledger })
    }

    /// Reads until it has so many events in all, into a book of its own. Returns how long that has
    /// taken since it came.
    ///
    /// # Errors
    ///
    /// When nothing comes any more before that.
    pub(crate) fn read_until(&mut self, events: u64, tally: &mut Tally) -> Result<Duration> {
        self.read_while(|ledger| ledger.received < events, tally)
    }

    /// Reads until it has this event, or a later one.
    ///
    /// # Errors
    ///
    /// When nothing comes any more before that.
    pub(crate) fn read_through(&mut self, event: u64, tally: &mut Tally) -> Result<Duration> {
        self.read_while(|ledger| ledger.last_sequence() < event, tally)
    }

    fn read_while(
        &mut self,
        is_missing: impl Fn(&Ledger) -> bool,
        tally: &mut Tally,
    ) -> Result<Duration> {
        let mut buffer = vec![0; READ_BYTES];
        while is_missing(&self.ledger) {
            let length = self.stream.read(&mut buffer).map_err(|error| {
                let received = self.ledger.received;
                format!("a reader has {received} events, and no more come: {error}")
            })?;
            let (ledger, now_us) = (&mut self.ledger, now_us());
            self.response.feed(&buffer[..length], |block| tally.enter(ledger, block, now_us))?;
            if length == 0 || self.response.has_ended() {
                return Err("a stream ended before it was left".into());
            }
        }
        Ok(self.ledger.since_it_came())
    }

    /// The epoch of the last id.
    pub(crate) fn epoch(&self) -> u64 {
        self.ledger.epoch()
    }
}

/// The kernel makes it as much as it deems the least.
const SMALL_WINDOW_BYTES: usize = 1024;

const READ_BYTES: usize = 256 * 1024;

/// When nothing comes for this long, nothing will.
const PATIENCE: Duration = Duration::from_secs(10);
