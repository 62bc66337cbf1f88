//! Bound on the bytes that one endpoint may send, by the requests that it got.
//!
//! In: requests, connections and received bytes. Out: whether the endpoint has sent more than any
//! answers need. Over HTTP/2, interim answers, pings, settings and frames of no meaning are read by
//! h2 itself, which has no bound on most of them: a peer that streams them would take a core for as
//! long as its connection lasts. All of them are bytes.
//!
//! May use: no other module.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bytes that one endpoint may still send, over all of its connections.
#[derive(Debug)]
pub(crate) struct AnswerBudget {
    left: AtomicU64,
    max: u64,
}

impl AnswerBudget {
    /// Creates a budget for up to `max_answers` answers at one time, each on a connection of its
    /// own at most.
    pub(crate) fn new(max_answers: usize) -> Self {
        let max_answers = u64::try_from(max_answers).unwrap_or(u64::MAX);
        Self {
            left: AtomicU64::new(0),
            // An answer, and the handshake before it.
            max: max_answers.saturating_mul(2 * MAX_ANSWER_BYTES),
        }
    }

    /// Adds the bytes of one answer, or of one handshake.
    ///
    /// What answers do not use is kept, up to the maximum: it is spent once.
    pub(crate) fn grant(&self) {
        let granted = |left: u64| Some(left.saturating_add(MAX_ANSWER_BYTES).min(self.max));
        // Relaxed, here and below: the number publishes no other memory. Always `Ok`.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, granted);
    }

    /// Takes `bytes` that were received.
    ///
    /// # Errors
    ///
    /// An error of [`BUDGET_EXCEEDED`] when there were fewer left; then none are.
    pub(super) fn spend(&self, bytes: usize) -> io::Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let spent = |left: u64| Some(left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent);
        if before.is_ok_and(|left| left < bytes) {
            return Err(BUDGET_EXCEEDED.into());
        }
        Ok(())
    }
}

/// Kind of the error. A kind, because h2 hands errors to its streams by kind and text alone; and
/// one that no operating system reports for a socket.
pub(crate) const BUDGET_EXCEEDED: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// Bytes of one answer: the largest head that is read, the part of a body that is read, and what a
/// connection reads ahead. More than any handshake has.
pub(crate) const MAX_ANSWER_BYTES: u64 = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: usize = 128 * 1024;

    #[test]
    fn an_endpoint_may_send_an_answer_for_each_request_and_no_more() {
        let budget = AnswerBudget::new(1);
        assert_eq!(budget.spend(1).unwrap_err().kind(), BUDGET_EXCEEDED);
        budget.grant();
        budget.spend(ANSWER).unwrap();
        assert_eq!(budget.spend(1).unwrap_err().kind(), BUDGET_EXCEEDED);
        budget.grant();
        budget.spend(ANSWER - 1).unwrap();
        budget.spend(2).unwrap_err();
        budget.spend(1).expect_err("what is exceeded is used up");
    }

    #[test]
    fn unused_answers_add_up_to_those_of_all_attempts_at_one_time() {
        let budget = AnswerBudget::new(3);
        (0..1000).for_each(|_| budget.grant());
        budget.spend(6 * ANSWER).unwrap();
        budget.spend(1).unwrap_err();
    }
}
