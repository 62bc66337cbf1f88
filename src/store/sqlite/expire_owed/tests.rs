use super::*;
use crate::{
    event::{Entry, GapReason},
    log::Hole,
    store::{
        DeadLetterState,
        sqlite::{
            AppendBatch, StoreFile, SyncMode,
            tests::{event, file_with_product, gap, session},
            webhooks::tests::journal,
        },
        webhook_rows::{
            DeliveryChange, WebhookRegistration,
            tests::{changes, dead_letter, owed, webhook},
        },
    },
    webhook_delivery::{DeadLetter, DeadLetterReason},
};

/// Returns the dead letters by position.
fn dead_letters(file: &StoreFile, id: &str) -> Vec<DeadLetter> {
    let mut letters: Vec<_> = file
        .dead_letters(id, DeadLetterState::Dead, None, 1000)
        .unwrap()
        .into_iter()
        .map(|(_, letter)| letter)
        .collect();
    letters.sort_by_key(|letter| letter.delivery.position);
    letters
}

fn positions(letters: &[DeadLetter]) -> Vec<u64> {
    letters.iter().map(|letter| letter.delivery.position).collect()
}

fn webhook_position(file: &StoreFile, id: &str) -> u64 {
    file.webhooks().unwrap().into_iter().find(|webhook| webhook.id == id).unwrap().position
}

fn append_events(file: &mut StoreFile, positions: std::ops::RangeInclusive<u64>, kept_at: u64) {
    let entries: Vec<Entry> = positions
        .clone()
        .map(|position| event(position, "s", "actions", format!("payload {position}").as_bytes()))
        .collect();
    file.append_one(1, *positions.start(), &entries, kept_at);
}

#[test]
fn an_evicted_event_that_is_owed_is_a_dead_letter_with_its_payload_and_attempts() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    append_events(&mut file, 1..=10, 50);
    append_events(&mut file, 11..=12, 60);
    // 1, 3 and 4 are delivered; 2 and 11 have been attempted; 6 and later ones have not been read.
    journal(
        &mut file,
        "w",
        &changes(5, [DeliveryChange::Owed(owed(2)), DeliveryChange::Owed(owed(11))]),
    );
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(
        retired.expired,
        [ExpiredDeliveries { id: "w".to_owned(), dead_letters: 6, damaged: 0, lost: 0 }]
    );
    let letters = dead_letters(&file, "w");
    assert_eq!(positions(&letters), [2, 6, 7, 8, 9, 10]);
    let expired =
        |letter: &DeadLetter| (letter.reason, letter.died_at) == (DeadLetterReason::Expired, 99);
    assert!(letters.iter().all(expired));
    assert_eq!(
        (&letters[0].delivery, &*letters[0].payload),
        (&owed(2).delivery, &b"payload 2"[..])
    );
    let ahead = &letters[1].delivery;
    assert_eq!(
        (ahead.created_at, ahead.attempts.len(), &*letters[1].payload),
        (50, 0, &b"payload 6"[..])
    );
    assert_eq!(
        (ahead.event_id, &ahead.kind, &ahead.session),
        (owed(6).delivery.event_id, &Kind::Actions, &Some(session("s")))
    );
    assert_eq!(webhook_position(&file, "w"), 10);
    assert_eq!(file.webhooks().unwrap()[0].owed, [owed(11)]);
    let retired = file.retire(61, u64::MAX, 100).unwrap().unwrap();
    assert_eq!(
        retired.expired,
        [ExpiredDeliveries { id: "w".to_owned(), dead_letters: 2, damaged: 0, lost: 0 }]
    );
    assert_eq!(webhook_position(&file, "w"), 12);
}

#[test]
fn an_evicted_event_that_is_delivered_or_of_another_product_leaves_no_dead_letter() {
    let (_directory, mut file) = file_with_product();
    let other = WebhookRegistration {
        product: crate::event::ProductId::new("q").unwrap(),
        ..webhook("q", 0)
    };
    for webhook in [webhook("w", 0), other] {
        file.register(&webhook, 1).unwrap();
    }
    append_events(&mut file, 1..=10, 50);
    journal(&mut file, "w", &changes(20, []));
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!((retired.events, retired.expired), (10, vec![]));
    assert!(dead_letters(&file, "w").is_empty() && dead_letters(&file, "q").is_empty());
    assert_eq!((webhook_position(&file, "w"), webhook_position(&file, "q")), (20, 0));
}

#[test]
fn only_events_that_its_scope_admits_become_dead_letters_of_a_webhook() {
    let (_directory, mut file) = file_with_product();
    let sessions = |these: &[&str]| Only::These(these.iter().map(|it| session(it)).collect());
    let scopes = [
        ("everything", Scope::EVERYTHING, &[1, 2, 4, 5][..]),
        ("session", Scope { sessions: sessions(&["a"]), ..Scope::EVERYTHING }, &[1, 4]),
        (
            "kind",
            Scope { kinds: Only::These([Kind::Actions].into()), ..Scope::EVERYTHING },
            &[1, 2],
        ),
        (
            "both",
            Scope {
                sessions: sessions(&["b"]),
                kinds: Only::These([Kind::Summary].into()),
                ..Scope::EVERYTHING
            },
            &[],
        ),
    ];
    for (id, scope, _) in &scopes {
        file.register(&WebhookRegistration { scope: scope.clone(), ..webhook(id, 0) }, 1).unwrap();
    }
    let entries = [
        event(1, "a", "actions", b"1"),
        event(2, "b", "actions", b"2"),
        gap(3, GapReason::UpstreamReconnect, None),
        event(4, "a", "summary", b"4"),
        event(5, "", "x", b"5"),
    ];
    file.append_one(1, 1, &entries, 1);
    while file.retire(2, u64::MAX, 3).unwrap().is_some() {}
    for (id, _, expected) in scopes {
        assert_eq!(
            (positions(&dead_letters(&file, id)), webhook_position(&file, id)),
            (expected.to_vec(), 5),
            "{id}"
        );
    }
}

#[test]
fn an_expired_delivery_that_is_a_dead_letter_already_stays_the_one_it_is() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    append_events(&mut file, 1..=3, 50);
    journal(
        &mut file,
        "w",
        &changes(3, [1, 2].map(|position| DeliveryChange::Dead(dead_letter(position, b"own")))),
    );
    file.requeue_events("w", &[owed(1).delivery.event_id]).unwrap();
    // Attempted again, and not yet accepted.
    journal(&mut file, "w", &changes(3, [DeliveryChange::Owed(owed(1))]));
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(
        retired.expired,
        [ExpiredDeliveries { id: "w".to_owned(), dead_letters: 0, damaged: 0, lost: 0 }]
    );
    assert_eq!(dead_letters(&file, "w"), [dead_letter(2, b"own")]);
    assert_eq!(file.requeued_dead_letters("w", 0, 9).unwrap(), [dead_letter(1, b"own")]);
    assert!(file.webhooks().unwrap()[0].owed.is_empty());
}

#[test]
fn a_delivery_of_an_event_that_was_never_persisted_is_lost_when_its_neighbours_expire() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    append_events(&mut file, 1..=1, 50);
    let missing = [Hole { first: 2, last: 3 }];
    let batch =
        AppendBatch { product_number: 1, first: 2, entries: &[], spans: &[], holes: &missing };
    file.append(&[batch], SyncMode::Normal, 50).unwrap();
    append_events(&mut file, 4..=4, 60);
    journal(
        &mut file,
        "w",
        &changes(4, [1, 3, 4].map(|position| DeliveryChange::Owed(owed(position)))),
    );
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(
        (retired.evicted_through, retired.expired),
        (3, vec![ExpiredDeliveries { id: "w".to_owned(), dead_letters: 1, damaged: 0, lost: 1 }])
    );
    assert_eq!(
        (positions(&dead_letters(&file, "w")), &file.webhooks().unwrap()[0].owed),
        (vec![1], &vec![owed(4)])
    );
}

#[test]
fn retention_by_bytes_frees_space_although_the_deleted_entries_are_owed() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    for first in (1..2000).step_by(100) {
        let entries: Vec<Entry> =
            (first..first + 100).map(|position| event(position, "s", "k", &[b'x'; 1000])).collect();
        file.append_one(1, first, &entries, first);
    }
    let mut steps = 0;
    while let Some(retired) = file.retire(0, 1 << 20, 3000).unwrap() {
        assert!(retired.events <= 256, "smaller steps, because each writes more");
        steps += 1;
        assert!(steps < 100, "it comes to an end");
    }
    let (kept, dead) = (
        file.find_or_add_product(&crate::event::ProductId::new("p").unwrap()).unwrap().events,
        file.dead_letter_counts().unwrap()[0].dead,
    );
    assert_eq!(kept + dead, 2000);
    assert!((600..1000).contains(&kept), "{kept}");
}

#[test]
fn an_owed_event_whose_row_is_damaged_is_a_dead_letter_without_a_body() {
    let (_directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    append_events(&mut file, 1..=9, 50);
    let passed = [1, 2, 3].map(|position| DeliveryChange::Owed(owed(position)));
    journal(&mut file, "w", &changes(4, passed));
    let change = |statement: &str| assert_eq!(file.connection().execute(statement, []), Ok(1));
    // Owed and passed: the payload; all of the event; the owed row and its event.
    change("UPDATE entries SET payload = x'20' WHERE entry & 0xFFFF = 1");
    change("UPDATE entries SET payload = x'20', kind = 'K' WHERE entry & 0xFFFF = 2");
    change("UPDATE entries SET kind = 'K' WHERE entry & 0xFFFF = 3");
    change("UPDATE owed SET created_at = 77 WHERE place = 3");
    // Not reached: the payload; the other columns.
    change("UPDATE entries SET payload = x'20' WHERE entry & 0xFFFF = 6");
    change("UPDATE entries SET suffix = 1 WHERE entry & 0xFFFF = 7");
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    let expected = ExpiredDeliveries { id: "w".to_owned(), dead_letters: 3, damaged: 3, lost: 2 };
    assert_eq!(retired.expired, [expected]);
    let letters = dead_letters(&file, "w");
    assert_eq!(positions(&letters), [1, 2, 5, 6, 8, 9]);
    for letter in &letters {
        let is_damaged = [1, 2, 6].contains(&letter.delivery.position);
        assert_eq!(letter.reason == DeadLetterReason::Damaged, is_damaged, "{letter:?}");
        assert_eq!(letter.payload.is_empty(), is_damaged);
    }
    assert_eq!(letters[1].delivery, owed(2).delivery, "as its owed row says");
}
