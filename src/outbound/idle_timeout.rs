//! A stream that fails when its peer has sent nothing for longer than any attempt lasts, or more
//! than its requests allow.
//!
//! In: a stream and a budget. Out: the same stream, with an error where it would wait for ever.
//! hyper writes the rest of a request before it closes a connection, even when the caller of the
//! request has given up: an endpoint that reads a byte now and then would keep one more connection
//! with each attempt. After its deadline an attempt reads nothing, so silence is what all such
//! connections have in common.
//!
//! May use: no other module.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};

use super::answer_budget::AnswerBudget;

/// Stream that fails once nothing was read for `idle_timeout`, or more than `budget` has.
#[derive(Debug)]
pub(crate) struct IdleTimeoutStream<S> {
    stream: S,
    budget: Arc<AnswerBudget>,
    idle_timeout: Duration,
    deadline: Pin<Box<Sleep>>,
    _permits: Option<[OwnedSemaphorePermit; 2]>,
}

impl<S: Unpin> IdleTimeoutStream<S> {
    /// Wraps `stream`, whose peer may send what `budget` has; the idle time starts now.
    pub(crate) fn new(stream: S, idle_timeout: Duration, budget: Arc<AnswerBudget>) -> Self {
        let deadline = Box::pin(sleep(idle_timeout));
        Self { stream, budget, idle_timeout, deadline, _permits: None }
    }

    /// Keeps these permits until the stream is dropped.
    pub(crate) fn holding(self, permits: Option<[OwnedSemaphorePermit; 2]>) -> Self {
        Self { _permits: permits, ..self }
    }

    /// Returns `polled`, or an error if it is pending and the deadline is over.
    fn fail_if_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending => {
                // Polled only when the operation must wait: the timer then wakes this task.
                self.deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            polled => polled,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleTimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len().saturating_sub(filled);
        if let Err(error) = self.budget.spend(count) {
            return Poll::Ready(Err(error));
        }
        // Reads alone restart the deadline. Writes do not: see the module's header.
        if read.is_ready() {
            let deadline = Instant::now() + self.idle_timeout;
            self.deadline.as_mut().reset(deadline);
        }
        self.fail_if_idle(context, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleTimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.fail_if_idle(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.fail_if_idle(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.fail_if_idle(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(context);
        self.fail_if_idle(context, closed)
    }
}

impl<S> Connection for IdleTimeoutStream<S> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const TEST_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

    fn budget() -> Arc<AnswerBudget> {
        let budget = AnswerBudget::new(1);
        budget.grant();
        Arc::new(budget)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_accepts_a_byte_now_and_then_and_sends_nothing_is_disconnected() {
        let (near, mut far) = duplex(16);
        tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let error = IdleTimeoutStream::new(near, TEST_IDLE_TIMEOUT, budget())
            .write_all(&[b'x'; 4096])
            .await
            .unwrap_err();
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_side_that_is_heard_of_is_not() {
        let (near, mut far) = duplex(16);
        let mut near = IdleTimeoutStream::new(near, TEST_IDLE_TIMEOUT, budget());
        let speaks = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                far.write_u8(b'x').await.unwrap();
            }
            far
        });
        for _ in 0..5 {
            assert_eq!(near.read_u8().await.unwrap(), b'x');
        }
        let _far = speaks.await.unwrap();
        let (heard, error) = (Instant::now(), near.read_u8().await.unwrap_err());
        assert_eq!((error.kind(), heard.elapsed().as_secs()), (io::ErrorKind::TimedOut, 15));
    }
}
