//! The writer's commands and journals of webhooks, on the same scripted disk.

use std::{collections::BTreeSet, task::Poll};

use super::*;
use crate::{
    log::MemoryBounds,
    store::{
        StoreUnwritable,
        webhook_rows::{
            DeadLetterSelection, DeadLetterState, DeliveryChange, OwedDelivery, WebhookChanges,
            WebhookNotice, WebhookRegistration,
            tests::{changes, dead_letter, delivery, owed, settled, webhook},
        },
    },
    webhook_delivery::DeadLetterReason,
};

/// Returns the output of a future that must be ready.
fn expect_ready<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future is not ready"),
    }
}

impl WriterHarness {
    fn register(&mut self, webhook: &WebhookRegistration) {
        let registered = self.writer.handle.register(webhook.clone());
        self.writer.run_round();
        expect_ready(registered).unwrap();
    }

    fn journal(&mut self, id: &str, changes: WebhookChanges) -> Result<(), WebhookChanges> {
        let journaled = self.writer.handle.journal(&id.into(), changes);
        self.writer.run_round();
        expect_ready(journaled)
    }

    /// Returns the positions of the dead letters in this state, newest first.
    fn dead_positions(&mut self, id: &str, state: DeadLetterState) -> Vec<u64> {
        let listed = self.writer.handle.dead_letters(id, state, None, 1000);
        self.writer.run_round();
        expect_ready(listed)
            .unwrap()
            .into_iter()
            .map(|(_, letter)| letter.delivery.position)
            .collect()
    }

    fn requeue(&mut self, id: &str, which: DeadLetterSelection) -> u64 {
        let requeued = self.writer.handle.requeue(id, which);
        while self.writer.has_pending_work() {
            self.writer.run_round();
        }
        expect_ready(requeued).unwrap()
    }

    /// Returns what the file has of a webhook: its position, and those of its owed deliveries.
    fn stored_webhook(&self, id: &str) -> Option<(u64, Vec<u64>)> {
        let WriterState::Open(file) = &self.writer.state else { panic!("the file is open") };
        let webhook = file.webhooks().unwrap().into_iter().find(|webhook| webhook.id == id)?;
        Some((webhook.position, webhook.owed.iter().map(|owed| owed.delivery.position).collect()))
    }

    /// Runs a round in which retention is due.
    fn retire(&mut self) {
        self.writer.last_retired = Instant::now() - RETENTION_INTERVAL;
        self.writer.run_round();
    }
}

fn dead_letters_at(positions: impl IntoIterator<Item = u64>) -> Vec<DeliveryChange> {
    positions
        .into_iter()
        .map(|position| DeliveryChange::Dead(dead_letter(position, b"{}")))
        .collect()
}

#[test]
fn a_webhook_goes_through_all_commands_and_is_notified_of_its_counts() {
    let mut harness = WriterHarness::new(1000);
    let webhook = webhook("w", 0);
    harness.register(&webhook);
    assert_eq!(webhook.notices.take(), WebhookNotice::default());
    harness
        .journal(
            "w",
            changes(9, dead_letters_at(2..=5).into_iter().chain([DeliveryChange::Owed(owed(7))])),
        )
        .unwrap();
    assert_eq!(harness.stored_webhook("w"), Some((9, vec![7])));
    assert_eq!(webhook.notices.take(), WebhookNotice { dead: 4, ..WebhookNotice::default() });
    assert_eq!(
        harness.requeue(
            "w",
            DeadLetterSelection::Events(vec![EventId::new(7, 4), EventId::new(7, 7)])
        ),
        1
    );
    assert_eq!(
        webhook.notices.take(),
        WebhookNotice { dead: 3, requeued: 1, ..WebhookNotice::default() }
    );
    assert_eq!(
        (
            harness.dead_positions("w", DeadLetterState::Dead),
            harness.dead_positions("w", DeadLetterState::Requeued)
        ),
        (vec![5, 3, 2], vec![4])
    );
    let _ = harness.writer.handle.take_unsynced();
    let requeued =
        [0, 3, 4].map(|after| harness.writer.handle.requeued_dead_letters("w", after, 9));
    harness.writer.run_round();
    let requeued = requeued.map(|these| expect_ready(these).unwrap());
    assert_eq!(requeued, [vec![dead_letter(4, b"{}")], vec![dead_letter(4, b"{}")], vec![]]);
    assert!(!harness.writer.handle.take_unsynced(), "a list leaves nothing to be synced");
    harness.journal("w", settled([4])).unwrap();
    assert_eq!(webhook.notices.take(), WebhookNotice { dead: 3, ..WebhookNotice::default() });
    let gone = harness.writer.handle.unregister("w");
    harness.writer.run_round();
    harness.writer.run_round();
    expect_ready(gone).unwrap();
    assert_eq!(
        (harness.stored_webhook("w"), harness.dead_positions("w", DeadLetterState::Dead)),
        (None, vec![])
    );
    harness.journal("w", changes(9, dead_letters_at([8]))).unwrap_err();
    assert!(
        harness.writer.webhooks.is_empty()
            && harness.dead_positions("w", DeadLetterState::Dead).is_empty()
    );
}

#[test]
fn a_journal_of_a_webhook_that_the_file_does_not_have_is_rejected() {
    let mut harness = WriterHarness::new(1000);
    harness.register(&webhook("old", 0));
    let handle = Arc::clone(&harness.writer.handle);
    // Submitted first, and executed after the journals.
    let registered = handle.register(webhook("new", 0));
    let what = changes(9, [DeliveryChange::Owed(owed(5))]);
    let early = handle.journal(&"new".into(), what.clone());
    let other = handle.journal(&"old".into(), changes(9, []));
    harness.writer.run_round();
    assert_eq!((expect_ready(early), expect_ready(other)), (Err(what.clone()), Ok(())));
    expect_ready(registered).unwrap();
    harness.journal("new", what).unwrap();
    assert_eq!(
        (harness.stored_webhook("new"), harness.stored_webhook("old")),
        (Some((9, vec![5])), Some((9, vec![])))
    );
}

#[test]
fn many_dead_letters_are_requeued_in_steps_between_which_entries_are_committed() {
    let mut harness = WriterHarness::new(1000);
    let webhook = webhook("w", 0);
    harness.register(&webhook);
    harness.journal("w", changes(2000, dead_letters_at(1..=2000))).unwrap();
    let requeued = harness.writer.handle.requeue("w", DeadLetterSelection::All);
    while harness.writer.has_pending_work() {
        harness.append(1);
        harness.writer.run_round();
        assert_eq!(harness.log.backlog(), 0);
    }
    assert_eq!(expect_ready(requeued).unwrap(), 2000);
    assert_eq!(
        webhook.notices.take(),
        WebhookNotice { requeued: 2000, ..WebhookNotice::default() }
    );
}

#[test]
fn waiting_journals_are_one_commit_with_the_logs_entries() {
    let mut harness = WriterHarness::new(1000);
    harness.register(&webhook("w", 0));
    harness.register(&webhook("v", 0));
    harness.append(10);
    let handle = Arc::clone(&harness.writer.handle);
    let journals = ["w", "v", "w"]
        .map(|id| handle.journal(&id.into(), changes(7, [DeliveryChange::Owed(owed(5))])));
    harness.writer.run_round();
    journals.into_iter().for_each(|journal| expect_ready(journal).unwrap());
    assert_eq!(
        (harness.writer.script.steps(), harness.log.backlog()),
        (vec![WriterStep::Commit], 0)
    );
    assert_eq!(
        (harness.stored_webhook("w"), harness.stored_webhook("v")),
        (Some((7, vec![5])), Some((7, vec![5])))
    );
}

#[test]
fn changes_that_could_not_be_committed_come_back_and_nothing_has_changed() {
    let mut harness = WriterHarness::new(1000);
    let webhook = webhook("w", 0);
    harness.register(&webhook);
    let _ = webhook.notices.take();
    harness.script_commits([ScriptedCommit::FailBefore]);
    let what = changes(7, dead_letters_at([3]).into_iter().chain([DeliveryChange::Owed(owed(5))]));
    assert_eq!(harness.journal("w", what.clone()), Err(what.clone()));
    assert_eq!(harness.journal("w", what.clone()), Err(what.clone()), "while the file is closed");
    assert!(
        expect_ready({
            let refused = harness.writer.handle.register(webhook.clone());
            harness.writer.run_round();
            refused
        })
        .is_err()
    );
    harness.retry_round();
    assert_eq!(
        (harness.stored_webhook("w"), webhook.notices.take()),
        (Some((0, vec![])), WebhookNotice::default())
    );
    harness.script_commits([ScriptedCommit::FailAfter]);
    assert_eq!(harness.journal("w", what.clone()), Err(what.clone()), "not known yet");
    harness.retry_round();
    harness.journal("w", what).unwrap();
    assert_eq!((harness.stored_webhook("w"), webhook.notices.take().dead), (Some((7, vec![5])), 1));
    harness.writer.handle.stop();
    assert!(
        expect_ready(harness.writer.handle.journal(&"w".into(), changes(8, []))).is_err(),
        "too late"
    );
    assert!(matches!(expect_ready(harness.writer.handle.unregister("w")), Err(StoreUnwritable)));
}

#[test]
fn a_journal_alone_does_not_wait_for_more_to_gather() {
    let mut harness = WriterHarness::new(1000);
    harness.writer.last_round_ended = Instant::now() - Duration::from_secs(1);
    assert_eq!(
        harness.writer.group_commit_delay(),
        GROUP_COMMIT_DELAY,
        "without webhooks, no worker waits for commits"
    );
    harness.register(&webhook("w", 0));
    assert!(harness.writer.group_commit_delay() <= WEBHOOK_GROUP_COMMIT_DELAY);
    assert!(
        harness.writer.group_commit_delay() > Duration::ZERO,
        "no commit of its own for each worker"
    );
    harness.writer.last_round_ended = Instant::now() - WEBHOOK_GROUP_COMMIT_DELAY;
    assert_eq!(harness.writer.group_commit_delay(), Duration::ZERO);
    // A journal alone wakes the writer, too.
    let handle = Arc::clone(&harness.writer.handle);
    let journal = handle.journal(&"w".into(), changes(1, []));
    assert!(harness.writer.has_pending_work());
    harness.writer.run_round();
    expect_ready(journal).unwrap();
    assert!(!harness.writer.has_pending_work());
}

#[test]
fn a_long_backlog_is_written_in_one_round_where_webhooks_wait_for_it_too() {
    let mut harness = WriterHarness::new(100_000);
    harness.register(&webhook("w", 0));
    harness.append(2 * MAX_BATCH_ENTRIES + 1);
    harness.writer.run_round();
    assert_eq!(
        (harness.log.backlog(), harness.writer.script.steps()),
        (0, vec![WriterStep::Commit; 3])
    );
}

#[test]
fn a_delivery_owed_for_too_long_is_a_dead_letter_and_its_webhook_is_notified() {
    let mut harness = WriterHarness::new(1000);
    let (late, done) = (webhook("late", 0), webhook("done", 0));
    harness.register(&late);
    harness.register(&done);
    harness.append(10);
    let handle = Arc::clone(&harness.writer.handle);
    let owed = OwedDelivery { delivery: delivery(2, ""), next_attempt_at: None };
    let journals = [
        handle.journal(&"late".into(), changes(4, [DeliveryChange::Owed(owed)])),
        handle.journal(&"done".into(), changes(10, [])),
    ];
    harness.writer.run_round();
    journals.into_iter().for_each(|journal| expect_ready(journal).unwrap());
    harness.writer.settings.retention = Duration::ZERO;
    thread::sleep(Duration::from_millis(2)); // older than now
    harness.retire();
    assert_eq!(harness.log.stats().stored.map(|(events, _)| events), Some(0));
    let notice = WebhookNotice { expired_through: 10, dead: 7, ..WebhookNotice::default() };
    assert_eq!((late.notices.take(), done.notices.take()), (notice, WebhookNotice::default()));
    assert_eq!(harness.dead_positions("late", DeadLetterState::Dead), [10, 9, 8, 7, 6, 5, 2]);
    assert_eq!(
        (harness.stored_webhook("late"), harness.dead_positions("done", DeadLetterState::Dead)),
        (Some((10, vec![])), vec![])
    );
    let listed = handle.dead_letters("late", DeadLetterState::Dead, None, 1);
    harness.writer.run_round();
    let (_, letter) = expect_ready(listed).unwrap().remove(0);
    assert_eq!(
        (letter.reason, &*letter.payload, letter.delivery.position),
        (DeadLetterReason::Expired, &b"{}"[..], 10)
    );
}

#[test]
fn dead_letters_beyond_their_bounds_are_lost_and_counted() {
    let mut harness = WriterHarness::new(1000);
    let webhook = webhook("w", 0);
    harness.register(&webhook);
    let mut deliveries = dead_letters_at(1..=20);
    for change in &mut deliveries {
        let DeliveryChange::Dead(letter) = change else { continue };
        letter.died_at = if letter.delivery.position <= 5 {
            wall_clock::now().unix_ms - 3_700_000
        } else {
            wall_clock::now().unix_ms
        };
    }
    harness.journal("w", changes(20, deliveries)).unwrap();
    harness.writer.settings.dead_letter_retention = Duration::from_secs(3600);
    harness.retire();
    assert_eq!(
        webhook.notices.take(),
        WebhookNotice { dead: 15, lost: 5, ..WebhookNotice::default() }
    );
    harness.writer.settings.dead_letter_bytes = 0;
    harness.retire();
    assert_eq!(webhook.notices.take(), WebhookNotice { lost: 15, ..WebhookNotice::default() });
}

#[test]
fn erasing_a_session_takes_its_dead_letters_too() {
    let mut harness = WriterHarness::new(16);
    let webhook = webhook("w", 0);
    harness.register(&webhook);
    harness.append(10);
    harness
        .journal(
            "w",
            changes(10, dead_letters_at([3]).into_iter().chain([DeliveryChange::Owed(owed(4))])),
        )
        .unwrap();
    let session = SessionId::new("s").unwrap();
    let sessions = [session.clone()].into();
    let mut scope = ErasureScope { sessions, ..ErasureScope::default() };
    let in_memory = harness.log.erase(&mut scope, &BTreeSet::new());
    assert_eq!(in_memory, 0, "the store has them");
    let erased = harness.writer.handle.erase(product(), VisitorId::Session(session));
    harness.writer.run_round();
    assert_eq!(expect_ready(erased).unwrap(), 10, "the event of the dead letter is one of them");
    assert_eq!(
        (webhook.notices.take(), harness.stored_webhook("w")),
        (WebhookNotice::default(), Some((10, vec![])))
    );
}

#[test]
fn a_file_that_is_begun_anew_has_the_webhooks_again_and_they_are_notified() {
    for is_damaged in [true, false] {
        for events in [0, 20] {
            let mut harness = WriterHarness::new(16);
            let webhook = webhook("w", 0);
            harness.register(&webhook);
            harness.append(events);
            harness
                .journal(
                    "w",
                    changes(
                        17,
                        dead_letters_at([3]).into_iter().chain([DeliveryChange::Owed(owed(5))]),
                    ),
                )
                .unwrap();
            if is_damaged {
                harness.writer.replace("says the test");
            } else {
                harness.writer.fail(&disk_error());
                for file in fs::read_dir(harness.writer.handle.path().parent().unwrap()).unwrap() {
                    fs::remove_file(file.unwrap().path()).unwrap();
                }
                harness.retry_round();
            }
            assert_eq!(
                harness.stored_webhook("w"),
                Some((0, vec![])),
                "{is_damaged} {events}: no further than the file's log"
            );
            assert_eq!(
                webhook.notices.take(),
                WebhookNotice { is_replaced: true, ..WebhookNotice::default() }
            );
            harness.journal("w", changes(17, [])).unwrap(); // as the worker then does
            assert_eq!(harness.stored_webhook("w"), Some((17, vec![])));
            harness.writer.fail(&disk_error());
            harness.retry_round();
            assert!(!webhook.notices.take().is_replaced, "once");
        }
    }
}

#[test]
fn a_log_publishes_how_far_it_is_persisted_and_no_watcher_waits_in_vain() {
    let mut harness = WriterHarness::new(16);
    let mut kept = harness.log.watch_persisted();
    assert_eq!(*kept.borrow_and_update(), 0);
    harness.append(10);
    assert!(!kept.has_changed().unwrap());
    harness.writer.run_round();
    assert_eq!(*kept.borrow_and_update(), 10);
    harness.script_commits([ScriptedCommit::FailBefore]);
    harness.append(200);
    harness.writer.run_round();
    tail(&harness.log, 0);
    let missing_through = *kept.borrow_and_update();
    assert!(missing_through > 10, "a position that will never be persisted is not waited for");
    harness.retry_round();
    assert_eq!(*kept.borrow_and_update(), 210);
    harness.writer.replace("says the test");
    assert!(
        (missing_through..210).contains(&*kept.borrow_and_update()),
        "entries in memory have to be persisted again"
    );
    harness.writer.run_round();
    assert_eq!(*kept.borrow_and_update(), 210);
    let log = Log::new(
        product(),
        MemoryBounds { events: 16, bytes: u64::MAX },
        harness.metrics.log(&product()),
    );
    append(&log);
    assert_eq!(*log.watch_persisted().borrow(), u64::MAX, "without a store");
}

#[test]
fn while_the_clock_is_in_doubt_nothing_is_too_old() {
    let mut harness = WriterHarness::new(1000);
    harness.register(&webhook("w", 0));
    harness.writer.settings.dead_letter_retention = Duration::from_secs(3600);
    harness.append(5);
    harness.writer.run_round();
    let mut letter = dead_letter(2, b"{}");
    letter.died_at = wall_clock::now().unix_ms;
    harness.journal("w", changes(5, [DeliveryChange::Dead(letter)])).unwrap();
    let later = |is_in_doubt| wall_clock::WallTime {
        unix_ms: wall_clock::now().unix_ms + 2 * 86_400_000,
        earliest_ms: wall_clock::now().unix_ms,
        is_in_doubt,
    };
    assert!(!harness.writer.retire_step(later(true)).unwrap());
    assert_eq!(harness.rows(), [1, 2, 3, 4, 5]);
    assert_eq!(harness.dead_positions("w", DeadLetterState::Dead), [2]);
    assert!(harness.writer.retire_step(later(false)).unwrap(), "a real day later it goes on");
    assert_eq!(harness.rows(), [] as [u64; 0]);
    assert_eq!(harness.dead_positions("w", DeadLetterState::Dead), [] as [u64; 0]);
}

#[test]
fn dead_letters_of_a_clock_that_was_ahead_hold_no_other() {
    let mut harness = WriterHarness::new(1000);
    harness.register(&webhook("w", 0));
    harness.writer.settings.dead_letter_retention = Duration::from_secs(3600);
    let now = wall_clock::now().unix_ms;
    let letters = [(1, now + 2 * 86_400_000), (2, now)].map(|(position, died_at)| {
        let mut letter = dead_letter(position, b"{}");
        letter.died_at = died_at;
        DeliveryChange::Dead(letter)
    });
    harness.journal("w", changes(5, letters)).unwrap();
    harness.retire();
    assert_eq!(harness.dead_positions("w", DeadLetterState::Dead), [2, 1]);
    let later =
        wall_clock::WallTime { unix_ms: now + 3_700_000, earliest_ms: now, is_in_doubt: false };
    harness.writer.retire_step(later).unwrap();
    assert_eq!(harness.dead_positions("w", DeadLetterState::Dead), [] as [u64; 0]);
}
