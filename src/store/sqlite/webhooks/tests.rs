use super::*;
use crate::{
    event::{EventId, Kind, Only, Scope, UserId, VisitorId},
    log::Hole,
    store::{
        sqlite::{
            AppendBatch, Indices,
            rows::read_scope,
            tests::{event, file_with_product, product},
        },
        webhook_rows::tests::{changes, dead_letter, owed, settled, webhook},
    },
};

/// Commits a webhook's journal, and returns whether its dead letters changed.
pub(in crate::store::sqlite) fn journal(
    file: &mut StoreFile,
    id: &str,
    changes: &WebhookChanges,
) -> bool {
    file.append_with_journals(&[], [(id, changes)], SyncMode::Normal, 1).unwrap()
}

/// Returns the only webhook of the file.
fn stored_webhook(file: &StoreFile) -> StoredWebhook {
    let mut webhooks = file.webhooks().unwrap();
    assert_eq!(webhooks.len(), 1);
    webhooks.remove(0)
}

fn counts(file: &StoreFile) -> Vec<(u64, u64)> {
    file.dead_letter_counts()
        .unwrap()
        .into_iter()
        .map(|counts| (counts.dead, counts.requeued))
        .collect()
}

fn dead_positions(file: &StoreFile, id: &str) -> Vec<u64> {
    let letters = file.dead_letters(id, crate::store::DeadLetterState::Dead, None, 1000).unwrap();
    letters.into_iter().map(|(_, letter)| letter.delivery.position).collect()
}

#[test]
fn a_webhook_is_found_again_as_it_was_registered_with_what_is_owed_to_it() {
    let (_directory, mut file) = file_with_product();
    let registered = file.register(&webhook("w", 0), 1).unwrap();
    assert_eq!(registered, RegistrationOutcome { is_new: true, forgotten: 0, position: 0 });
    let mut untried = owed(6);
    (untried.next_attempt_at, untried.delivery.session) = (None, None);
    untried.delivery.attempts.clear();
    journal(
        &mut file,
        "w",
        &changes(7, [DeliveryChange::Owed(untried.clone()), DeliveryChange::Owed(owed(4))]),
    );
    let path = file.path().to_owned();
    drop(file); // as a crash would leave it
    let stored = stored_webhook(&StoreFile::open(&path).unwrap());
    assert_eq!(
        (&*stored.id, &stored.product, &*stored.definition, stored.position),
        ("w", &product("p"), "about w", 7)
    );
    assert_eq!(stored.owed, [owed(4), untried]);
}

#[test]
fn a_new_webhook_begins_no_further_than_the_file_has_the_log() {
    let (_directory, mut file) = file_with_product();
    let entries: Vec<_> = (1..=5).map(|position| event(position, "s", "k", b"a")).collect();
    file.append_one(1, 1, &entries, 1);
    for (position, expected) in [(4, 4), (9, 5)] {
        let id = format!("at {position}");
        assert_eq!(file.register(&webhook(&id, position), 1).unwrap().position, expected);
    }
    let positions: Vec<u64> = file.webhooks().unwrap().iter().map(|kept| kept.position).collect();
    assert_eq!(positions, [4, 5], "events after a crash get positions from 6 on");
}

#[test]
fn a_webhook_that_is_changed_keeps_its_position() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 3), 1).unwrap();
    journal(&mut file, "w", &changes(5, [DeliveryChange::Owed(owed(4))]));
    let changed = WebhookRegistration { definition: "new".to_owned(), ..webhook("w", 90) };
    let registered = file.register(&changed, 1).unwrap();
    assert_eq!(registered, RegistrationOutcome { is_new: false, forgotten: 0, position: 5 });
    let stored = stored_webhook(&file);
    assert_eq!((&*stored.definition, stored.position, stored.owed), ("new", 5, vec![owed(4)]));
}

#[test]
fn a_webhook_that_becomes_another_products_begins_anew() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 3), 1).unwrap();
    journal(
        &mut file,
        "w",
        &changes(5, [DeliveryChange::Owed(owed(4)), DeliveryChange::Dead(dead_letter(5, b"x"))]),
    );
    let other = WebhookRegistration { product: product("q"), ..webhook("w", 0) };
    let registered = file.register(&other, 1).unwrap();
    assert_eq!(registered, RegistrationOutcome { is_new: true, forgotten: 2, position: 0 });
    let stored = stored_webhook(&file);
    assert_eq!((stored.product, stored.position, stored.owed), (product("q"), 0, Vec::new()));
    assert_eq!(counts(&file), [(0, 0)]);
}

#[test]
fn a_position_never_goes_back() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 3), 1).unwrap();
    for (position, expected) in [(9, 9), (4, 9), (0, 9), (10, 10)] {
        journal(&mut file, "w", &settled([]));
        journal(&mut file, "w", &changes(position, []));
        assert_eq!(stored_webhook(&file).position, expected);
    }
}

#[test]
fn a_delivery_is_owed_then_settled_or_dead_and_dead_once() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    assert!(!journal(
        &mut file,
        "w",
        &changes(3, [1, 2, 3].map(|position| DeliveryChange::Owed(owed(position))))
    ));
    let later = OwedDelivery { next_attempt_at: Some(1), ..owed(2) };
    journal(&mut file, "w", &changes(3, [DeliveryChange::Owed(later.clone())]));
    assert_eq!(stored_webhook(&file).owed, [owed(1), later, owed(3)]);
    assert!(!journal(&mut file, "w", &settled([1])), "there were no dead letters");
    assert!(journal(&mut file, "w", &changes(3, [DeliveryChange::Dead(dead_letter(2, b"two"))])));
    assert_eq!(
        (stored_webhook(&file).owed, dead_positions(&file, "w"), counts(&file)),
        (vec![owed(3)], vec![2], vec![(1, 0)])
    );
    file.requeue_through("w", u64::MAX).unwrap();
    assert_eq!(counts(&file), [(0, 1)]);
    assert!(journal(&mut file, "w", &changes(3, [DeliveryChange::Dead(dead_letter(2, b"again"))])));
    assert_eq!((dead_positions(&file, "w"), counts(&file)), (vec![2], vec![(1, 0)]));
    assert!(journal(&mut file, "w", &settled([2, 3])));
    assert_eq!((stored_webhook(&file).owed, counts(&file)), (vec![], vec![(0, 0)]));
}

#[test]
fn a_delivery_of_an_evicted_event_is_owed_no_more_although_its_worker_journals_it() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 2), 1).unwrap();
    file.append_one(1, 1, &[event(1, "s", "k", b"a"), event(2, "s", "k", b"b")], 1);
    file.retire(2, u64::MAX, 2).unwrap().unwrap();
    journal(
        &mut file,
        "w",
        &changes(3, [2, 3].map(|position| DeliveryChange::Owed(owed(position)))),
    );
    assert_eq!(stored_webhook(&file).owed, [owed(3)]);
}

#[test]
fn an_erased_event_does_not_come_back_with_a_workers_copy_of_it() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    let missing = [Hole { first: 4, last: 4 }];
    let entries = [1, 2, 3].map(|position| event(position, "s", "k", b"a"));
    let batch =
        AppendBatch { product_number: 1, first: 1, entries: &entries, spans: &[], holes: &missing };
    file.append(&[batch], SyncMode::Normal, 1).unwrap();
    let session = SessionId::new("s").unwrap();
    file.erase(1, &VisitorId::Session(session), 0, Indices::Trusted).unwrap();
    // 4 is a hole, whose event the worker has; the file's newest position is 4, so 5 is unknown.
    let dead = [2, 3, 4, 5].map(|position| DeliveryChange::Dead(dead_letter(position, b"a")));
    journal(&mut file, "w", &changes(1, dead.into_iter().chain([DeliveryChange::Owed(owed(1))])));
    assert_eq!((stored_webhook(&file).owed, dead_positions(&file, "w")), (vec![], vec![5, 4]));
}

#[test]
fn journals_and_entries_are_one_transaction() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    let entries = [event(1, "s", "k", b"a")];
    let batch = |number| AppendBatch {
        product_number: number,
        first: 1,
        entries: &entries,
        spans: &[],
        holes: &[],
    };
    let (owed, advanced) = (changes(0, [DeliveryChange::Owed(owed(1))]), changes(1, []));
    let journals = [("w", &owed), ("unknown", &advanced), ("w", &advanced)];
    file.append_with_journals(&[batch(9)], journals, SyncMode::Normal, 1).unwrap_err();
    assert_eq!((stored_webhook(&file).position, stored_webhook(&file).owed.len()), (0, 0));
    // The last part of the transaction fails: the parts before it are rolled back.
    file.connection()
        .execute_batch(
            "CREATE TEMP TRIGGER t BEFORE UPDATE OF position ON webhooks BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    file.append_with_journals(&[batch(1)], journals, SyncMode::Normal, 1).unwrap_err();
    file.connection().execute_batch("DROP TRIGGER t").unwrap();
    assert_eq!(
        (stored_webhook(&file).owed.len(), file.find_or_add_product(&product("p")).unwrap().newest),
        (0, 0)
    );
    file.append_with_journals(&[batch(1)], journals, SyncMode::Normal, 1).unwrap();
    let newest = file.find_or_add_product(&product("p")).unwrap().newest;
    assert_eq!(
        (stored_webhook(&file).position, stored_webhook(&file).owed.len(), newest),
        (1, 1, 1)
    );
}

#[test]
fn a_webhook_is_deleted_in_steps_and_the_others_stay() {
    let (_directory, mut file) = file_with_product();
    for id in ["w", "other"] {
        file.register(&webhook(id, 0), 1).unwrap();
        let deliveries = (1..=300).map(|position| DeliveryChange::Owed(owed(position)));
        let dead = (301..=900).map(|position| DeliveryChange::Dead(dead_letter(position, b"x")));
        journal(&mut file, id, &changes(900, deliveries.chain(dead)));
    }
    let mut steps = 0;
    while !file.unregister("w", 1).unwrap() {
        steps += 1;
    }
    assert!(steps >= 3, "{steps}");
    let other = stored_webhook(&file);
    assert_eq!((&*other.id, other.owed.len(), counts(&file)), ("other", 300, vec![(600, 0)]));
    assert!(dead_positions(&file, "w").is_empty());
    assert!(file.unregister("w", 1).unwrap(), "it is gone");
    journal(&mut file, "w", &changes(3, [DeliveryChange::Owed(owed(2))]));
    assert_eq!(file.webhooks().unwrap().len(), 1, "its worker's journal comes too late");
}

#[test]
fn a_scope_reads_back_as_it_was_written() {
    let these =
        |texts: &[&str]| Only::These(texts.iter().map(|it| SessionId::new(it).unwrap()).collect());
    let users = Only::These([UserId::new("\"u").unwrap()].into());
    let kinds = Only::These([Kind::Actions, Kind::new("odd \" kind")].into());
    for scope in [
        Scope::EVERYTHING,
        Scope { sessions: these(&["\u{e4}", "\"b"]), users, kinds },
        Scope { sessions: these(&[]), ..Scope::EVERYTHING },
    ] {
        assert_eq!(read_scope(&write_scope(&scope).unwrap()).unwrap(), scope);
    }
    let former = r#"{"sessions":null,"kinds":null}"#;
    assert_eq!(read_scope(former).unwrap(), Scope::EVERYTHING, "of a file without users");
    assert!(matches!(read_scope("[]"), Err(FileFault::Damage(_))));
}

#[test]
fn ids_of_other_epochs_read_back_bit_for_bit() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    let mut strange = owed(1);
    strange.delivery.event_id = EventId { epoch: u64::MAX, sequence: u64::MAX, suffix: u32::MAX };
    strange.delivery.kind = Kind::new("odd \0 kind");
    journal(&mut file, "w", &changes(1, [DeliveryChange::Owed(strange.clone())]));
    assert_eq!(stored_webhook(&file).owed, [strange]);
}

#[test]
fn a_damaged_owed_row_is_made_again_from_its_event() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    file.append_one(1, 1, &[event(1, "s", "k", b"x"), event(2, "t", "k", b"x")], 50);
    journal(
        &mut file,
        "w",
        &changes(2, [1, 2].map(|position| DeliveryChange::Owed(owed(position)))),
    );
    let change = |statement: &str| assert_eq!(file.connection().execute(statement, []), Ok(1));
    change("UPDATE owed SET attempts = 'x' WHERE place = 2");
    let stored = stored_webhook(&file).owed;
    assert_eq!(stored[0], owed(1));
    let made = &stored[1].delivery;
    assert_eq!(
        (made.position, made.event_id, &made.kind),
        (2, EventId::new(7, 2), &Kind::new("k"))
    );
    assert_eq!((made.session.as_ref().map(|it| it.as_str()), made.created_at), (Some("t"), 50));
    assert!(made.attempts.is_empty() && stored[1].next_attempt_at.is_none());
    // With a changed key nothing says which event is owed; with a changed event nothing at all. The
    // others stay owed.
    change("UPDATE owed SET place = 9 WHERE place = 2");
    assert_eq!(stored_webhook(&file).owed, [owed(1)]);
    change("UPDATE owed SET place = 2 WHERE place = 9");
    assert_eq!(stored_webhook(&file).owed.len(), 2);
    change("UPDATE entries SET kind = 'K' WHERE entry & 0xFFFF = 2");
    assert_eq!(stored_webhook(&file).owed, [owed(1)]);
}
