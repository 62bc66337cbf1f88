//! Body of a page: sends it in copied pieces, within a deadline of its own.
//!
//! In: the page's JSON and its quota permit. Out: pieces for hyper. The permit is returned when the
//! body is dropped, which is after the last piece, or when the client has taken too long.
//!
//! May use: `net`, `timer_wheel`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::{
    http::memory_quota::QuotaPermit,
    net::{Exemption, ForcedClose, Http2StreamState},
    timer_wheel::{Deadline, TimerWheel},
};

/// Page on its way to the client.
///
/// The pieces are copies. A piece that shares the page's buffer would keep the whole page in memory
/// for as long as it waits in the connection's write buffer, which is up to the client, while the
/// permit is returned with the body.
pub(super) struct PageBody {
    json: Bytes,
    /// State of the HTTP/2 stream; `None` over HTTP/1.1, where the socket has a write deadline.
    stream_state: Option<Arc<Http2StreamState>>,
    /// Deadline that cuts the exchange off while hyper does not poll this body.
    forced_close: Arc<ForcedClose>,
    wheel: Arc<TimerWheel>,
    /// Tick of the wheel by which the page must have been taken.
    send_due: Deadline,
    _permit: QuotaPermit,
    _exemption: Option<Exemption>,
}

impl PageBody {
    pub(super) fn new(
        json: Vec<u8>,
        permit: QuotaPermit,
        wheel: &Arc<TimerWheel>,
        forced_close: Arc<ForcedClose>,
        stream_state: Option<Arc<Http2StreamState>>,
    ) -> Self {
        let send_due = wheel.deadline_after(PAGE_SEND_TIMEOUT);
        // The body checks the deadline only when it is polled; the forced close covers the time in
        // which the client takes nothing and it is not.
        forced_close.schedule_at(send_due);
        Self {
            json: json.into(),
            stream_state,
            forced_close,
            wheel: Arc::clone(wheel),
            send_due,
            _permit: permit,
            _exemption: None,
        }
    }

    /// Keeps the connection from giving way to a newcomer until the page is sent.
    pub(super) fn with_exemption(mut self, exemption: Exemption) -> Self {
        self._exemption = Some(exemption);
        self
    }
}

impl Drop for PageBody {
    fn drop(&mut self) {
        // Over HTTP/1.1 the connection is reused: the next exchange must not inherit this deadline.
        self.forced_close.cancel();
    }
}

/// The client has taken too long.
///
/// An error and not an end: a body that simply ended would hide that a part is missing.
#[derive(Debug, thiserror::Error)]
#[error("the page was not taken in time")]
pub(super) struct PageSendTimeout;

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = PageSendTimeout;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PageSendTimeout>>> {
        // `false`: the body never waits, so the stream is not idle while it is polled.
        if let Some(stream_state) = &self.stream_state {
            stream_state.record_body_poll(false);
        }
        // A page whose last piece has been handed to hyper is complete, even if that was late.
        if self.send_due.is_over(&self.wheel) && !self.json.is_empty() {
            return Poll::Ready(Some(Err(PageSendTimeout)));
        }
        let bytes = self.json.len().min(PAGE_CHUNK_BYTES);
        let piece = self.json.split_to(bytes);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.json.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.json.len() as u64)
    }
}

/// Enough for the largest page over a bad mobile link; it ends a client that takes its page byte by
/// byte, which `write_timeout` alone does not, since each byte is progress.
const PAGE_SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of one piece: as much as is gathered for one write.
const PAGE_CHUNK_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{client_address::ClientAddress, http::memory_quota::PageQuota};

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_not_taken_in_time_breaks_off_however_it_is_taken() {
        let (wheel, stop) = (TimerWheel::new(), CancellationToken::new());
        let turning = tokio::spawn({
            let (wheel, stop) = (Arc::clone(&wheel), stop.clone());
            async move { wheel.run(stop).await }
        });
        let forced_close = ForcedClose::new(&wheel);
        let permit = PageQuota::default().permit_for(ClientAddress::new([192, 0, 2, 1].into()));
        let body = PageBody::new(
            vec![b' '; PAGE_CHUNK_BYTES * 10],
            permit,
            &wheel,
            Arc::clone(&forced_close),
            None,
        );
        let mut body = Box::pin(body);
        let due = forced_close.deadline(std::task::Waker::noop());
        assert_eq!(due, wheel.deadline_after(PAGE_SEND_TIMEOUT), "while it is blocked");
        let mut taken = 0;
        let late = loop {
            match body.frame().await.expect("it has no end") {
                Ok(_) => taken += 1,
                Err(late) => break late,
            }
            tokio::time::sleep(PAGE_SEND_TIMEOUT / 5).await;
        };
        assert!((5..=6).contains(&taken), "{taken} pieces, then {late}");
        drop(body);
        assert!(
            forced_close.deadline(std::task::Waker::noop()) > due,
            "what follows on the connection has its own time"
        );
        stop.cancel();
        turning.await.unwrap();
    }
}
