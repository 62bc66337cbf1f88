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
    ReloadableTls,
    tests::{certificate, client},
};

proptest! {
    #![proptest_config(Config { cases: 24, ..Config::default() })]

    #[test]
    fn accepted_bytes_arrive_complete_and_in_order(
        lengths in vec(vec(0_usize..40_000, 1..5), 1..12),
        reads in vec(1_usize..60_000, 1..8),
    ) {
        run_with_timeout(async {
            let (mut connection, mut client) = tls_pair().await;
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
                let pieces: Vec<Vec<u8>> =
                    pieces.into_iter().map(|length| bytes(sent.len(), length)).collect();
                let expected = pieces.concat();
                let mut taken = 0;
                while taken < expected.len() || connection.has_unsent_records() {
                    // From where the last write stopped, in as many slices as there were.
                    let (mut slices, mut before) = (Vec::new(), taken);
                    for piece in &pieces {
                        slices.push(IoSlice::new(&piece[before.min(piece.len())..]));
                        before = before.saturating_sub(piece.len());
                    }
                    match connection.try_write(&slices) {
                        Ok(written) => taken += written.accepted_bytes,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::WouldBlock);
                            connection.socket().unwrap().writable().await.unwrap();
                        }
                    }
                }
                sent.extend_from_slice(&expected);
            }
            drop(connection);
            assert!(reader.join().unwrap() == sent, "what arrived is not what was taken");
        });
    }
}

#[test]
fn a_socket_that_is_full_takes_nothing_and_nothing_is_lost() {
    run_with_timeout(async {
        let (mut connection, mut client) = tls_pair().await;
        let piece = bytes(0, 10_000);
        let (mut taken, mut sent) = (0, 0);
        let error = loop {
            match connection.try_write(&[IoSlice::new(&piece[taken % piece.len()..])]) {
                Ok(written) => {
                    (taken, sent) = (taken + written.accepted_bytes, sent + written.sent_bytes);
                }
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), connection.has_unsent_records()), (ErrorKind::WouldBlock, true));
        assert!(
            taken + MAX_UNSENT_RECORD_BYTES > sent && sent + MAX_UNSENT_RECORD_BYTES > taken,
            "{taken} taken, {sent} sent"
        );
        let reader = std::thread::spawn(move || {
            let mut arrived = vec![0; taken];
            client.read_exact(&mut arrived).map(|()| arrived)
        });
        while connection.has_unsent_records() {
            connection.socket().unwrap().writable().await.unwrap();
            match connection.try_write(&[]) {
                Ok(written) => assert_eq!(written.accepted_bytes, 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let arrived = reader.join().unwrap().unwrap();
        assert!(arrived.chunks(piece.len()).all(|chunk| chunk == &piece[..chunk.len()]));
    });
}

#[test]
fn input_of_the_client_is_counted_and_discarded_until_it_closes() {
    run_with_timeout(async {
        for sends_close_notify in [true, false] {
            let (mut connection, mut client) = tls_pair().await;
            assert_eq!(
                connection.try_discard_input(&mut false).unwrap_err().kind(),
                ErrorKind::WouldBlock
            );
            client.write_all(&bytes(0, 50_000)).unwrap();
            let mut discarded = 0;
            while discarded < 50_000 {
                discarded += discard_more(&mut connection).await.unwrap();
            }
            assert!(discarded < 51_000, "{discarded}");
            if sends_close_notify {
                client.conn.send_close_notify();
                client.flush().unwrap();
            } else {
                client.sock.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(discard_more(&mut connection).await.unwrap(), 0);
            assert_eq!(discard_more(&mut connection).await.unwrap(), 0, "it stays so");
        }
    });
}

#[test]
fn a_broken_record_is_an_error_and_its_sender_gets_an_alert() {
    run_with_timeout(async {
        let (mut connection, mut client) = tls_pair().await;
        client.sock.write_all(&[23, 3, 3, 0, 20]).unwrap();
        client.sock.write_all(&[0; 20]).unwrap();
        let error = loop {
            if let Err(error) = discard_more(&mut connection).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(connection);
        let alert = client.read(&mut [0]).unwrap_err().to_string();
        assert!(alert.contains("BadRecordMac"), "{alert}");
    });
}

#[test]
fn a_key_update_of_the_client_is_answered_and_the_stream_continues() {
    run_with_timeout(async {
        let (mut connection, mut client) = tls_pair().await;
        client.conn.refresh_traffic_keys().unwrap();
        client.flush().unwrap();
        assert!(discard_more(&mut connection).await.unwrap() > 0);
        while connection.has_unsent_records() {
            assert_eq!(connection.try_write(&[]).unwrap().accepted_bytes, 0);
        }
        let written = connection.try_write(&[IoSlice::new(b"on"), IoSlice::new(b"ward")]).unwrap();
        assert_eq!((written.accepted_bytes, connection.has_unsent_records()), (6, false));
        let mut arrived = [0; 6];
        client.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"onward");
        client.write_all(b"!").unwrap();
        assert!(discard_more(&mut connection).await.unwrap() > 0, "with the new keys, too");
    });
}

#[test]
fn dropping_a_tls_connection_sends_close_notify() {
    run_with_timeout(async {
        let (mut connection, mut client) = tls_pair().await;
        assert_eq!(connection.try_write(&[IoSlice::new(b"last")]).unwrap().accepted_bytes, 4);
        drop(connection);
        let mut arrived = Vec::new();
        // An end without close_notify is an error to rustls.
        client.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, b"last");
    });
}

#[test]
fn without_tls_bytes_are_sent_as_they_are() {
    run_with_timeout(async {
        let (server, mut client) = sockets();
        server.writable().await.unwrap(); // its runtime finds out
        let mut connection = DetachedConnection::new(
            AcceptedSocket { stream: server, permit: ConnectionPermit::uncounted() },
            None,
        );
        let written = connection.try_write(&[IoSlice::new(b"a"), IoSlice::new(b"bc")]).unwrap();
        assert_eq!(
            (written, connection.has_unsent_records()),
            (Written { accepted_bytes: 3, sent_bytes: 3 }, false)
        );
        let mut arrived = [0; 3];
        client.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"abc");
        client.write_all(b"what?").unwrap();
        assert_eq!(discard_more(&mut connection).await.unwrap(), 5);
        drop(client);
        assert_eq!(discard_more(&mut connection).await.unwrap(), 0);
    });
}

/// Waits for the client's next bytes and discards them.
async fn discard_more(connection: &mut DetachedConnection) -> io::Result<usize> {
    loop {
        match connection.try_discard_input(&mut false) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                connection.socket()?.readable().await?;
            }
            discarded => return discarded,
        }
    }
}

/// Returns a connection after its handshake, as hyper releases it, and its blocking client.
async fn tls_pair() -> (DetachedConnection, StreamOwned<ClientConnection, StdStream>) {
    let (server, client) = sockets();
    let (stream, session, client) = shake_hands(server, client).await;
    (
        DetachedConnection::new(
            AcceptedSocket { stream, permit: ConnectionPermit::uncounted() },
            Some(session),
        ),
        client,
    )
}

/// Performs a TLS handshake between two connected sockets.
pub(crate) async fn shake_hands(
    server: TcpStream,
    client: StdStream,
) -> (TcpStream, TlsSession, StreamOwned<ClientConnection, StdStream>) {
    let (tls, trusting) = shared_identity();
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

/// Returns a listener's TLS, and the configuration of a client that trusts it.
fn shared_identity() -> (Arc<ReloadableTls>, Arc<ClientConfig>) {
    static IDENTITY: LazyLock<(Arc<ReloadableTls>, Arc<ClientConfig>)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = certificate(folder.path());
        (
            Arc::new(ReloadableTls::new(&files.read().unwrap()).unwrap()),
            client(&files.cert_file, "http/1.1"),
        )
    });
    IDENTITY.clone()
}

fn sockets() -> (TcpStream, StdStream) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(DETACHED_TEST_TIMEOUT)).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (TcpStream::from_std(server).unwrap(), client)
}

/// Returns bytes of which no two neighbourhoods are alike.
fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|n| (n ^ (n >> 8) ^ (n >> 15)) as u8).collect()
}

fn run_with_timeout(work: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        timeout(DETACHED_TEST_TIMEOUT, work).await.expect("the test ends in time");
    });
}

/// The most that rustls may hold: a record's worth of plaintext, and the records made of it.
const MAX_UNSENT_RECORD_BYTES: usize = 20_000;

const DETACHED_TEST_TIMEOUT: Duration = Duration::from_secs(15);
