//! Hostile peers of the relay's own connections, and the measure of what the others notice.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::common::{process::Process, relay::Relay, wait::TIMEOUT};

/// Server that behaves in one way on every connection, each on its own thread.
pub(super) struct HostilePeer {
    pub(super) address: SocketAddr,
    listener: TcpListener,
    connections: Arc<AtomicUsize>,
    /// The open connections by number.
    sockets: Arc<Mutex<BTreeMap<usize, TcpStream>>>,
}

impl HostilePeer {
    /// Starts a server that hands each connection to `behave`, and closes it afterwards.
    pub(super) fn new(behave: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = Self {
            address,
            listener: listener.try_clone().unwrap(),
            connections: Arc::default(),
            sockets: Arc::default(),
        };
        let (behave, connections) = (Arc::new(behave), Arc::clone(&peer.connections));
        let sockets = Arc::clone(&peer.sockets);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let number = connections.fetch_add(1, SeqCst);
                sockets.lock().unwrap().insert(number, socket.try_clone().unwrap());
                let (behave, sockets) = (Arc::clone(&behave), Arc::clone(&sockets));
                thread::spawn(move || {
                    behave(socket);
                    // The last handle: the connection ends with it.
                    sockets.lock().unwrap().remove(&number);
                });
            }
        });
        peer
    }

    /// Returns how many connections there have been.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for HostilePeer {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        for socket in self.sockets.lock().unwrap().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Reads a request with its body, if it has one. Returns false at the end of the connection.
pub(super) fn read_request(stream: &mut impl Read) -> bool {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            _ => return false,
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return true;
        }
    }
}

/// Reads until the end of the connection.
pub(super) fn hold(stream: &mut impl Read) {
    let mut chunk = [0; 4096];
    while matches!(stream.read(&mut chunk), Ok(1..)) {}
}

/// Writes the bytes again and again, after a pause each, until the relay has closed.
pub(super) fn repeat(stream: &mut impl Write, bytes: impl AsRef<[u8]>, pause: Duration) {
    while stream.write_all(bytes.as_ref()).is_ok() {
        thread::sleep(pause);
    }
}

/// Writes the bytes one by one, slowly, and the last one again and again.
pub(super) fn drip(stream: &mut impl Write, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    repeat(stream, bytes.last_chunk::<1>().unwrap(), Duration::from_millis(10));
}

/// Makes the relay receive a reset instead of an orderly end when the connection ends.
pub(super) fn reset(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits of the good ones in an attacked relay and in one without hostile peers, taken in turns.
#[derive(Default)]
pub(super) struct Waits {
    attacked: Vec<Duration>,
    control: Vec<Duration>,
}

impl Waits {
    /// Adds the wait of one event in each relay.
    pub(super) fn add(&mut self, attacked: Duration, control: Duration) {
        self.attacked.push(attacked);
        self.control.push(control);
    }

    /// Checks that the good ones of the attacked relay hardly waited longer than the others.
    pub(super) fn assert_alike(mut self) {
        let (attacked, control) = (p90(&mut self.attacked), p90(&mut self.control));
        let bound = MAX_MORE_WAIT + control * MAX_WAIT_RATIO;
        assert!(attacked < bound, "{attacked:?} beside hostile peers, {control:?} without");
        println!("{attacked:?} beside hostile peers, {control:?} without");
    }
}

fn p90(waits: &mut [Duration]) -> Duration {
    waits.sort_unstable();
    waits[waits.len() * 9 / 10]
}

/// What a relay has used since the beginning of an attack.
pub(super) struct Usage<'a> {
    process: &'a Process,
    begin: Instant,
    processor_time: Duration,
    private_kib: u64,
    lines: usize,
    peak_kib: u64,
}

impl<'a> Usage<'a> {
    /// Begins to measure.
    pub(super) fn of(relay: &'a Relay) -> Self {
        let process = &relay.process;
        let private_kib = process.private_kib();
        Self {
            process,
            begin: Instant::now(),
            processor_time: process.processor_time(),
            private_kib,
            lines: process.stderr.so_far().len(),
            peak_kib: private_kib,
        }
    }

    /// Looks at the memory.
    pub(super) fn sample(&mut self) {
        self.peak_kib = self.peak_kib.max(self.process.private_kib());
    }

    /// Checks the use since the beginning: memory that grew by `max_kib` at most, a part of one
    /// processor, and `max_lines` of log.
    pub(super) fn assert_bounded(&self, max_kib: u64, max_cores: f64, max_lines: usize) {
        let used = self.process.processor_time().checked_sub(self.processor_time).unwrap();
        let cores = used.as_secs_f64() / self.begin.elapsed().as_secs_f64();
        let grown = self.peak_kib - self.private_kib;
        let lines = self.process.stderr.so_far().len() - self.lines;
        println!("{cores:.2} cores, {grown} KiB more, {lines} lines");
        assert!(cores < max_cores, "{cores:.2} processors");
        assert!(grown < max_kib, "{grown} KiB more");
        assert!(lines < max_lines, "{lines} lines of log, by message: {:?}", self.messages());
    }

    fn messages(&self) -> BTreeMap<String, usize> {
        let mut messages = BTreeMap::new();
        for line in self.process.stderr.so_far() {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            *messages.entry(line["message"].to_string()).or_default() += 1;
        }
        messages
    }
}

/// Runs `step` for the length of an attack.
pub(super) fn for_an_attack(mut step: impl FnMut(usize)) {
    let begin = Instant::now();
    for number in 0.. {
        step(number);
        if begin.elapsed() > ATTACK {
            break;
        }
        thread::sleep(EVENT_INTERVAL);
    }
    assert!(begin.elapsed() < ATTACK + TIMEOUT, "{:?}", begin.elapsed());
}

/// Length of an attack: several attempts of each hostile peer.
const ATTACK: Duration = Duration::from_secs(4);

/// Pause between two events of the good ones. Hostile receivers get them, too: each costs attempts.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// Waits that a busy machine adds to one relay and not to the other.
const MAX_MORE_WAIT: Duration = Duration::from_secs(2);

/// Waits grow alike in both relays when the machine is busy.
const MAX_WAIT_RATIO: u32 = 8;
