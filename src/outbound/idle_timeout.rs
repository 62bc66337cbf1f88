//! A connection that ends when its far side has been silent for longer than any attempt lasts.
//!
//! In: a stream. Out: the same stream, with errors where it would wait for ever. hyper writes what it holds of a request
//! before it closes a connection, even when nobody waits for the answer any more: a receiver that reads a byte now and then
//! would keep one more connection with each attempt. After its deadline an attempt reads nothing, so silence finds them all.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A stream, and when it was last heard of.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl<S: Unpin> Watched<S> {
    /// The stream, which ends `patience` after it has last been heard of.
    pub(crate) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, deadline: Box::pin(sleep(patience)) }
    }

    /// What has come of an operation; an error if it must wait and has waited long enough.
    fn watch<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Pending => self.deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            done => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            let deadline = Instant::now() + self.patience;
            self.deadline.as_mut().reset(deadline);
        }
        self.watch(context, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, closed)
    }
}

impl<S> Connection for Watched<S> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn a_far_side_that_takes_a_byte_now_and_then_and_says_nothing_is_given_up() {
        let (near, mut far) = duplex(16);
        tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let error = Watched::new(near, PATIENCE).write_all(&[b'x'; 4096]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_side_that_is_heard_of_is_not() {
        let (near, mut far) = duplex(16);
        let mut near = Watched::new(near, PATIENCE);
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
