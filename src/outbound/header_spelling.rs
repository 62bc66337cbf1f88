//! Spelling of header names over HTTP/1.1.
//!
//! Out: request extensions by which hyper writes names as the contract spells them. Names are
//! case-insensitive (RFC 9110, section 5.1), and yet some receivers look for one
//! spelling. Title case is right for `X-Connector-Signature` and most others; Standard Webhooks
//! spells its own in lower case, and `Last-Event-ID` has two capitals at its end.
//!
//! May use: no other module.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request, Response,
    body::Incoming,
    http::Extensions,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use parking_lot::Mutex;

/// Returns the extensions of a request whose headers are to be spelled as the contract does.
///
/// The client must also set `title_case_headers`, which applies to every name that is not spelled
/// here. HTTP/2 ignores both: its names are in lower case.
pub(crate) fn contract_spelling() -> Extensions {
    static SPELLING: LazyLock<Extensions> = LazyLock::new(|| spelling_of(SPELLED));
    SPELLING.clone()
}

/// Returns the spelling of the header names in `head`.
///
/// hyper takes a spelling from an extension that only its own parser can make, so that a proxy can
/// pass one on. So its server reads `head` here, once, and its request's extensions are taken.
fn spelling_of(head: &'static [u8]) -> Extensions {
    let extensions = Mutex::new(Extensions::new());
    let service = service_fn(|request: Request<Incoming>| {
        *extensions.lock() = request.into_parts().0.extensions;
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let mut builder = http1::Builder::new();
    builder.preserve_header_case(true).header_read_timeout(None).keep_alive(false);
    let connection = pin!(builder.serve_connection(SpelledHead(head), service));
    // One poll reads everything: the bytes are there.
    let _ = connection.poll(&mut Context::from_waker(Waker::noop()));
    extensions.into_inner()
}

/// Connection that delivers one head and then ends. Written bytes are dropped.
struct SpelledHead(&'static [u8]);

impl Read for SpelledHead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for SpelledHead {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Names that are not in title case, in the form that hyper's parser reads.
const SPELLED: &[u8] = b"GET / HTTP/1.1\r\n\
    webhook-id: \r\n\
    webhook-timestamp: \r\n\
    webhook-signature: \r\n\
    Last-Event-ID: \r\n\
    \r\n";
