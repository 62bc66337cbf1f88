//! What the writer does for webhooks, on the same disk.

use super::*;
use crate::{
    log::backing::Unwritable,
    store::{
        Store,
        webhook_rows::{
            Changes, Fate, Letters, Notice, Owed, Registration, Which,
            tests::{changes, delivery, letter, owed, settled, webhook},
        },
    },
    webhook_delivery::DeadReason,
};

/// What a future says that has nothing to wait for any more.
fn said<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(said) => said,
        Poll::Pending => panic!("it is still to be waited for"),
    }
}

impl Rig {
    fn register(&mut self, webhook: &Registration) {
        let registered = self.writer.desk.register(webhook.clone());
        self.writer.work();
        said(registered).unwrap();
    }

    fn journal(&mut self, id: &str, changes: Changes) -> Result<(), Changes> {
        let journaled = self.writer.desk.journal(&id.into(), changes);
        self.writer.work();
        said(journaled)
    }

    /// Places of the dead letters in this state, the newest first.
    fn dead(&mut self, id: &str, letters: Letters) -> Vec<u64> {
        let listed = self.writer.desk.dead_letters(id, letters, None, 1000);
        self.writer.work();
        said(listed).unwrap().into_iter().map(|(_, letter)| letter.delivery.place).collect()
    }

    fn requeue(&mut self, id: &str, which: Which) -> u64 {
        let requeued = self.writer.desk.requeue(id, which);
        while self.writer.desk.has_orders() {
            self.writer.work();
        }
        said(requeued).unwrap()
    }

    /// What the file has: its position, and the places of what is owed.
    fn kept_of(&self, id: &str) -> Option<(u64, Vec<u64>)> {
        let State::Open(file) = &self.writer.state else { panic!("the file is open") };
        let webhook = file.webhooks().unwrap().into_iter().find(|webhook| webhook.id == id)?;
        Some((webhook.position, webhook.owed.iter().map(|owed| owed.delivery.place).collect()))
    }

    /// Looks at once for what is beyond its bounds.
    fn retire(&mut self) {
        self.writer.retired = Instant::now() - RETIRE_EVERY;
        self.writer.work();
    }
}

fn dead(places: impl IntoIterator<Item = u64>) -> Vec<Fate> {
    places.into_iter().map(|place| Fate::Dead(letter(place, b"{}"))).collect()
}

#[test]
fn a_webhook_goes_through_all_orders_and_is_told_its_counts() {
    let mut rig = Rig::new(1000);
    let webhook = webhook("w", 0);
    rig.register(&webhook);
    assert_eq!(webhook.notices.take(), Notice::default());
    rig.journal("w", changes(9, dead(2..=5).into_iter().chain([Fate::Owed(owed(7))]))).unwrap();
    assert_eq!(rig.kept_of("w"), Some((9, vec![7])));
    assert_eq!(webhook.notices.take(), Notice { dead: 4, ..Notice::default() });
    assert_eq!(rig.requeue("w", Which::These(vec![EventId::new(7, 4), EventId::new(7, 7)])), 1);
    assert_eq!(webhook.notices.take(), Notice { dead: 3, requeued: 1, ..Notice::default() });
    assert_eq!((rig.dead("w", Letters::Dead), rig.dead("w", Letters::Requeued)), (vec![5, 3, 2], vec![4]));
    let _ = rig.writer.desk.take_unsynced();
    let requeued = [0, 3, 4].map(|after| rig.writer.desk.requeued("w", after, 9));
    rig.writer.work();
    let requeued = requeued.map(|these| said(these).unwrap());
    assert_eq!(requeued, [vec![letter(4, b"{}")], vec![letter(4, b"{}")], vec![]]);
    assert!(!rig.writer.desk.take_unsynced(), "who looks leaves nothing to be synced");
    rig.journal("w", settled([4])).unwrap();
    assert_eq!(webhook.notices.take(), Notice { dead: 3, ..Notice::default() });
    let gone = rig.writer.desk.unregister("w");
    rig.writer.work();
    rig.writer.work();
    said(gone).unwrap();
    assert_eq!((rig.kept_of("w"), rig.dead("w", Letters::Dead)), (None, vec![]));
    rig.journal("w", changes(9, dead([8]))).unwrap_err();
    assert!(rig.writer.webhooks.is_empty() && rig.dead("w", Letters::Dead).is_empty());
}

#[test]
fn what_is_written_down_of_a_webhook_that_the_file_does_not_have_comes_back() {
    let mut rig = Rig::new(1000);
    rig.register(&webhook("old", 0));
    let desk = Arc::clone(&rig.writer.desk);
    let registered = desk.register(webhook("new", 0)); // asked first, and carried out behind the journals
    let what = changes(9, [Fate::Owed(owed(5))]);
    let early = desk.journal(&"new".into(), what.clone());
    let other = desk.journal(&"old".into(), changes(9, []));
    rig.writer.work();
    assert_eq!((said(early), said(other)), (Err(what.clone()), Ok(())));
    said(registered).unwrap();
    rig.journal("new", what).unwrap();
    assert_eq!((rig.kept_of("new"), rig.kept_of("old")), (Some((9, vec![5])), Some((9, vec![]))));
}

#[test]
fn many_are_requeued_in_steps_between_which_what_comes_is_committed() {
    let mut rig = Rig::new(1000);
    let webhook = webhook("w", 0);
    rig.register(&webhook);
    rig.journal("w", changes(2000, dead(1..=2000))).unwrap();
    let requeued = rig.writer.desk.requeue("w", Which::All);
    while rig.writer.desk.has_orders() {
        rig.append(1);
        rig.writer.work();
        assert_eq!(rig.log.backlog(), 0);
    }
    assert_eq!(said(requeued).unwrap(), 2000);
    assert_eq!(webhook.notices.take(), Notice { requeued: 2000, ..Notice::default() });
}

#[test]
fn all_that_waits_is_one_commit_with_what_the_log_has() {
    let mut rig = Rig::new(1000);
    rig.register(&webhook("w", 0));
    rig.register(&webhook("v", 0));
    rig.append(10);
    let desk = Arc::clone(&rig.writer.desk);
    let journals = ["w", "v", "w"].map(|id| desk.journal(&id.into(), changes(7, [Fate::Owed(owed(5))])));
    rig.writer.work();
    journals.into_iter().for_each(|journal| said(journal).unwrap());
    assert_eq!((rig.writer.script.steps(), rig.log.backlog()), (vec![Step::Commit], 0));
    assert_eq!((rig.kept_of("w"), rig.kept_of("v")), (Some((7, vec![5])), Some((7, vec![5]))));
}

#[test]
fn changes_that_could_not_be_committed_come_back_and_nothing_has_changed() {
    let mut rig = Rig::new(1000);
    let webhook = webhook("w", 0);
    rig.register(&webhook);
    let _ = webhook.notices.take();
    rig.acts([Act::FailBefore]);
    let what = changes(7, dead([3]).into_iter().chain([Fate::Owed(owed(5))]));
    assert_eq!(rig.journal("w", what.clone()), Err(what.clone()));
    assert_eq!(rig.journal("w", what.clone()), Err(what.clone()), "while the file is closed");
    assert!(
        said({
            let refused = rig.writer.desk.register(webhook.clone());
            rig.writer.work();
            refused
        })
        .is_err()
    );
    rig.work_again();
    assert_eq!((rig.kept_of("w"), webhook.notices.take()), (Some((0, vec![])), Notice::default()));
    rig.acts([Act::FailAfter]);
    assert_eq!(rig.journal("w", what.clone()), Err(what.clone()), "nobody knows");
    rig.work_again();
    rig.journal("w", what).unwrap();
    assert_eq!((rig.kept_of("w"), webhook.notices.take().dead), (Some((7, vec![5])), 1));
    rig.writer.desk.stop();
    assert!(said(rig.writer.desk.journal(&"w".into(), changes(8, []))).is_err(), "too late");
    assert!(matches!(said(rig.writer.desk.unregister("w")), Err(Unwritable)));
}

#[test]
fn who_waits_for_a_commit_alone_does_not_wait_for_more() {
    let mut rig = Rig::new(1000);
    rig.writer.worked = Instant::now() - Duration::from_secs(1);
    assert_eq!(rig.writer.gather(), GATHER, "without webhooks, nobody waits for commits");
    rig.register(&webhook("w", 0));
    assert!(rig.writer.gather() <= GATHER_FOR_WEBHOOKS);
    assert!(rig.writer.gather() > Duration::ZERO, "not a commit for each of those who come together");
    rig.writer.worked = Instant::now() - GATHER_FOR_WEBHOOKS;
    assert_eq!(rig.writer.gather(), Duration::ZERO);
    // And a journal alone wakes the writer.
    let desk = Arc::clone(&rig.writer.desk);
    let journal = desk.journal(&"w".into(), changes(1, []));
    assert!(desk.has_orders());
    rig.writer.work();
    said(journal).unwrap();
    assert!(!desk.has_orders());
}

#[test]
fn a_long_backlog_is_written_in_one_round_where_webhooks_wait_for_it_too() {
    let mut rig = Rig::new(100_000);
    rig.register(&webhook("w", 0));
    rig.append(2 * BATCH_ENTRIES + 1);
    rig.writer.work();
    assert_eq!((rig.log.backlog(), rig.writer.script.steps()), (0, vec![Step::Commit; 3]));
}

#[test]
fn what_is_owed_for_too_long_is_a_dead_letter_of_which_its_webhook_is_told() {
    let mut rig = Rig::new(1000);
    let (late, done) = (webhook("late", 0), webhook("done", 0));
    rig.register(&late);
    rig.register(&done);
    rig.append(10);
    let desk = Arc::clone(&rig.writer.desk);
    let owed = Owed { delivery: delivery(2, ""), next_attempt_at: None };
    let journals =
        [desk.journal(&"late".into(), changes(4, [Fate::Owed(owed)])), desk.journal(&"done".into(), changes(10, []))];
    rig.writer.work();
    journals.into_iter().for_each(|journal| said(journal).unwrap());
    rig.writer.settings.retention = Duration::ZERO;
    thread::sleep(Duration::from_millis(2)); // older than now
    rig.retire();
    assert_eq!(rig.log.facts().shelf.map(|(events, _)| events), Some(0));
    let notice = Notice { expired_through: 10, dead: 7, ..Notice::default() };
    assert_eq!((late.notices.take(), done.notices.take()), (notice, Notice::default()));
    assert_eq!(rig.dead("late", Letters::Dead), [10, 9, 8, 7, 6, 5, 2]);
    assert_eq!((rig.kept_of("late"), rig.dead("done", Letters::Dead)), (Some((10, vec![])), vec![]));
    let listed = desk.dead_letters("late", Letters::Dead, None, 1);
    rig.writer.work();
    let (_, letter) = said(listed).unwrap().remove(0);
    assert_eq!((letter.reason, &*letter.payload, letter.delivery.place), (DeadReason::Expired, &b"{}"[..], 10));
}

#[test]
fn dead_letters_beyond_their_bounds_are_lost_and_counted() {
    let mut rig = Rig::new(1000);
    let webhook = webhook("w", 0);
    rig.register(&webhook);
    let mut fates = dead(1..=20);
    for fate in &mut fates {
        let Fate::Dead(letter) = fate else { continue };
        letter.died_at = if letter.delivery.place <= 5 { unix_ms() - 3_700_000 } else { unix_ms() };
    }
    rig.journal("w", changes(20, fates)).unwrap();
    rig.writer.settings.dead_letter_retention = Duration::from_secs(3600);
    rig.retire();
    assert_eq!(webhook.notices.take(), Notice { dead: 15, lost: 5, ..Notice::default() });
    rig.writer.settings.dead_letter_bytes = 0;
    rig.retire();
    assert_eq!(webhook.notices.take(), Notice { lost: 15, ..Notice::default() });
}

#[test]
fn erasing_a_session_takes_its_dead_letters_too() {
    let mut rig = Rig::new(16);
    let webhook = webhook("w", 0);
    rig.register(&webhook);
    rig.append(10);
    rig.journal("w", changes(10, dead([3]).into_iter().chain([Fate::Owed(owed(4))]))).unwrap();
    let session = SessionId::new("s").unwrap();
    assert_eq!(rig.log.erase(&session), 0, "the store has them");
    let erased = rig.writer.desk.erase(product(), session);
    rig.writer.work();
    assert_eq!(said(erased).unwrap(), 10, "the one that is dead, too, is one of them");
    assert_eq!((webhook.notices.take(), rig.kept_of("w")), (Notice::default(), Some((10, vec![]))));
}

#[test]
fn a_file_that_is_begun_anew_has_the_webhooks_again_and_they_are_told() {
    for is_damaged in [true, false] {
        for events in [0, 20] {
            let mut rig = Rig::new(16);
            let webhook = webhook("w", 0);
            rig.register(&webhook);
            rig.append(events);
            rig.journal("w", changes(17, dead([3]).into_iter().chain([Fate::Owed(owed(5))]))).unwrap();
            if is_damaged {
                rig.writer.replace("says the test");
            } else {
                rig.writer.fail(&trouble());
                for file in fs::read_dir(rig.writer.desk.path().parent().unwrap()).unwrap() {
                    fs::remove_file(file.unwrap().path()).unwrap();
                }
                rig.work_again();
            }
            assert_eq!(rig.kept_of("w"), Some((0, vec![])), "{is_damaged} {events}: no further than there is a log");
            assert_eq!(webhook.notices.take(), Notice { is_replaced: true, ..Notice::default() });
            rig.journal("w", changes(17, [])).unwrap(); // as the worker then does
            assert_eq!(rig.kept_of("w"), Some((17, vec![])));
            rig.writer.fail(&trouble());
            rig.work_again();
            assert!(!webhook.notices.take().is_replaced, "once");
        }
    }
}

#[test]
fn a_log_tells_how_far_it_is_kept_and_nobody_waits_in_vain() {
    let mut rig = Rig::new(16);
    let mut kept = rig.log.kept();
    assert_eq!(*kept.borrow_and_update(), 0);
    rig.append(10);
    assert!(!kept.has_changed().unwrap());
    rig.writer.work();
    assert_eq!(*kept.borrow_and_update(), 10);
    rig.acts([Act::FailBefore]);
    rig.append(200);
    rig.writer.work();
    tail(&rig.log, 0);
    let missing_through = *kept.borrow_and_update();
    assert!(missing_through > 10, "what will never be kept is nothing to wait for");
    rig.work_again();
    assert_eq!(*kept.borrow_and_update(), 210);
    rig.writer.replace("says the test");
    assert!((missing_through..210).contains(&*kept.borrow_and_update()), "what is in memory is to be kept again");
    rig.writer.work();
    assert_eq!(*kept.borrow_and_update(), 210);
    let log = Log::new(product(), Bounds { events: 16, bytes: u64::MAX }, rig.metrics.log(&product()));
    append(&log);
    assert_eq!(*log.kept().borrow(), u64::MAX, "without a store");
}

/// A store without a directory, and the log beside it.
fn in_memory(dead_letter_bytes: u64) -> (Store, Arc<Log>) {
    let metrics = Metrics::new().unwrap();
    let log = Log::new(product(), Bounds { events: 16, bytes: u64::MAX }, metrics.log(&product()));
    let (log, hour) = (Arc::new(log), Duration::from_secs(3600));
    let settings = Settings {
        directory: "/nonexistent".into(),
        retention: hour,
        retention_bytes: 1,
        dead_letter_retention: hour,
        dead_letter_bytes,
        max_concurrent_replays: 1,
    };
    (Store::in_memory(settings, vec![Arc::clone(&log)], &metrics).unwrap(), log)
}

/// A dead letter of now.
fn fresh(place: u64) -> Fate {
    Fate::Dead(crate::webhook_delivery::DeadLetter { died_at: unix_ms(), ..letter(place, b"{}") })
}

#[tokio::test]
async fn without_a_directory_the_same_orders_are_carried_out_in_memory() {
    let (store, log) = in_memory(1 << 30);
    let (desk, webhook) = (Arc::clone(store.desk()), webhook("w", 0));
    desk.register(webhook.clone()).await.unwrap();
    (0..40).for_each(|_| append(&log));
    tail(&log, 0); // 16 or so stay
    let fates = [1, 2, 40].map(fresh).into_iter().chain([Fate::Owed(owed(5))]);
    desk.journal(&"w".into(), changes(40, fates)).await.unwrap();
    assert_eq!(webhook.notices.take(), Notice { dead: 3, ..Notice::default() });
    assert_eq!(desk.requeue("w", Which::All).await.unwrap(), 3);
    assert_eq!(desk.requeued("w", 0, 9).await.unwrap().len(), 3);
    assert_eq!(desk.dead_letters("w", Letters::Requeued, None, 9).await.unwrap().len(), 3);
    let session = SessionId::new("s").unwrap();
    let in_memory = log.erase(&session);
    assert_eq!(in_memory + desk.erase(product(), session).await.unwrap(), in_memory + 2, "40 was one of the former");
    assert_eq!(desk.requeued("w", 0, 9).await.unwrap(), []);
    desk.unregister("w").await.unwrap();
    assert!(!desk.is_degraded() && !desk.is_recovering());
    drop(store);
    desk.register(webhook).await.unwrap_err();
    assert!(!Path::new(":memory:").exists() && !Path::new(":memory:-wal").exists());
}

#[tokio::test]
async fn dead_letters_in_memory_are_bounded_too() {
    let (store, _log) = in_memory(2000);
    let webhook = webhook("w", 0);
    store.desk().register(webhook.clone()).await.unwrap();
    store.desk().journal(&"w".into(), changes(40, (1..=40).map(fresh))).await.unwrap();
    while webhook.notices.take().dead > 10 {
        tokio::time::timeout(Duration::from_secs(15), webhook.notices.told()).await.expect("it is told");
    }
    let left = store.desk().dead_letters("w", Letters::Dead, None, 100).await.unwrap();
    assert!((4..=10).contains(&left.len()) && left[0].1.delivery.place == 40, "{}", left.len());
}

#[tokio::test]
async fn a_store_in_memory_that_fails_is_begun_anew_with_its_webhooks() {
    let (metrics, file) = (Metrics::new().unwrap(), File::in_memory().unwrap());
    let (store, _log) = in_memory(1);
    let settings = Rig::new(16).writer.settings;
    drop(store);
    let desk = Desk::new(sqlite::IN_MEMORY.into(), 1);
    let mut writer = Writer::new(Arc::clone(&desk), vec![], file, settings, metrics.store().clone());
    let webhook = webhook("w", 4);
    for again in [false, true] {
        let registered = desk.register(webhook.clone());
        writer.work();
        registered.await.unwrap();
        assert_eq!(webhook.notices.take().is_replaced, again);
        if !again {
            writer.fail(&trouble());
            assert!(desk.is_degraded());
            writer.state = State::Failed { retry_at: Instant::now() };
            writer.work();
        }
    }
    writer.replace("says the test");
    assert!(!desk.is_degraded() && webhook.notices.take().is_replaced);
    assert!(!Path::new(sqlite::IN_MEMORY).exists());
}

/// What the next life of a relay finds in a directory, with these products.
fn open(directory: &Path, products: &[ProductId]) -> (Store, Vec<crate::store::KeptWebhook>) {
    let settings = Settings { directory: directory.to_owned(), ..Rig::new(16).writer.settings };
    let bounds = Bounds { events: 16, bytes: u64::MAX };
    let (mut store, _) = Store::open(settings, bounds, products, &Metrics::new().unwrap()).unwrap();
    let webhooks = store.take_webhooks();
    assert!(store.take_webhooks().is_empty());
    (store, webhooks)
}

#[tokio::test]
async fn after_a_crash_webhooks_are_found_with_what_was_committed_if_their_product_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (store, found) = open(directory.path(), &[product()]);
    assert!(found.is_empty());
    let desk = Arc::clone(store.desk());
    desk.register(webhook("w", 2)).await.unwrap();
    desk.journal(&"w".into(), changes(9, [fresh(6), Fate::Owed(owed(7))])).await.unwrap();
    store.crash();
    drop(store);
    let other = ProductId::new("other").unwrap();
    let (store, found) = open(directory.path(), std::slice::from_ref(&other));
    assert!(found.is_empty(), "nobody is there to deliver it");
    store.desk().register(Registration { product: other.clone(), ..webhook("o", 0) }).await.unwrap();
    drop(store);
    let (store, found) = open(directory.path(), &[product(), other]);
    let found: Vec<_> = found.into_iter().map(|it| (it.id, it.definition, it.position, it.owed)).collect();
    let about = |id: &str| (id.to_owned(), format!("about {id}"));
    let ((w, of_w), (o, of_o)) = (about("w"), about("o"));
    assert_eq!(found, [(w, of_w, 9, vec![owed(7)]), (o, of_o, 0, vec![])]);
    let again = webhook("w", 0);
    store.desk().register(again.clone()).await.unwrap();
    assert_eq!(again.notices.take(), Notice { dead: 1, ..Notice::default() }, "told once it is registered");
}
