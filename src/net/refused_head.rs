//! Bodies for hyper's own answers to request heads that it rejects.
//!
//! In: the bytes that hyper reads and writes on one connection. Out: the same bytes, but a refusal
//! of hyper's own, which has no body, becomes a problem (RFC 9457). hyper writes it before there is
//! a request, so no router can answer instead, and it has no hook for its form. The bytes read are
//! shown to `request_framing`.
//!
//! May use: no other module.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection_limit::AcceptedSocket, detach::ConnectionState, detached::Detachable,
    request_framing::RequestFraming, tls::TlsSession,
};

/// Transport of an HTTP/1.1 connection, between hyper and the socket.
#[derive(Debug)]
pub(super) struct RefusalIo<I> {
    io: I,
    framing: RequestFraming,
    /// Unwritten rest of the problem that replaces hyper's refusal.
    problem: Bytes,
    state: Arc<ConnectionState>,
}

impl<I> RefusalIo<I> {
    pub(super) fn new(io: I, state: Arc<ConnectionState>) -> Self {
        Self { io, framing: RequestFraming::new(), problem: Bytes::new(), state }
    }

    /// Replaces a refusal of hyper's own by a problem, which is written instead.
    fn intercept(&mut self, bytes: &[u8]) {
        if self.problem.is_empty()
            && let Some(problem) = problem_instead_of(bytes, self.framing.is_in_target())
        {
            self.problem = problem;
            // hyper stops in the midst of the head, or before a body that it cannot delimit: the
            // client may go on sending for as long as it likes, and no request has set the mark.
            self.state.unread_body.set();
        }
    }
}

impl<I: AsyncWrite + Unpin> RefusalIo<I> {
    /// Writes what is left of the problem.
    ///
    /// hyper keeps its own refusal, and writes it again, until this is ready: only then does
    /// `poll_write` report its bytes as written.
    fn poll_problem(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.problem.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.problem))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.problem.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Detachable> Detachable for RefusalIo<I> {
    fn into_detached(self) -> (AcceptedSocket, Option<TlsSession>) {
        self.io.into_detached()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for RefusalIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let this = &mut *self;
        let new = buffer.filled().get(before..).unwrap_or_default();
        this.framing.observe(new, &this.state.framing);
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for RefusalIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.intercept(bytes);
        if !self.problem.is_empty() {
            ready!(self.poll_problem(context))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal has no body, so it is alone.
        if let [head] = slices {
            self.intercept(head);
            if !self.problem.is_empty() {
                ready!(self.poll_problem(context))?;
                return Poll::Ready(Ok(head.len()));
            }
        }
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Returns the problem for a refusal of hyper's own: a whole head of status 400, 414 or 431 that
/// announces no body and has no type. Every answer of a route has a type.
fn problem_instead_of(head: &[u8], is_in_target: bool) -> Option<Bytes> {
    if !head.starts_with(b"HTTP/1.") || !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?;
    let fields = || text.split("\r\n").skip(1);
    let has = |name: &str| fields().any(|line| line.to_ascii_lowercase().starts_with(name));
    if !has("content-length: 0") || has("content-type:") {
        return None;
    }
    let (status, title, detail) = match (status, is_in_target) {
        ("400", _) => (400, "Bad Request", "this is no request of HTTP/1.1"),
        // hyper says so as well when its buffer is full of a target alone.
        ("414", _) | ("431", true) => (414, "URI Too Long", TARGET_TOO_LONG),
        ("431", _) => (431, "Request Header Fields Too Large", HEAD_TOO_LARGE),
        _ => return None,
    };
    let body = format!(
        r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":"{detail}"}}"#
    );
    let date = fields().find(|line| line.to_ascii_lowercase().starts_with("date:"));
    let date = date.map(|line| format!("{line}\r\n")).unwrap_or_default();
    let problem = format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\
         content-length: {}\r\n{date}\r\n{body}",
        body.len()
    );
    Some(problem.into())
}

/// Says what to do instead, as the problem of a shorter target does; see `http::problem`.
const TARGET_TOO_LONG: &str = "a path and query may have 60 KiB here: for a longer filter open \
    the WebSocket and send its subscribe message";

const HEAD_TOO_LARGE: &str =
    "the method and the header fields may have 16 KiB together, and be a hundred";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::timer_wheel::TimerWheel;

    const REFUSAL: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\n\
        connection: close\r\ncontent-length: 0\r\ndate: Mon, 30 Nov 2026 00:00:00 GMT\r\n\r\n";

    /// Returns what a client that has sent `request` gets when hyper writes `answer`.
    async fn relayed(request: &str, answer: &str) -> String {
        let (mut client, server) = tokio::io::duplex(16); // so that writes are in parts
        let mut io = RefusalIo::new(server, Arc::new(ConnectionState::new(&TimerWheel::new())));
        let exchange = async {
            let mut read = vec![0; request.len()];
            io.read_exact(&mut read).await.unwrap();
            io.write_all(answer.as_bytes()).await.unwrap();
            drop(io);
        };
        let peer = async {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut got = String::new();
            client.read_to_string(&mut got).await.unwrap();
            got
        };
        tokio::join!(exchange, peer).1
    }

    #[tokio::test]
    async fn a_refusal_of_hypers_own_becomes_a_problem() {
        for (request, status) in [
            ("GET / HTTP/1.1\r\nX: xxxxxxxxxxxxxxxxxxxxxxx", 431),
            ("\r\nGET /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 414),
            ("GETGETGETGETGETGETGET", 431),
        ] {
            let got = relayed(request, REFUSAL).await;
            let (head, body) = got.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            assert!(head.contains("application/problem+json") && head.contains("date: Mon, 30"));
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(problem["status"], status, "{request}");
        }
    }

    #[tokio::test]
    async fn every_other_answer_passes_unchanged() {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 400 Bad Request\r\ncontent-type: a/b\r\ncontent-length: 0\r\n\r\n".to_owned(),
            REFUSAL.replace("length: 0", "length: 1") + "x",
            "data: HTTP/1.1 431 x\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ] {
            assert_eq!(relayed("GET / HTTP/1.1\r\n\r\n", &answer).await, answer);
        }
    }
}
