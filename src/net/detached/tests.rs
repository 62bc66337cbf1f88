use std::{
    net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream},
    sync::{Arc, LazyLock},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, test_runner::Config};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use tokio::time::timeout;

use super::*;
use crate::net::{
    Tls,
    tests::{certificate, client},
};

proptest! {
    #![proptest_config(Config { cases: 24, ..Config::default() })]

    #[test]
    fn what_was_taken_arrives_whole_and_in_order(lengths in vec(vec(0_usize..40_000, 1..5), 1..12), reads in vec(1_usize..60_000, 1..8)) {
        within(async {
            let (mut wire, mut client) = pair().await;
            let mut sent = Vec::new();
            let reader = std::thread::spawn(move || {
                let (mut arrived, mut sizes) = (Vec::new(), reads.into_iter().cycle());
                let mut buffer = vec![0; 60_000];
                while let Ok(count @ 1..) = client.read(&mut buffer[..sizes.next().unwrap()]) {
                    arrived.extend_from_slice(&buffer[..count]);
                }
                arrived
            });
            for pieces in lengths {
                let pieces: Vec<Vec<u8>> = pieces.into_iter().map(|length| bytes(sent.len(), length)).collect();
                let whole = pieces.concat();
                let mut taken = 0;
                while taken < whole.len() || wire.owes() {
                    // From where it stopped, in as many slices as there were.
                    let (mut slices, mut before) = (Vec::new(), taken);
                    for piece in &pieces {
                        slices.push(IoSlice::new(&piece[before.min(piece.len())..]));
                        before = before.saturating_sub(piece.len());
                    }
                    match wire.try_write(&slices) {
                        Ok(written) => taken += written.taken,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::WouldBlock);
                            wire.socket().writable().await.unwrap();
                        }
                    }
                }
                sent.extend_from_slice(&whole);
            }
            drop(wire);
            assert!(reader.join().unwrap() == sent, "what arrived is not what was taken");
        });
    }
}

#[test]
fn a_socket_that_is_full_takes_nothing_and_nothing_is_lost() {
    within(async {
        let (mut wire, mut client) = pair().await;
        let piece = bytes(0, 10_000);
        let (mut taken, mut sent) = (0, 0);
        let error = loop {
            match wire.try_write(&[IoSlice::new(&piece[taken % piece.len()..])]) {
                Ok(written) => (taken, sent) = (taken + written.taken, sent + written.sent),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), wire.owes()), (ErrorKind::WouldBlock, true));
        assert!(taken + MOST_OWED > sent && sent + MOST_OWED > taken, "{taken} taken, {sent} sent");
        let reader = std::thread::spawn(move || {
            let mut arrived = vec![0; taken];
            client.read_exact(&mut arrived).map(|()| arrived)
        });
        while wire.owes() {
            wire.socket().writable().await.unwrap();
            match wire.try_write(&[]) {
                Ok(written) => assert_eq!(written.taken, 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let arrived = reader.join().unwrap().unwrap();
        assert!(arrived.chunks(piece.len()).all(|chunk| chunk == &piece[..chunk.len()]));
    });
}

#[test]
fn what_the_client_says_is_counted_and_forgotten_until_it_hangs_up() {
    within(async {
        for ends_with_a_word in [true, false] {
            let (mut wire, mut client) = pair().await;
            assert_eq!(wire.try_hear(&mut false).unwrap_err().kind(), ErrorKind::WouldBlock);
            client.write_all(&bytes(0, 50_000)).unwrap();
            let mut heard = 0;
            while heard < 50_000 {
                heard += hear_more(&mut wire).await.unwrap();
            }
            assert!(heard < 51_000, "{heard}");
            if ends_with_a_word {
                client.conn.send_close_notify();
                client.flush().unwrap();
            } else {
                client.sock.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(hear_more(&mut wire).await.unwrap(), 0);
            assert_eq!(hear_more(&mut wire).await.unwrap(), 0, "it stays so");
        }
    });
}

#[test]
fn a_broken_record_is_an_error_and_its_sender_is_told() {
    within(async {
        let (mut wire, mut client) = pair().await;
        client.sock.write_all(&[23, 3, 3, 0, 20]).unwrap();
        client.sock.write_all(&[0; 20]).unwrap();
        let error = loop {
            if let Err(error) = hear_more(&mut wire).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(wire);
        let told = client.read(&mut [0]).unwrap_err().to_string();
        assert!(told.contains("BadRecordMac"), "{told}");
    });
}

#[test]
fn new_keys_that_the_client_asks_for_are_answered_and_the_stream_goes_on() {
    within(async {
        let (mut wire, mut client) = pair().await;
        client.conn.refresh_traffic_keys().unwrap();
        client.flush().unwrap();
        assert!(hear_more(&mut wire).await.unwrap() > 0);
        while wire.owes() {
            assert_eq!(wire.try_write(&[]).unwrap().taken, 0);
        }
        let written = wire.try_write(&[IoSlice::new(b"on"), IoSlice::new(b"ward")]).unwrap();
        assert_eq!((written.taken, wire.owes()), (6, false));
        let mut arrived = [0; 6];
        client.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"onward");
        client.write_all(b"!").unwrap();
        assert!(hear_more(&mut wire).await.unwrap() > 0, "with the new keys, too");
    });
}

#[test]
fn whoever_ends_a_connection_says_so() {
    within(async {
        let (mut wire, mut client) = pair().await;
        assert_eq!(wire.try_write(&[IoSlice::new(b"last")]).unwrap().taken, 4);
        drop(wire);
        let mut arrived = Vec::new();
        // An end without a word is an error to rustls.
        client.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, b"last");
    });
}

#[test]
fn without_tls_bytes_are_sent_as_they_are() {
    within(async {
        let (server, mut client) = sockets();
        server.writable().await.unwrap(); // its runtime finds out
        let mut wire = Wire::new(Socket { stream: server, place: Place::of_nobody() }, None);
        let written = wire.try_write(&[IoSlice::new(b"a"), IoSlice::new(b"bc")]).unwrap();
        assert_eq!((written, wire.owes()), (Written { taken: 3, sent: 3 }, false));
        let mut arrived = [0; 3];
        client.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"abc");
        client.write_all(b"what?").unwrap();
        assert_eq!(hear_more(&mut wire).await.unwrap(), 5);
        drop(client);
        assert_eq!(hear_more(&mut wire).await.unwrap(), 0);
    });
}

/// Waits for what the client says next.
async fn hear_more(wire: &mut Wire) -> io::Result<usize> {
    loop {
        match wire.try_hear(&mut false) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => wire.socket().readable().await?,
            heard => return heard,
        }
    }
}

/// A connection that has shaken hands, as hyper lets go of it, and its client, which blocks.
async fn pair() -> (Wire, StreamOwned<ClientConnection, StdStream>) {
    let (server, client) = sockets();
    let (stream, session, client) = shake_hands(server, client).await;
    (Wire::new(Socket { stream, place: Place::of_nobody() }, Some(session)), client)
}

/// Makes TLS of two sockets that are connected.
pub(crate) async fn shake_hands(
    server: TcpStream,
    client: StdStream,
) -> (TcpStream, Session, StreamOwned<ClientConnection, StdStream>) {
    let (tls, trusting) = identity();
    let client = std::thread::spawn(move || {
        let name = ServerName::from(client.peer_addr().unwrap().ip());
        let mut client = StreamOwned::new(ClientConnection::new(trusting, name).unwrap(), client);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock).unwrap();
        }
        client
    });
    let (server, session) = tls.accept(server).await.unwrap().into_inner();
    (server, Box::new(session), client.join().unwrap())
}

/// What a listener shows, and what a client that trusts it is configured with.
fn identity() -> (Arc<Tls>, Arc<ClientConfig>) {
    static IDENTITY: LazyLock<(Arc<Tls>, Arc<ClientConfig>)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = certificate(folder.path());
        (Arc::new(Tls::new(&files.read().unwrap()).unwrap()), client(&files.cert_file, "http/1.1"))
    });
    IDENTITY.clone()
}

fn sockets() -> (TcpStream, StdStream) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (TcpStream::from_std(server).unwrap(), client)
}

/// Bytes of which no two neighbourhoods are alike.
fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|n| (n ^ (n >> 8) ^ (n >> 15)) as u8).collect()
}

fn within(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE, work).await.expect("it comes to its end") });
}

/// What rustls may hold: a record's worth, and what makes records of it.
const MOST_OWED: usize = 20_000;

const PATIENCE: Duration = Duration::from_secs(15);
