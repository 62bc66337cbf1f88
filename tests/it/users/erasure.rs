//! The right to be forgotten: a person's events go with all sessions in which the person acted.

use std::path::Path;

use super::event_by;
use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    http,
    page::{Page, Storage, publish},
    relay::Relay,
    wait,
};

/// The user who is erased.
const VICTIM: &str = "user-of-mine";

/// Sends what is to be erased among what is not, and returns the numbers of what stays. The first
/// session of the user began without one, and the second has another user's events, too.
fn send(relay: &Relay, link: &mut Link) -> Vec<usize> {
    let names = |number: usize| match number {
        0..5 => ("before-login", ""),
        40 => ("before-login", VICTIM),
        50 | 51 => ("", VICTIM),
        60 => ("shared", VICTIM),
        61..64 => ("shared", "somebody-else"),
        70..72 => ("other", "somebody-else"),
        it if it % 2 == 0 => ("other", ""),
        _ => ("", ""),
    };
    publish(relay, link, (0..80).map(|it| event_by(names(it).0, names(it).1, it)));
    let is_erased = |number: &usize| {
        let (session, user) = names(*number);
        user == VICTIM || ["before-login", "shared"].contains(&session)
    };
    (0..80).filter(|number| !is_erased(number)).collect()
}

fn erase(relay: &Relay, query: &str, body: &str) -> http::Answer {
    let path = format!("/api/v1/events/{PRODUCT}{query}");
    http::ask_with(relay.admin, "DELETE", &path, &[], body)
}

fn all_numbers(relay: &Relay) -> Vec<usize> {
    Page::all(relay, "0", "").iter().flat_map(Page::numbers).collect()
}

#[test]
fn an_erased_user_leaves_no_event_of_any_session_in_which_the_user_acted() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let rest = send(&relay, &mut link);
        storage.wait_until_stored(&relay, 80);
        let answer = erase(&relay, &format!("?user_id={VICTIM}"), "");
        assert_eq!((answer.status(), &answer.json()["erased"]), (200, &12.into()), "{storage:?}");
        assert_eq!(all_numbers(&relay), rest, "{storage:?}");
        let of_user = Page::get(&relay, &format!("?user_id={VICTIM}"));
        assert_eq!((of_user.events.len(), of_user.gap), (0, None), "{storage:?}");
        let again = erase(&relay, "", &format!(r#"{{"user_ids":["{VICTIM}","nobody"]}}"#));
        assert_eq!((again.status(), &again.json()["erased"]), (200, &0.into()), "{storage:?}");
        let line = relay.process.log_line("erased on request");
        assert_eq!((&line["users"], &line["sessions"]), (&1.into(), &0.into()));
        if storage == Storage::Disk {
            wait::until("no file contains the user", || !is_in_files(directory.path(), VICTIM));
            relay.process.signal("KILL");
            drop(relay);
            drop(link);
            let relay = setup.start();
            assert_eq!(all_numbers(&relay), rest, "after a restart");
        } else {
            assert!(!relay.process.stderr.so_far().join("\n").contains(VICTIM));
        }
    }
}

#[test]
fn sessions_and_users_are_erased_together_and_each_event_counts_once() {
    for storage in Storage::ALL {
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.start();
        let mut link = connector.stream();
        let rest = send(&relay, &mut link);
        storage.wait_until_stored(&relay, 80);
        let body = format!(r#"{{"session_ids":["shared","other"],"user_ids":["{VICTIM}"]}}"#);
        let other: Vec<_> =
            rest.iter().copied().filter(|it| it % 2 == 0 || (70..72).contains(it)).collect();
        let answer = erase(&relay, "", &body);
        assert_eq!(answer.json()["erased"], 12 + other.len(), "{storage:?} {answer:?}");
        let rest: Vec<_> = rest.into_iter().filter(|it| !other.contains(it)).collect();
        assert_eq!(all_numbers(&relay), rest, "{storage:?}");
    }
}

#[test]
fn a_request_that_names_nobody_or_names_in_two_places_erases_nothing() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    send(&relay, &mut link);
    for (query, body, status) in [
        ("", "{}", 400),
        ("", r#"{"session_ids":[],"user_ids":[]}"#, 400),
        ("?user_id=", "", 400),
        ("?user=u", "", 400),
        ("?userId=u", "", 400),
        ("?user_id=u", r#"{"session_ids":["other"]}"#, 400),
        ("?session_id=other", r#"{"user_ids":["u"]}"#, 400),
        ("", r#"{"user_ids":["u"],"session_id":"other"}"#, 422),
        ("", r#"{"user_ids":"u"}"#, 422),
    ] {
        let answer = erase(&relay, query, body);
        assert_eq!(answer.status(), status, "{query} {body}: {answer:?}");
    }
    assert_eq!(all_numbers(&relay).len(), 80);
}

#[test]
fn a_user_who_acts_meanwhile_keeps_no_session_that_was_known_before_the_answer() {
    let connector = Connector::new();
    let (setup, _directory) = Storage::Disk.setup(&connector);
    let relay = setup.start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    for round in 0..40 {
        // Some of these are stored by now, some are on the way, some in memory alone.
        for number in 0..4 {
            link.event(event_by(&format!("session-{round}"), ["", VICTIM][number % 2], number));
        }
        link.event(event_by("", VICTIM, 4));
        subscriber.numbers(5);
        std::thread::sleep(std::time::Duration::from_micros(300 * (round % 30)));
        let answer = erase(&relay, &format!("?user_id={VICTIM}"), "");
        assert_eq!(answer.json()["erased"], 5, "round {round}: {answer:?}");
    }
    assert_eq!(all_numbers(&relay), [0_usize; 0]);
}

/// Returns whether a file below a directory contains this text.
fn is_in_files(directory: &Path, text: &str) -> bool {
    let mut entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.any(|path| match path.is_dir() {
        true => is_in_files(&path, text),
        // A file that SQLite removes meanwhile has nothing.
        false => std::fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|it| it == text.as_bytes())),
    })
}
