//! The threads that events take: each with a runtime of its own, whose tasks never move to another.
//!
//! On tokio's threads that share their work, each event wakes a second thread to see whether there is more to do, and the state of
//! ten thousand streams goes back and forth between the caches of two. Here what belongs together stays together: the upstream of a
//! product, its fan-out, and the streams that it wakes. Whatever may compute for longer is on the runtime beside.
//!
//! May use: nothing.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// All lanes. They end when this is dropped, which waits for them: what runs on them must have ended before.
#[derive(Debug)]
pub(crate) struct Lanes {
    end: CancellationToken,
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lanes {
    /// Starts as many lanes as this process may use processors, up to 64.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be had.
    pub(crate) fn start() -> io::Result<Self> {
        let mut lanes = Self { end: CancellationToken::new(), lanes: Vec::new() };
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_LANES);
        for number in 0..count {
            let lane = Lane::start(number, lanes.end.clone())?;
            lanes.lanes.push(lane);
        }
        Ok(lanes)
    }

    /// The runtimes, one for each lane; there is at least one.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = &Handle> + Clone {
        self.lanes.iter().map(|lane| &lane.runtime)
    }
}

impl Lane {
    fn start(number: usize, end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().event_interval(POLLS).build()?;
        let handle = runtime.handle().clone();
        let run = move || {
            runtime.block_on(end.cancelled_owned());
            // A name server may let a lookup hang: nobody waits for that.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("lane-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, thread: Some(thread) })
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.end.cancel();
        for lane in &mut self.lanes {
            // A panic of a task is that task's; the thread itself only waits.
            let _ = lane.thread.take().map(thread::JoinHandle::join);
        }
    }
}

/// A set of lanes fits into one number.
const MOST_LANES: usize = 64;

/// Polls of tasks after which the sockets are looked at again: a turn of a shard takes some hundred microseconds.
const POLLS: u32 = 8;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn nobody_waits_for_a_lookup_that_hangs() {
        let lanes = Lanes::start().unwrap();
        let (hang, hanging) = std::sync::mpsc::channel::<()>();
        let runtime = lanes.runtimes().next().unwrap().clone();
        runtime.spawn_blocking(move || hanging.recv_timeout(Duration::from_secs(20)));
        let began = Instant::now();
        drop(lanes);
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(hang);
    }
}
