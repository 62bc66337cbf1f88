//! Waits between attempts: exponential growth with full jitter.
//!
//! Pure: the caller brings the randomness and does the waiting.
//!
//! May use: no other module.

use std::time::Duration;

/// Growing waits, each drawn evenly between zero and a ceiling.
///
/// The ceiling doubles from `initial` to `max`. Full jitter keeps many clients that lost the same
/// peer from reconnecting together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Creates a backoff with ceilings from `initial` to `max`.
    pub(crate) fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// Returns the next wait, and doubles the ceiling.
    pub(crate) fn next_delay(&mut self, random: &mut fastrand::Rng) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.f64())
    }

    /// Restarts at the first ceiling, after a success that has proved stable.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    fn ceiling(&self) -> Duration {
        // Checked: after 32 failures the power overflows, and the maximum applies.
        let doubled =
            2_u32.checked_pow(self.failures).and_then(|factor| self.initial.checked_mul(factor));
        doubled.map_or(self.max, |wait| wait.min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_lie_anywhere_below_a_ceiling_that_doubles_up_to_the_cap() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut range = [(Duration::MAX, Duration::ZERO); 9];
        for _ in 0..1000 {
            let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
            for (shortest, longest) in &mut range {
                let delay = backoff.next_delay(&mut random);
                (*shortest, *longest) = (delay.min(*shortest), delay.max(*longest));
            }
        }
        let ceilings =
            [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0].map(Duration::from_secs_f64);
        for ((shortest, longest), ceiling) in range.into_iter().zip(ceilings) {
            assert!(
                longest <= ceiling && longest > ceiling.mul_f64(0.9),
                "{longest:?} of {ceiling:?}"
            );
            assert!(shortest < ceiling.mul_f64(0.1), "{shortest:?} of {ceiling:?}: full jitter");
        }
    }

    #[test]
    fn a_reset_begins_with_the_first_ceiling_again_and_many_attempts_do_not_overflow() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        for _ in 0..100 {
            backoff.next_delay(&mut random);
        }
        assert_eq!(backoff.ceiling(), Duration::from_secs(30));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(500));
    }
}
