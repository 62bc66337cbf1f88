//! How many events a key may publish in a second.
//!
//! In: the time of a request. Out: whether it is within the rate, or how long to wait.
//!
//! May use: no other module.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A bucket that holds one second's worth of requests and is refilled evenly.
#[derive(Debug)]
pub(super) struct PublishRate {
    /// Time in which one request is refilled.
    interval: Duration,
    /// Time at which the bucket is full again.
    full_at: Mutex<Instant>,
}

impl PublishRate {
    /// Creates a full bucket for this many requests a second, of which there is at least one.
    pub(super) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, full_at: Mutex::new(Instant::now()) }
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// The time until the next request is refilled, if the bucket is empty. Nothing is taken then.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full_at).max(now) + self.interval;
        // The bucket is as empty as it will be full of again; its whole content takes a second.
        match next.duration_since(now).checked_sub(Duration::from_secs(1)) {
            None | Some(Duration::ZERO) => {
                *full_at = next;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn take_all(rate: &PublishRate) -> usize {
        (0..10_000).take_while(|_| rate.take().is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_s_worth_may_come_at_once_and_then_one_by_one() {
        for per_second in [1, 3, 7, 1000] {
            let rate = PublishRate::new(per_second);
            assert_eq!(take_all(&rate), per_second as usize);
            let wait = rate.take().unwrap_err();
            assert!(wait <= rate.interval && !wait.is_zero(), "{wait:?}");
            advance(wait).await;
            assert_eq!(take_all(&rate), 1, "{per_second}");
            advance(Duration::from_millis(500)).await;
            let refilled = take_all(&rate);
            assert!(refilled.abs_diff(per_second as usize / 2) <= 1, "{per_second}: {refilled}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_saves_up_no_more_than_a_second_s_worth() {
        let rate = PublishRate::new(5);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(take_all(&rate), 5);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(take_all(&rate), 5);
    }
}
