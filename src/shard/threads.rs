//! Shard threads: one per processor, each with a single-threaded runtime of its own.
//!
//! On tokio's work-stealing runtime each event wakes a second thread that looks for more work, and
//! the state of ten thousand streams moves between the caches of two processors. Tasks of a shard
//! never move: a product's upstream, its fan-out and the streams that it wakes stay on one thread.
//! Work that may compute for longer runs on the multi-threaded runtime beside the shards.
//!
//! May use: no other module.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The threads of all shards.
///
/// Dropping the value ends the threads and waits for them. Tasks that still run there are
/// cancelled, so the owner joins its tasks first.
#[derive(Debug)]
pub(crate) struct ShardThreads {
    shutdown: CancellationToken,
    threads: Vec<ShardThread>,
}

#[derive(Debug)]
struct ShardThread {
    runtime: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl ShardThreads {
    /// Starts one thread for each processor that the process may use, up to 64.
    ///
    /// # Errors
    ///
    /// If the operating system refuses a thread or a runtime's descriptors. The threads that have
    /// started already are joined.
    pub(crate) fn start() -> io::Result<Self> {
        let mut threads = Self { shutdown: CancellationToken::new(), threads: Vec::new() };
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        for number in 0..count {
            let shard = ShardThread::start(number, threads.shutdown.clone())?;
            threads.threads.push(shard);
        }
        Ok(threads)
    }

    /// Returns the runtimes, one for each shard; there is at least one.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = &Handle> + Clone {
        self.threads.iter().map(|shard| &shard.runtime)
    }
}

impl ShardThread {
    fn start(number: usize, shutdown: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(POLLS_PER_IO_CHECK)
            .build()?;
        let handle = runtime.handle().clone();
        let run = move || {
            runtime.block_on(shutdown.cancelled_owned());
            // Dropping the runtime would wait for its blocking pool, where a lookup of a host name
            // may hang for as long as the name server does.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("shard-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, thread: Some(thread) })
    }
}

impl Drop for ShardThreads {
    fn drop(&mut self) {
        self.shutdown.cancel();
        for shard in &mut self.threads {
            // The runtime catches panics of tasks; the thread's own code only waits.
            let _ = shard.thread.take().map(thread::JoinHandle::join);
        }
    }
}

/// The fan-out keeps a set of shards as the bits of one `u64`.
const MAX_SHARDS: usize = 64;

/// Task polls after which the runtime polls the I/O driver again.
///
/// A turn of a shard takes some hundred microseconds; with tokio's default of 61, readiness of the
/// sockets would wait for that many turns.
const POLLS_PER_IO_CHECK: u32 = 8;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn dropping_the_threads_does_not_wait_for_a_hanging_lookup() {
        let threads = ShardThreads::start().unwrap();
        let (hang, hanging) = std::sync::mpsc::channel::<()>();
        let runtime = threads.runtimes().next().unwrap().clone();
        runtime.spawn_blocking(move || hanging.recv_timeout(Duration::from_secs(20)));
        let began = Instant::now();
        drop(threads);
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(hang);
    }
}
