use std::collections::BTreeSet;

use super::*;
use crate::{
    event::{Entry, GapReason},
    log::Missing,
    store::{
        Letters,
        sqlite::{
            File, Portion, Sync,
            tests::{event, file_of_one, gap, session},
            webhooks::tests::journal,
        },
        webhook_rows::{
            Fate, Registration,
            tests::{changes, letter, owed, webhook},
        },
    },
    webhook_delivery::{DeadLetter, DeadReason},
};

/// Dead letters by place.
fn dead(file: &File, id: &str) -> Vec<DeadLetter> {
    let mut letters: Vec<_> =
        file.dead_letters(id, Letters::Dead, None, 1000).unwrap().into_iter().map(|(_, letter)| letter).collect();
    letters.sort_by_key(|letter| letter.delivery.place);
    letters
}

fn places(letters: &[DeadLetter]) -> Vec<u64> {
    letters.iter().map(|letter| letter.delivery.place).collect()
}

fn position(file: &File, id: &str) -> u64 {
    file.webhooks().unwrap().into_iter().find(|webhook| webhook.id == id).unwrap().position
}

fn write(file: &mut File, places: std::ops::RangeInclusive<u64>, kept_at: u64) {
    let entries: Vec<Entry> =
        places.clone().map(|place| event(place, "s", "actions", format!("payload {place}").as_bytes())).collect();
    file.write_one(1, *places.start(), &entries, kept_at);
}

#[test]
fn what_goes_although_it_is_owed_is_a_dead_letter_with_its_payload_and_attempts() {
    let (_directory, mut file) = file_of_one();
    file.register(&webhook("w", 0), 1).unwrap();
    write(&mut file, 1..=10, 50);
    write(&mut file, 11..=12, 60);
    // 1, 3 and 4 are delivered; 2 and 11 have been tried; 6 and after have not been looked at.
    journal(&mut file, "w", &changes(5, [Fate::Owed(owed(2)), Fate::Owed(owed(11))]));
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(retired.expired, [Expired { id: "w".to_owned(), letters: 6, lost: 0 }]);
    let letters = dead(&file, "w");
    assert_eq!(places(&letters), [2, 6, 7, 8, 9, 10]);
    let expired = |letter: &DeadLetter| (letter.reason, letter.died_at) == (DeadReason::Expired, 99);
    assert!(letters.iter().all(expired));
    assert_eq!((&letters[0].delivery, &*letters[0].payload), (&owed(2).delivery, &b"payload 2"[..]));
    let ahead = &letters[1].delivery;
    assert_eq!((ahead.created_at, ahead.attempts.len(), &*letters[1].payload), (50, 0, &b"payload 6"[..]));
    assert_eq!(
        (ahead.event_id, &ahead.kind, &ahead.session),
        (owed(6).delivery.event_id, &Kind::Actions, &Some(session("s")))
    );
    assert_eq!(position(&file, "w"), 10);
    assert_eq!(file.webhooks().unwrap()[0].owed, [owed(11)]);
    let retired = file.retire(61, u64::MAX, 100).unwrap().unwrap();
    assert_eq!(retired.expired, [Expired { id: "w".to_owned(), letters: 2, lost: 0 }]);
    assert_eq!(position(&file, "w"), 12);
}

#[test]
fn what_has_been_delivered_or_is_nobodys_just_goes() {
    let (_directory, mut file) = file_of_one();
    let other = Registration { product: crate::event::ProductId::new("q").unwrap(), ..webhook("q", 0) };
    for webhook in [webhook("w", 0), other] {
        file.register(&webhook, 1).unwrap();
    }
    write(&mut file, 1..=10, 50);
    journal(&mut file, "w", &changes(20, []));
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!((retired.events, retired.expired), (10, vec![]));
    assert!(dead(&file, "w").is_empty() && dead(&file, "q").is_empty());
    assert_eq!((position(&file, "w"), position(&file, "q")), (20, 0));
}

#[test]
fn only_what_a_webhook_would_have_got_becomes_its_dead_letter() {
    let (_directory, mut file) = file_of_one();
    let sessions = |these: &[&str]| Only::These(these.iter().map(|it| session(it)).collect::<BTreeSet<_>>());
    let scopes = [
        ("everything", Scope { sessions: Only::Everything, kinds: Only::Everything }, &[1, 2, 4, 5][..]),
        ("session", Scope { sessions: sessions(&["a"]), kinds: Only::Everything }, &[1, 4]),
        ("kind", Scope { sessions: Only::Everything, kinds: Only::These([Kind::Actions].into()) }, &[1, 2]),
        ("both", Scope { sessions: sessions(&["b"]), kinds: Only::These([Kind::Summary].into()) }, &[]),
    ];
    for (id, scope, _) in &scopes {
        file.register(&Registration { scope: scope.clone(), ..webhook(id, 0) }, 1).unwrap();
    }
    let entries = [
        event(1, "a", "actions", b"1"),
        event(2, "b", "actions", b"2"),
        gap(3, GapReason::UpstreamReconnect, None),
        event(4, "a", "summary", b"4"),
        event(5, "", "x", b"5"),
    ];
    file.write_one(1, 1, &entries, 1);
    while file.retire(2, u64::MAX, 3).unwrap().is_some() {}
    for (id, _, expected) in scopes {
        assert_eq!((places(&dead(&file, id)), position(&file, id)), (expected.to_vec(), 5), "{id}");
    }
}

#[test]
fn what_is_a_dead_letter_already_stays_the_one_it_is() {
    let (_directory, mut file) = file_of_one();
    file.register(&webhook("w", 0), 1).unwrap();
    write(&mut file, 1..=3, 50);
    journal(&mut file, "w", &changes(3, [1, 2].map(|place| Fate::Dead(letter(place, b"own")))));
    file.requeue_these("w", &[owed(1).delivery.event_id]).unwrap();
    journal(&mut file, "w", &changes(3, [Fate::Owed(owed(1))])); // delivered again, and not yet accepted
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(retired.expired, [Expired { id: "w".to_owned(), letters: 0, lost: 0 }]);
    assert_eq!(dead(&file, "w"), [letter(2, b"own")]);
    assert_eq!(file.requeued("w", 0, 9).unwrap(), [letter(1, b"own")]);
    assert!(file.webhooks().unwrap()[0].owed.is_empty());
}

#[test]
fn what_is_owed_of_events_that_were_never_kept_is_lost_with_those_around_it() {
    let (_directory, mut file) = file_of_one();
    file.register(&webhook("w", 0), 1).unwrap();
    write(&mut file, 1..=1, 50);
    let missing = [Missing { first: 2, last: 3 }];
    let portion = Portion { number: 1, first: 2, entries: &[], spans: &[], missing: &missing };
    file.write(&[portion], Sync::Normal, 50).unwrap();
    write(&mut file, 4..=4, 60);
    journal(&mut file, "w", &changes(4, [1, 3, 4].map(|place| Fate::Owed(owed(place)))));
    let retired = file.retire(60, u64::MAX, 99).unwrap().unwrap();
    assert_eq!(
        (retired.evicted_through, retired.expired),
        (3, vec![Expired { id: "w".to_owned(), letters: 1, lost: 1 }])
    );
    assert_eq!((places(&dead(&file, "w")), &file.webhooks().unwrap()[0].owed), (vec![1], &vec![owed(4)]));
}

#[test]
fn retention_by_bytes_makes_room_although_what_goes_is_owed() {
    let (_directory, mut file) = file_of_one();
    file.register(&webhook("w", 0), 1).unwrap();
    for first in (1..2000).step_by(100) {
        let entries: Vec<Entry> = (first..first + 100).map(|place| event(place, "s", "k", &[b'x'; 1000])).collect();
        file.write_one(1, first, &entries, first);
    }
    let mut steps = 0;
    while let Some(retired) = file.retire(0, 1 << 20, 3000).unwrap() {
        assert!(retired.events <= 256, "smaller steps, as more is written");
        steps += 1;
        assert!(steps < 100, "it comes to an end");
    }
    let (kept, dead) =
        (file.product(&crate::event::ProductId::new("p").unwrap()).unwrap().events, file.counts().unwrap()[0].dead);
    assert_eq!(kept + dead, 2000);
    assert!((600..1000).contains(&kept), "{kept}");
}
