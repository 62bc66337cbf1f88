//! The thread that turns the relay's timer wheel.
//!
//! May use: no other module.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use tokio_util::sync::CancellationToken;

use super::TimerWheel;

/// Turns a wheel on a thread of its own.
///
/// On a runtime a tick costs two wake-ups of a worker, one for the runtime's timer and one for the
/// task that it makes ready; here it costs one. Dropping the value ends the thread and waits for
/// it.
#[derive(Debug)]
pub(crate) struct WheelThread {
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WheelThread {
    /// Starts the thread. `ended` is cancelled when it ends, by a panic too.
    ///
    /// # Errors
    ///
    /// If the operating system refuses a thread.
    pub(crate) fn start(wheel: Arc<TimerWheel>, ended: CancellationToken) -> io::Result<Self> {
        let is_stopping = Arc::new(AtomicBool::new(false));
        let run = {
            let (is_stopping, ended) = (Arc::clone(&is_stopping), ended.drop_guard());
            move || {
                let _ended = ended;
                while !is_stopping.load(SeqCst) {
                    wheel.turn();
                    // A stop between the check and this line is not lost: its `unpark` makes the
                    // park return at once.
                    thread::park_timeout(wheel.time_to_next_tick());
                }
            }
        };
        let thread = thread::Builder::new().name("timer".to_owned()).spawn(run)?;
        Ok(Self { is_stopping, thread: Some(thread) })
    }
}

impl Drop for WheelThread {
    fn drop(&mut self) {
        self.is_stopping.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has cancelled `ended` already, which the owner watches.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        task::{Wake, Waker},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::timer_wheel::{Alarm, TICK};

    struct WakeSender(mpsc::Sender<Instant>);

    impl Wake for WakeSender {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(Instant::now());
        }
    }

    #[test]
    fn the_thread_wakes_an_alarm_no_earlier_than_it_is_due_and_ends_at_once() {
        let (wheel, ended) = (TimerWheel::new(), CancellationToken::new());
        let thread = WheelThread::start(Arc::clone(&wheel), ended.clone()).unwrap();
        let (sender, woken) = mpsc::channel();
        let (alarm, set) = (Alarm::new(&wheel), Instant::now());
        alarm.set(wheel.deadline_after(3 * TICK), &Waker::from(Arc::new(WakeSender(sender))));
        let woken = woken.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(woken - set >= 3 * TICK, "{:?}", woken - set);
        assert!(!ended.is_cancelled());
        drop(thread);
        assert!(ended.is_cancelled());
    }
}
