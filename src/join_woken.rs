//! Two futures of one task, each of which is polled only when it has been woken itself.
//!
//! In: the two futures. Out: their end. With `tokio::join!` a wake-up of either polls both, and a
//! wake-up of one by the other schedules the task once more. Here the second future is polled right
//! behind the first that has woken it, in the same poll of the task.
//!
//! May use: no other module.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;

/// Runs both futures to their end. What the first one wakes in the second is done in the same poll
/// of the task.
///
/// # Cancel safety
///
/// Dropping the future drops both.
pub(crate) fn join_woken<'a>(
    first: impl Future<Output = ()> + Send + 'a,
    second: impl Future<Output = ()> + Send + 'a,
) -> impl Future<Output = ()> + Send + 'a {
    let task = Arc::new(TaskSignal::default());
    let mut first = Branch::new(first, &task);
    let mut second = Branch::new(second, &task);
    std::future::poll_fn(move |context| {
        task.waker.register(context.waker());
        task.is_polling.store(true, Ordering::SeqCst);
        // A backlog of the second comes first: a first one with a backlog uses up the budget that
        // tokio gives a task for one poll, so behind it the second would fall behind for good.
        second.poll_if_woken();
        first.poll_if_woken();
        second.poll_if_woken();
        task.is_polling.store(false, Ordering::SeqCst);
        if first.has_ended() && second.has_ended() {
            return Poll::Ready(());
        }
        // Woken meanwhile, by itself, by the other branch or by another thread. One round only:
        // other tasks of the thread must have their turn. `is_polling` and a branch's flag are
        // sequentially consistent: a wake-up is seen here, or finds that no poll is under way.
        if first.is_woken() || second.is_woken() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
}

/// The task, as its branches' wakers see it.
#[derive(Debug, Default)]
struct TaskSignal {
    waker: AtomicWaker,
    is_polling: AtomicBool,
}

/// One of the futures: none after its end.
struct Branch<'a> {
    future: Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
    signal: Arc<BranchSignal>,
    /// Wakes by `signal`.
    waker: Waker,
}

impl<'a> Branch<'a> {
    fn new(future: impl Future<Output = ()> + Send + 'a, task: &Arc<TaskSignal>) -> Self {
        // Woken, because it has never been polled.
        let signal =
            Arc::new(BranchSignal { is_woken: AtomicBool::new(true), task: Arc::clone(task) });
        let waker = Waker::from(Arc::clone(&signal));
        Self { future: Some(Box::pin(future)), signal, waker }
    }

    fn poll_if_woken(&mut self) {
        // Taken before the poll: a wake-up during it counts for the next.
        if let Some(future) = &mut self.future
            && self.signal.is_woken.swap(false, Ordering::SeqCst)
            && future.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.future = None;
        }
    }

    fn has_ended(&self) -> bool {
        self.future.is_none()
    }

    fn is_woken(&self) -> bool {
        self.future.is_some() && self.signal.is_woken.load(Ordering::SeqCst)
    }
}

/// Wake-ups of one branch.
#[derive(Debug)]
struct BranchSignal {
    is_woken: AtomicBool,
    task: Arc<TaskSignal>,
}

impl Wake for BranchSignal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.task.is_polling.load(Ordering::SeqCst) {
            self.task.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::atomic::AtomicUsize, thread, time::Duration};

    use tokio::{
        sync::{Notify, mpsc},
        task::{consume_budget, yield_now},
        time::timeout,
    };

    use super::*;

    #[derive(Debug, Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Counts its polls, and ends when told to.
    #[derive(Debug, Default)]
    struct Probe {
        polls: AtomicUsize,
        waker: AtomicWaker,
        is_over: AtomicBool,
    }

    impl Probe {
        async fn run(&self) {
            poll_fn(|context| {
                self.polls.fetch_add(1, Ordering::SeqCst);
                self.waker.register(context.waker());
                if self.is_over.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    #[test]
    fn a_future_is_polled_when_it_was_woken_and_never_after_its_end() {
        let probes = [Probe::default(), Probe::default()];
        let polls = || probes.each_ref().map(|probe| probe.polls.load(Ordering::SeqCst));
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut context = Context::from_waker(&waker);
        let mut joined = pin!(join_woken(probes[0].run(), probes[1].run()));
        assert!(joined.as_mut().poll(&mut context).is_pending());
        assert_eq!(polls(), [1, 1]);
        for (index, expected) in [(1, [1, 2]), (0, [2, 2])] {
            probes[index].waker.wake();
            assert!(joined.as_mut().poll(&mut context).is_pending());
            assert_eq!(polls(), expected);
        }
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
        probes[0].is_over.store(true, Ordering::SeqCst);
        probes[0].waker.wake();
        assert!(joined.as_mut().poll(&mut context).is_pending());
        probes[1].is_over.store(true, Ordering::SeqCst);
        probes[1].waker.wake();
        assert!(joined.as_mut().poll(&mut context).is_ready());
        assert_eq!(polls(), [3, 3]);
    }

    #[test]
    fn what_the_first_wakes_in_the_second_is_done_in_the_same_poll() {
        let (asked, passed_on, done) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut context = Context::from_waker(&waker);
        let first = async {
            loop {
                asked.notified().await;
                passed_on.notify_one();
            }
        };
        let second = async {
            loop {
                passed_on.notified().await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        };
        let mut joined = pin!(join_woken(first, second));
        assert!(joined.as_mut().poll(&mut context).is_pending());
        for round in 1..=3 {
            asked.notify_one();
            assert!(joined.as_mut().poll(&mut context).is_pending());
            let counts = [done.load(Ordering::SeqCst), wakes.0.load(Ordering::SeqCst)];
            assert_eq!(counts, [round, round]);
        }
    }

    #[tokio::test]
    async fn what_the_second_wakes_in_the_first_is_not_lost() {
        let (there, back) = (Notify::new(), Notify::new());
        let first = async {
            for _ in 0..100 {
                there.notify_one();
                back.notified().await;
            }
        };
        let second = async {
            for _ in 0..100 {
                there.notified().await;
                yield_now().await;
                back.notify_one();
            }
        };
        timeout(Duration::from_secs(5), join_woken(first, second)).await.unwrap();
    }

    #[tokio::test]
    async fn the_second_keeps_up_with_a_first_that_is_always_ready() {
        let (appended, made, taken) = (Notify::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let most_behind = AtomicUsize::new(0);
        let first = async {
            for number in 1..=20_000 {
                made.store(number, Ordering::SeqCst);
                let behind = number - taken.load(Ordering::SeqCst);
                most_behind.fetch_max(behind, Ordering::SeqCst);
                appended.notify_one();
                consume_budget().await;
            }
        };
        let second = async {
            while taken.load(Ordering::SeqCst) < 20_000 {
                let rest = made.load(Ordering::SeqCst) - taken.load(Ordering::SeqCst);
                match rest {
                    0 => appended.notified().await,
                    rest => drop(taken.fetch_add(rest.min(64), Ordering::SeqCst)),
                }
                consume_budget().await;
            }
        };
        timeout(Duration::from_secs(5), join_woken(first, second)).await.unwrap();
        let most_behind = most_behind.load(Ordering::SeqCst);
        assert!(most_behind < 512, "{most_behind}");
    }

    #[tokio::test]
    async fn no_wake_up_of_another_thread_is_lost() {
        let (left, mut left_values) = mpsc::channel(1);
        let (right, mut right_values) = mpsc::channel(1);
        let sender = thread::spawn(move || {
            for number in 0..10_000_u32 {
                left.blocking_send(number).unwrap();
                right.blocking_send(number).unwrap();
            }
        });
        let first = async move { while left_values.recv().await.is_some() {} };
        let second = async move { while right_values.recv().await.is_some() {} };
        timeout(Duration::from_secs(8), join_woken(first, second)).await.unwrap();
        sender.join().unwrap();
    }
}
