//! HTTP/2 receivers that send frames without end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::{io::AsyncWriteExt, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{
    frames::{ACK, END_HEADERS, HEADERS, PING, SETTINGS, frame},
    secure::{TestCertificate, sender_to},
    *,
};

/// Makes an attempt at a receiver that sends `flood` again and again from the first request on.
/// Returns the attempt, and how many bytes of the flood the sender took.
async fn attempt_at_flood(flood: &[u8]) -> (Attempt, u64) {
    let certificate = TestCertificate::new();
    let acceptor = TlsAcceptor::from(Arc::new(certificate.server(&["h2"])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (taken, flood) = (Arc::new(AtomicU64::new(0)), flood.repeat(100));
    let counted = Arc::clone(&taken);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(socket).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        // The preface and the frames of the request.
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        while stream.write_all(&flood).await.is_ok() {
            counted.fetch_add(u64::try_from(flood.len()).unwrap(), Relaxed);
        }
        std::future::pending::<()>().await;
    });
    let sender = sender_to(address, "receiver.test", Some(&certificate), "timeout = '20s'");
    let attempt = post(&sender).await.0;
    (attempt, taken.load(Relaxed))
}

#[tokio::test]
async fn a_flood_over_http2_fails_the_attempt_long_before_its_timeout() {
    let floods = [
        ("interim answers", frame(HEADERS, END_HEADERS, 1, b"\x08\x03103")),
        ("pings", frame(PING, 0, 0, b"whatever")),
        ("replies", frame(PING, ACK, 0, b"whatever")),
        ("settings", frame(SETTINGS, 0, 0, b"")),
        ("unknown frames", frame(0x55, 0, 0, b"")),
    ];
    for (what, flood) in floods {
        let (attempt, taken) = attempt_at_flood(&flood).await;
        assert_eq!(attempt.outcome, Outcome::Failed, "{what}: {attempt:?}");
        let error = attempt.error.as_deref().unwrap_or_default();
        assert!(error.contains("more than 128 KiB"), "{what}: {error}");
        // What the kernel holds comes on top.
        assert!(taken < 16 * 1024 * 1024, "{what}: {taken} bytes");
    }
}
