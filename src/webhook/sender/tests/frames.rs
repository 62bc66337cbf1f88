//! HTTP/2 receivers, frame by frame: requests that are not processed, and answers that are cut off.

use std::{collections::VecDeque, net::SocketAddr, sync::Mutex};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    secure::{TestCertificate, sender_to},
    *,
};

/// Answer to one request.
#[derive(Clone, Copy, Debug)]
enum StreamAnswer {
    /// With status 200.
    Accept,
    /// Sends RST_STREAM with this code.
    Reset(u32),
    /// Sends a head of status 200, and then RST_STREAM with this code.
    HeadThenReset(u32),
    /// With a head of status 200, of which the body never comes.
    HeadThenHang,
    /// With a head of status 200; then the connection is closed.
    HeadThenClose,
    /// Sends GOAWAY with this code and a last stream below the request's.
    GoAwayBelow(u32),
    /// Sends GOAWAY with the request's stream as the last one, and closes the connection.
    GoAwayAfter,
}

use StreamAnswer::{
    Accept, GoAwayAfter, GoAwayBelow, HeadThenClose, HeadThenHang, HeadThenReset, Reset,
};

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Receiver that answers the first requests by a script, and accepts all later ones.
struct FrameReceiver {
    address: SocketAddr,
    log: Arc<Mutex<FrameLog>>,
    certificate: TestCertificate,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct FrameLog {
    answers: VecDeque<StreamAnswer>,
    requests: usize,
    connections: usize,
}

impl FrameReceiver {
    async fn new(answers: impl IntoIterator<Item = StreamAnswer>) -> Self {
        let certificate = TestCertificate::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(certificate.server(&["h2"])));
        let log = FrameLog { answers: answers.into_iter().collect(), ..FrameLog::default() };
        let log = Arc::new(Mutex::new(log));
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&log));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = listener.accept().await.unwrap().0;
                let (acceptor, log) = (acceptor.clone(), Arc::clone(&shared));
                log.lock().unwrap().connections += 1;
                connections.spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    serve_frames(stream, &log).await;
                });
            }
        });
        Self { address, log, certificate, _tasks: tasks }
    }

    fn sender(&self) -> WebhookSender {
        sender_to(self.address, "receiver.test", Some(&self.certificate), "timeout = '20s'")
    }

    /// Returns how many requests and connections there were.
    fn counts(&self) -> (usize, usize) {
        let log = self.log.lock().unwrap();
        (log.requests, log.connections)
    }
}

/// Answers the requests of one connection until either side ends it.
async fn serve_frames<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, log: &Mutex<FrameLog>) {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).await.is_err() {
        return;
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let is_request = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        let answer = match kind {
            SETTINGS | PING if flags & ACK == 0 => frame(
                kind,
                ACK,
                0,
                match kind {
                    PING => &payload,
                    _ => &[],
                },
            ),
            _ if is_request => {
                let answer = {
                    let mut log = log.lock().unwrap();
                    log.requests += 1;
                    log.answers.pop_front().unwrap_or(Accept)
                };
                match answer {
                    // Static entry 8 of HPACK: `:status: 200`.
                    Accept => frame(HEADERS, END_STREAM | END_HEADERS, id, &[0x88]),
                    HeadThenHang => frame(HEADERS, END_HEADERS, id, &[0x88]),
                    HeadThenReset(code) => [
                        frame(HEADERS, END_HEADERS, id, &[0x88]),
                        frame(RST_STREAM, 0, id, &code.to_be_bytes()),
                    ]
                    .concat(),
                    HeadThenClose => {
                        let head = frame(HEADERS, END_HEADERS, id, &[0x88]);
                        stream.write_all(&head).await.unwrap();
                        return stream.flush().await.unwrap();
                    }
                    Reset(code) => frame(RST_STREAM, 0, id, &code.to_be_bytes()),
                    GoAwayBelow(code) => go_away(id.saturating_sub(2), code),
                    GoAwayAfter => {
                        stream.write_all(&go_away(id, NO_ERROR)).await.unwrap();
                        return stream.shutdown().await.unwrap();
                    }
                }
            }
            _ => continue,
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(super) const ACK: u8 = 1;
const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

#[tokio::test]
async fn an_unprocessed_request_is_sent_again_within_the_attempt() {
    for (answers, connections) in [
        (vec![Reset(REFUSED_STREAM)], 1),
        (vec![Accept, Reset(REFUSED_STREAM), Reset(REFUSED_STREAM)], 1),
        (vec![GoAwayBelow(NO_ERROR)], 2),
        (vec![Accept, GoAwayBelow(NO_ERROR)], 2),
        (vec![Accept, GoAwayBelow(ENHANCE_YOUR_CALM), GoAwayBelow(NO_ERROR)], 3),
        (vec![GoAwayBelow(NO_ERROR), Reset(REFUSED_STREAM)], 2),
    ] {
        let receiver = FrameReceiver::new(answers.clone()).await;
        let sender = receiver.sender();
        for _ in 0..2 {
            let (attempt, disposition) = post(&sender).await;
            assert_eq!(disposition, Disposition::Accepted, "{answers:?}: {attempt:?}");
        }
        let accepted = answers.iter().filter(|answer| matches!(answer, Accept)).count();
        let requests = answers.len() - accepted + 2;
        assert_eq!(receiver.counts(), (requests, connections), "{answers:?}");
    }
}

#[tokio::test]
async fn a_success_is_one_by_its_head_over_http2_too() {
    for answer in
        [HeadThenReset(INTERNAL_ERROR), HeadThenReset(REFUSED_STREAM), HeadThenHang, HeadThenClose]
    {
        let receiver = FrameReceiver::new([answer; 2]).await;
        let sender = receiver.sender();
        for requests in 1..=2 {
            let (attempt, disposition) = post(&sender).await;
            assert_eq!(
                (attempt.status, disposition),
                (Some(200), Disposition::Accepted),
                "{answer:?}: {attempt:?}"
            );
            assert!(attempt.duration_ms < 5000, "{answer:?}: {}", attempt.duration_ms);
            assert_eq!(receiver.counts().0, requests, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn all_slots_together_get_through_a_connection_that_goes_away() {
    let receiver = FrameReceiver::new([GoAwayBelow(NO_ERROR)]).await;
    let sender = receiver.sender();
    let posts = tokio::join!(post(&sender), post(&sender), post(&sender), post(&sender));
    for (attempt, disposition) in [posts.0, posts.1, posts.2, posts.3] {
        assert_eq!(disposition, Disposition::Accepted, "{attempt:?}");
    }
}

#[tokio::test]
async fn a_possibly_processed_request_counts_as_an_attempt() {
    for answer in [Reset(CANCEL), Reset(NO_ERROR), GoAwayAfter] {
        let receiver = FrameReceiver::new([answer]).await;
        let sender = receiver.sender();
        let (attempt, disposition) = post(&sender).await;
        assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY), "{answer:?}");
        assert_eq!(receiver.counts().0, 1, "{answer:?}");
        assert_eq!(post(&sender).await.1, Disposition::Accepted, "{answer:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_refuses_for_ever_costs_an_attempt_in_the_end() {
    let receiver = FrameReceiver::new([Reset(REFUSED_STREAM); 1000]).await;
    let (attempt, disposition) = post(&receiver.sender()).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
    assert!(attempt.error.unwrap().contains("REFUSED_STREAM"));
    assert_eq!(receiver.counts(), (MAX_RESENDS + 1, 1));
}
