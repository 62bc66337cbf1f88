use super::*;
use crate::{
    event::ProductId,
    store::{
        sqlite::{
            Indices,
            tests::{event, file_with_product, of_session, session},
            webhooks::tests::journal,
        },
        webhook_rows::{
            DeliveryChange, WebhookRegistration,
            tests::{changes, dead_letter, owed, webhook},
        },
    },
};

const NO_BOUND: u64 = u64::MAX;

/// Returns a file with one webhook and these dead letters.
fn file_with(letters: impl IntoIterator<Item = DeadLetter>) -> (tempfile::TempDir, StoreFile) {
    let (directory, mut file) = file_with_product();
    file.register(&webhook("w", 0), 1).unwrap();
    insert_dead_letters(&mut file, "w", letters);
    (directory, file)
}

fn insert_dead_letters(
    file: &mut StoreFile,
    id: &str,
    letters: impl IntoIterator<Item = DeadLetter>,
) {
    for letter in letters {
        journal(file, id, &changes(0, [DeliveryChange::Dead(letter)]));
    }
}

fn positions(page: &[(u64, DeadLetter)]) -> Vec<u64> {
    page.iter().map(|(_, letter)| letter.delivery.position).collect()
}

fn counts(file: &StoreFile) -> Vec<(u64, u64)> {
    file.dead_letter_counts()
        .unwrap()
        .into_iter()
        .map(|counts| (counts.dead, counts.requeued))
        .collect()
}

/// Checks that the webhooks' counters equal the sums over their dead letters.
fn assert_counters_fit(file: &StoreFile) {
    let query = "SELECT count(*) FROM webhooks WHERE (dead, requeued, dead_bytes) IS NOT ( \
                     SELECT ifnull(sum(1 - dead_letters.requeued), 0), ifnull(sum(dead_letters.requeued), 0), \
                     ifnull(sum(bytes), 0) FROM dead_letters WHERE webhook = webhooks.number)";
    assert_eq!(file.connection().query_row(query, [], |row| row.get::<_, i64>(0)), Ok(0));
}

#[test]
fn dead_letters_are_listed_newest_first_page_by_page_as_they_were() {
    let letters = [30, 10, 20]
        .map(|position| dead_letter(position, format!("\0payload of {position}").as_bytes()));
    let (_directory, file) = file_with(letters.clone());
    let page = file.dead_letters("w", DeadLetterState::Dead, None, 2).unwrap();
    assert_eq!(positions(&page), [20, 10], "in the order of their deaths");
    let next = file.dead_letters("w", DeadLetterState::Dead, Some(page[1].0), 2).unwrap();
    assert_eq!(
        next.into_iter().chain(page).map(|(_, it)| it).collect::<Vec<_>>(),
        [0, 2, 1].map(|at| letters[at].clone())
    );
    assert!(file.dead_letters("w", DeadLetterState::Requeued, None, 2).unwrap().is_empty());
    assert!(file.dead_letters("unknown", DeadLetterState::Dead, None, 2).unwrap().is_empty());
}

#[test]
fn a_page_has_about_a_mebibyte_and_at_least_one_dead_letter() {
    let (_directory, mut file) = file_with(
        [3 << 20, 600 << 10, 300 << 10, 100 << 10]
            .iter()
            .zip(1..)
            .map(|(bytes, position)| dead_letter(position, &vec![b'x'; *bytes])),
    );
    let list = |file: &StoreFile, before| {
        positions(&file.dead_letters("w", DeadLetterState::Dead, before, 100).unwrap())
    };
    assert_eq!((list(&file, None), list(&file, Some(2))), (vec![4, 3, 2], vec![1]));
    file.requeue_through("w", NO_BOUND).unwrap();
    let requeued = file.requeued_dead_letters("w", 0, 100).unwrap();
    assert_eq!(requeued.iter().map(|it| it.delivery.position).collect::<Vec<_>>(), [1]);
}

#[test]
fn dead_letters_are_requeued_once_in_the_order_of_their_positions() {
    let (_directory, mut file) =
        file_with([5, 3, 4, 1].map(|position| dead_letter(position, b"x")));
    file.register(&webhook("other", 0), 1).unwrap();
    insert_dead_letters(&mut file, "other", [dead_letter(3, b"x")]);
    let ids = [EventId::new(7, 3), EventId::new(8, 4), EventId::new(7, 5), EventId::new(7, 99)];
    assert_eq!(file.requeue_events("w", &ids).unwrap(), 2);
    assert_eq!(file.requeue_events("w", &ids).unwrap(), 0, "once");
    assert_eq!(counts(&file), [(2, 2), (1, 0)]);
    let through = file.newest_dead_letter().unwrap();
    insert_dead_letters(&mut file, "w", [dead_letter(9, b"x")]);
    assert_eq!(file.requeue_through("w", through).unwrap(), 2, "not what has died since");
    let requeued: Vec<u64> = file
        .requeued_dead_letters("w", 0, 9)
        .unwrap()
        .iter()
        .map(|it| it.delivery.position)
        .collect();
    assert_eq!(requeued, [1, 3, 4, 5]);
    assert_eq!(positions(&file.dead_letters("w", DeadLetterState::Dead, None, 9).unwrap()), [9]);
    assert_counters_fit(&file);
}

#[test]
fn dead_letters_that_are_too_old_are_lost_and_no_others() {
    let (_directory, mut file) = file_with((1..=300).map(|position| dead_letter(position, b"x")));
    file.register(&webhook("other", 0), 1).unwrap();
    insert_dead_letters(&mut file, "other", [dead_letter(280, b"x"), dead_letter(400, b"x")]);
    file.requeue_events("w", &[EventId::new(7, 1)]).unwrap();
    assert_eq!(file.retire_dead_letters(1, NO_BOUND).unwrap(), []);
    let lost = |id: &str, letters| RetiredDeadLetters {
        id: id.to_owned(),
        dead_letters: letters,
        bound: DeadLetterBound::Age,
    };
    assert_eq!(
        file.retire_dead_letters(290, NO_BOUND).unwrap(),
        [lost("w", 256)],
        "a small step, requeued or not"
    );
    assert_eq!(file.retire_dead_letters(290, NO_BOUND).unwrap(), [lost("w", 33)]);
    assert_eq!(file.retire_dead_letters(301, NO_BOUND).unwrap(), [lost("other", 1), lost("w", 11)]);
    assert_eq!(file.retire_dead_letters(301, NO_BOUND).unwrap(), []);
    assert_eq!(counts(&file), [(0, 0), (1, 0)]);
    assert_counters_fit(&file);
}

#[test]
fn the_oldest_dead_letters_beyond_the_bound_in_bytes_are_lost_and_not_more() {
    for bytes in [30, 3000, 30_000] {
        let (_directory, mut file) =
            file_with((1..=100).map(|position| dead_letter(position, &vec![b'x'; bytes])));
        let all = super::dead_letter_bytes(file.connection()).unwrap();
        assert!(all >= 100 * bytes as u64);
        assert_eq!(file.retire_dead_letters(0, all).unwrap(), []);
        let lost = file.retire_dead_letters(0, all * 9 / 10).unwrap();
        assert_eq!(
            lost,
            [RetiredDeadLetters {
                id: "w".to_owned(),
                dead_letters: 10,
                bound: DeadLetterBound::Bytes
            }]
        );
        let oldest = "SELECT min(place), count(*) FROM dead_letters";
        assert_eq!(
            file.connection().query_row(oldest, [], |row| Ok((row.get(0)?, row.get(1)?))),
            Ok((11, 90))
        );
        assert_counters_fit(&file);
    }
}

#[test]
fn dead_letters_do_not_drive_out_events() {
    let (_directory, mut file) = file_with([]);
    let entries: Vec<_> =
        (1..=100).map(|position| event(position, "s", "k", &[b'x'; 1000])).collect();
    file.append_one(1, 1, &entries, 1);
    let bound = 320 << 10;
    assert_eq!(file.retire(0, bound, 1).unwrap(), None);
    insert_dead_letters(
        &mut file,
        "w",
        (101..=900).map(|position| dead_letter(position, &[b'x'; 3000])),
    );
    assert_eq!(file.retire(0, bound + (100 << 10), 1).unwrap(), None, "their indices aside");
}

#[test]
fn erasing_a_session_takes_what_webhooks_have_of_it_and_counts_each_event_once() {
    let (_directory, mut file) = file_with([]);
    for webhook in [
        webhook("v", 0),
        WebhookRegistration { product: ProductId::new("q").unwrap(), ..webhook("q", 0) },
    ] {
        file.register(&webhook, 1).unwrap();
    }
    file.append_one(1, 1, &[event(1, "s", "k", b"a"), event(2, "t", "k", b"b")], 1);
    let mut foreign = dead_letter(2, b"b");
    foreign.delivery.session = Some(session("t"));
    // The file has the event at 1; those at 8 and 9 are in no log, the one at 20 is in memory
    // alone.
    let deliveries =
        || [1, 8, 9, 20].map(|position| DeliveryChange::Dead(dead_letter(position, b"<payload>")));
    journal(
        &mut file,
        "w",
        &changes(
            30,
            deliveries()
                .into_iter()
                .chain([DeliveryChange::Owed(owed(21)), DeliveryChange::Dead(foreign)]),
        ),
    );
    journal(&mut file, "v", &changes(30, deliveries()));
    journal(&mut file, "q", &changes(30, deliveries()));
    let erased = file.erase(1, &of_session("s"), 19, Indices::Trusted).unwrap();
    assert_eq!((erased.events, erased.dead_letters), (1, 2));
    assert_eq!(counts(&file), [(1, 0), (0, 0), (4, 0)]);
    assert!(file.webhooks().unwrap().iter().all(|webhook| webhook.owed.is_empty()));
    assert_counters_fit(&file);
    assert!(
        file.needs_scrub()
            || file.connection().query_row("SELECT needs_scrub FROM state", [], |row| row.get(0))
                == Ok(true)
    );
}

#[test]
fn an_erased_session_leaves_no_byte_of_its_dead_letters_once_the_file_is_scrubbed() {
    let marked_letter = |position: u64, session_id: &str| {
        let mut letter = dead_letter(
            position,
            format!("<{session_id} payload>").repeat(1 + position as usize % 90).as_bytes(),
        );
        letter.delivery.session = Some(session(session_id));
        letter
    };
    let (_directory, mut file) = file_with((1..=300).map(|position| {
        marked_letter(position, if position % 3 == 0 { "other" } else { "victim" })
    }));
    let mut owed = owed(301);
    owed.delivery.session = Some(session("victim"));
    journal(&mut file, "w", &changes(301, [DeliveryChange::Owed(owed)]));
    assert_eq!(
        file.erase(1, &of_session("victim"), NO_BOUND, Indices::Trusted).unwrap().dead_letters,
        200
    );
    file.scrub().unwrap();
    let file_contains = |text: &[u8]| {
        let everything = crate::store::sqlite::tests::bytes_of(file.path()).into_iter().flatten();
        everything.into_iter().any(|bytes| bytes.windows(text.len()).any(|it| it == text))
    };
    assert!(!file_contains(b"victim") && file_contains(b"other payload"));
    assert_eq!(counts(&file), [(100, 0)]);
}

fn change(file: &StoreFile, position: u64, change: &str) {
    let update = format!("UPDATE dead_letters SET {change} WHERE place = {position}");
    assert_eq!(file.connection().execute(&update, []), Ok(1));
}

#[test]
fn a_dead_letter_whose_payload_is_damaged_is_listed_without_one_and_not_sent_again() {
    let (_directory, mut file) = file_with([1, 2, 3].map(|position| dead_letter(position, b"x")));
    change(&file, 2, "payload = x'79'");
    let page = file.dead_letters("w", DeadLetterState::Dead, None, 9).unwrap();
    assert_eq!(positions(&page), [3, 2, 1]);
    let reasons: Vec<_> = page.iter().map(|(_, letter)| letter.reason).collect();
    let exhausted = DeadLetterReason::Exhausted;
    assert_eq!(reasons, [exhausted, DeadLetterReason::Damaged, exhausted]);
    assert_eq!((&page[1].1.delivery, page[1].1.payload.len()), (&dead_letter(2, b"").delivery, 0));
    assert_eq!([file.take_damaged_dead_letters(), file.take_damaged_dead_letters()], [1, 0]);
    assert_eq!(file.requeue_events("w", &[EventId::new(7, 2)]).unwrap(), 0);
    assert_eq!(file.requeue_through("w", u64::MAX >> 1).unwrap(), 2);
    assert_eq!(counts(&file), [(1, 2)]);
    assert_counters_fit(&file);
}

#[test]
fn a_dead_letter_with_a_changed_column_is_neither_listed_nor_sent() {
    for damage in ["kind = 'K'", "attempts = '[]'", "created_at = 5", "suffix = 9", "died_at = 7"] {
        let (_directory, mut file) = file_with([1, 2].map(|position| dead_letter(position, b"x")));
        change(&file, 2, damage);
        let page = file.dead_letters("w", DeadLetterState::Dead, None, 1).unwrap();
        assert_eq!(positions(&page), [1], "{damage}: a full page all the same");
        assert_eq!(file.take_damaged_dead_letters(), 1, "{damage}");
        assert_eq!(file.requeue_through("w", u64::MAX >> 1).unwrap(), 1, "{damage}");
    }
}

#[test]
fn a_dead_letter_that_is_damaged_once_it_waits_is_not_sent() {
    let (_directory, mut file) = file_with([1, 2, 3].map(|position| dead_letter(position, b"x")));
    assert_eq!(file.requeue_through("w", u64::MAX >> 1).unwrap(), 3);
    change(&file, 1, "payload = x'79'");
    change(&file, 2, "kind = 'K'");
    let waiting = file.requeued_dead_letters("w", 0, 9).unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!((waiting[0].delivery.position, &*waiting[0].payload), (3, &b"x"[..]));
    assert_eq!((file.take_damaged_dead_letters(), counts(&file)), (2, vec![(2, 1)]));
    assert_counters_fit(&file);
    let dead = file.dead_letters("w", DeadLetterState::Dead, None, 9).unwrap();
    assert_eq!(positions(&dead), [1], "the sum of the other still does not fit");
    assert_eq!(file.requeued_dead_letters("w", 0, 9).unwrap().len(), 1);
}

#[test]
fn a_new_time_of_death_leaves_a_damaged_row_damaged() {
    let (_directory, mut file) = file_with([1, 2].map(|position| dead_letter(position + 90, b"x")));
    change(&file, 92, "kind = 'K'");
    file.restamp_future_dead_letters(5, 3).unwrap();
    let page = file.dead_letters("w", DeadLetterState::Dead, None, 9).unwrap();
    assert_eq!((positions(&page), page[0].1.died_at), (vec![91], 3));
}
