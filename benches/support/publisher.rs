//! The publisher for targets that do not read an upstream: one request for each event, in order.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use memchr::memmem;

use crate::support::{
    Result,
    payload::{Series, Template, session_name},
};

/// Settings for publishing events to a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publishing {
    /// Address for requests.
    pub(crate) address: SocketAddr,
    /// Appends the request for a payload, of one session or for all.
    pub(crate) request: fn(SocketAddr, Option<&str>, &[u8], &mut Vec<u8>),
    /// Whether a connection takes more than one request; if so, responses are not waited for.
    pub(crate) is_kept_alive: bool,
}

/// A publisher.
#[derive(Debug)]
pub(crate) struct Publisher {
    publishing: Publishing,
    /// The connection, if it is kept alive.
    stream: Option<TcpStream>,
    template: Template,
}

impl Publisher {
    /// Connects, if the connection is kept alive.
    pub(crate) fn open(publishing: Publishing) -> Result<Self> {
        let stream =
            publishing.is_kept_alive.then(|| TcpStream::connect(publishing.address)).transpose()?;
        if let Some(stream) = &stream {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            let answers = stream.try_clone()?;
            thread::spawn(move || drain(answers));
        }
        Ok(Self { publishing, stream, template: Template::new() })
    }

    /// Publishes these events of the series, `per_second` of them, each to its session or to all.
    /// Returns the maximum delay of an event.
    ///
    /// # Errors
    ///
    /// If the target takes no more.
    pub(crate) fn send(
        &mut self,
        series: Series,
        by_session: bool,
        events: impl IntoIterator<Item = u64>,
        per_second: f64,
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut latest = Duration::ZERO;
        let (mut frame, mut request) = (Vec::new(), Vec::new());
        for (nth, sequence) in events.into_iter().enumerate() {
            let due = start + Duration::from_secs_f64(nth as f64 / per_second);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            latest = latest.max(due.elapsed());
            if latest > TIMEOUT {
                return Err(format!("event {sequence} could not be published in time").into());
            }
            let session = series.session(sequence);
            self.template.write(sequence, session, &mut frame);
            let payload = &frame[b"data: ".len()..frame.len() - 2];
            let name = by_session.then(|| session_name(session));
            request.clear();
            (self.publishing.request)(
                self.publishing.address,
                name.as_deref(),
                payload,
                &mut request,
            );
            self.publish(&request)
                .map_err(|error| format!("event {sequence} could not be published: {error}"))?;
        }
        Ok(latest)
    }

    fn publish(&mut self, request: &[u8]) -> Result<()> {
        if let Some(stream) = &mut self.stream {
            return Ok(stream.write_all(request)?);
        }
        let mut stream = TcpStream::connect(self.publishing.address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        match answer.starts_with(b"HTTP/1.1 2") {
            true => Ok(()),
            false => Err(format!("answered {:?}", String::from_utf8_lossy(&answer)).into()),
        }
    }
}

/// Reads responses, so that the target can write them. Failures show at the subscribers.
fn drain(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if memmem::find(&buffer[..length], b"HTTP/1.1 5").is_some() => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A run with a longer delay is not worth measuring.
const TIMEOUT: Duration = Duration::from_secs(10);
