//! The threads that events take: each with a runtime of its own, whose tasks never move to another.
//!
//! On tokio's threads that share their work, each event wakes a second thread to see whether there
//! is more to do, and the state of ten thousand streams goes back and forth between the caches of
//! two. Here what belongs together stays together: the upstream of a product, its fan-out, and the
//! streams that it wakes. Whatever may compute for longer is on the runtime beside.
//!
//! May use: no other module.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// All lanes. They end when this is dropped, which waits for them: what runs on them must have
/// ended before.
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
    /// Starts as many lanes as this process may use processors, up to 64.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be had.
    pub(crate) fn start() -> io::Result<Self> {
        let mut threads = Self { shutdown: CancellationToken::new(), threads: Vec::new() };
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        for number in 0..count {
            let shard = ShardThread::start(number, threads.shutdown.clone())?;
            threads.threads.push(shard);
        }
        Ok(threads)
    }

    /// The runtimes, one for each lane; there is at least one.
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
            // A name server may let a lookup hang: nobody waits for that.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("lane-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, thread: Some(thread) })
    }
}

impl Drop for ShardThreads {
    fn drop(&mut self) {
        self.shutdown.cancel();
        for shard in &mut self.threads {
            // A panic of a task is that task's; the thread itself only waits.
            let _ = shard.thread.take().map(thread::JoinHandle::join);
        }
    }
}

/// A set of lanes fits into one number.
const MAX_SHARDS: usize = 64;

/// Polls of tasks after which the sockets are looked at again: a turn of a shard takes some hundred
/// microseconds.
const POLLS_PER_IO_CHECK: u32 = 8;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn nobody_waits_for_a_lookup_that_hangs() {
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
