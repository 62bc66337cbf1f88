//! Scripted receiver on loopback: writes given bytes as its answer, and then does one of several
//! things.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// Action of a receiver after its answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum AfterAnswer {
    /// Waits for the next request.
    KeepOpen,
    /// Closes the connection.
    Close,
    /// Resets the connection.
    Reset,
    /// Keeps the connection open and writes nothing more.
    Hang,
    /// Writes one chunk after another.
    Endless,
}

/// A request as received: the head up to the empty line, and the body.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) head: String,
    pub(super) body: Bytes,
}

impl Received {
    /// Returns the value of a header, by its name in any case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1).next()
    }

    /// Returns the names of all headers as they were spelled.
    pub(super) fn names(&self) -> Vec<&str> {
        self.head.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect()
    }
}

#[derive(Debug, Default)]
struct ReceiverLog {
    connections: usize,
    closed: usize,
    requests: Vec<Received>,
}

/// Answers every request the same way, until it is dropped.
pub(super) struct ScriptedReceiver {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<ReceiverLog>>,
    _tasks: JoinSet<()>,
}

impl ScriptedReceiver {
    pub(super) async fn new(answer: impl Into<Bytes>, then: AfterAnswer) -> Self {
        Self::bind(Ipv4Addr::LOCALHOST, answer, then).await
    }

    pub(super) async fn bind(host: Ipv4Addr, answer: impl Into<Bytes>, then: AfterAnswer) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let (address, seen, answer) =
            (listener.local_addr().unwrap(), Arc::default(), answer.into());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&seen), answer, then));
        Self { address, seen, _tasks: tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/events?token=hush", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// Waits until the sender has closed all its connections.
    pub(super) async fn all_closed(&self) {
        let closed = async {
            loop {
                {
                    let seen = self.seen.lock().unwrap();
                    if seen.closed == seen.connections {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), closed).await.expect("the sender closes its connections");
    }
}

async fn accept(
    listener: TcpListener,
    seen: Arc<Mutex<ReceiverLog>>,
    answer: Bytes,
    then: AfterAnswer,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        seen.lock().unwrap().connections += 1;
        let (seen, answer) = (Arc::clone(&seen), answer.clone());
        connections.spawn(async move {
            serve(stream, &seen, &answer, then).await;
            seen.lock().unwrap().closed += 1;
        });
    }
}

async fn serve(mut stream: TcpStream, seen: &Mutex<ReceiverLog>, answer: &[u8], then: AfterAnswer) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        seen.lock().unwrap().requests.push(request);
        if stream.write_all(answer).await.is_err() {
            return;
        }
        match then {
            AfterAnswer::KeepOpen => {}
            AfterAnswer::Close => return,
            AfterAnswer::Reset => {
                return SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            AfterAnswer::Hang => while stream.read_u8().await.is_ok() {},
            AfterAnswer::Endless => while stream.write_all(&chunk()).await.is_ok() {},
        }
    }
}

/// Returns 4 KiB in the chunked coding.
fn chunk() -> Vec<u8> {
    [&b"1000\r\n"[..], &[b'x'; 4096], b"\r\n"].concat()
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Received> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        read_more(stream, buffer).await?;
    };
    let head = String::from_utf8(buffer.drain(..head_end).collect()).unwrap();
    let mut request = Received { head, body: Bytes::new() };
    let length: usize = request.header("content-length").unwrap().parse().unwrap();
    while buffer.len() < length {
        read_more(stream, buffer).await?;
    }
    request.body = buffer.drain(..length).collect();
    Some(request)
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(buffer).await.ok().filter(|read| *read > 0).map(|_| ())
}
