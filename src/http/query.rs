//! Query strings: one parser for every route, and the rule about misspelt names.
//!
//! In: a query and the names that its route accepts. Out: the pairs under these names, or the 400
//! that says which name is meant. A misspelt filter must not widen what is sent, and a resume
//! position must not be ignored, so a name close to a known one is an error. Other names are
//! ignored: wrappers of `EventSource` add cache busters and the like.
//!
//! May use: `near_name`.

use std::borrow::Cow;

use super::problem::Problem;
use crate::near_name::find_near;

/// Returns the pairs of `query` under the names `known`, percent-decoded and in order.
///
/// # Errors
///
/// An item is a 400 for a name that is close to one of `known` without being that name.
pub(crate) fn pairs<'q>(
    query: &'q str,
    known: &'static [&'static str],
) -> impl Iterator<Item = Result<(&'static str, Cow<'q, str>), Problem>> {
    form_urlencoded::parse(query.as_bytes()).filter_map(move |(name, value)| {
        match lookup(&name, known) {
            Lookup::Known(name) => Some(Ok((name, value))),
            Lookup::Near(meant) => Some(Err(misspelt(&name, meant))),
            Lookup::Unknown => None,
        }
    })
}

fn misspelt(name: &str, meant: &str) -> Problem {
    let shown: String = name.chars().take(MAX_SHOWN_CHARS).collect();
    Problem::bad_request(format!("{shown:?} is no parameter of this route: write {meant}"))
}

/// Relation of a given name to the names of a route.
#[derive(Debug, PartialEq)]
enum Lookup {
    /// The name itself, or a spelling of it that is accepted.
    Known(&'static str),
    /// A name so close to this one that a mistake is more likely than another meaning.
    Near(&'static str),
    /// A name that has nothing to do with any of the route's own.
    Unknown,
}

fn lookup(given: &str, known: &'static [&'static str]) -> Lookup {
    if let Some(name) = known.iter().find(|name| **name == given) {
        return Lookup::Known(name);
    }
    // Browser polyfills of `EventSource` cannot set headers and send `lastEventId`.
    if known.contains(&LAST_EVENT_ID) && spells_last_event_id(given) {
        return Lookup::Known(LAST_EVENT_ID);
    }
    find_near(given, known).map_or(Lookup::Unknown, Lookup::Near)
}

/// Returns whether a name differs from `last_event_id` by case, `_` and `-` only.
fn spells_last_event_id(given: &str) -> bool {
    let letters = given.bytes().filter(|byte| !matches!(byte, b'_' | b'-'));
    letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"lasteventid")
}

/// The resume position, the one name that has several spellings.
pub(crate) const LAST_EVENT_ID: &str = "last_event_id";

/// Enough of a name to recognise it. The name comes from the client and may be long.
const MAX_SHOWN_CHARS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] =
        &["session_id", "user_id", "type", "last_event_id", "since", "ack", "limit"];

    #[test]
    fn the_resume_position_counts_in_every_spelling() {
        for name in [
            "last_event_id",
            "lastEventId",
            "last-event-id",
            "Last-Event-ID",
            "LASTEVENTID",
            "lasteventid",
            "last_eventId",
            "__last__event--id",
        ] {
            assert_eq!(lookup(name, KNOWN), Lookup::Known("last_event_id"), "{name}");
            assert_eq!(lookup(name, &["state"]), Lookup::Unknown, "{name}, where there is none");
        }
        for name in ["lastEventIds", "last_event_id[]", "lastEvntId", "last event id x"] {
            assert_ne!(lookup(name, KNOWN), Lookup::Known("last_event_id"), "{name}");
        }
    }

    #[test]
    fn a_misspelt_name_resolves_to_the_name_it_is_close_to() {
        for (meant, names) in [
            (
                "session_id",
                [
                    "session_id[]",
                    "session_id[0]",
                    "session_ids",
                    "sessionId",
                    "SESSION_ID",
                    "session-id",
                    "sessionIds[]",
                    "sesion_id",
                    "session_di",
                    "sessionid",
                    "session",
                    "sessions",
                    "Session[]",
                    "xsession_id",
                    "session_id ",
                    "session_id[",
                ]
                .as_slice(),
            ),
            ("type", &["types", "Type", "type[]", "tpye", "typ", "tyype", "event", "events"]),
            ("user_id", &["user", "users", "userId", "user_ids[]", "usr_id"]),
            ("limit", &["limt", "limits", "Limit", "limti"]),
            ("last_event_id", &["last_event_ids", "last_even_id", "lastEventId[]", "lst_event_id"]),
            ("since", &["sinse", "sinces", "SINCE"]),
            ("ack", &["acks", "ACK", "a-ck"]),
        ] {
            for name in names {
                assert_eq!(lookup(name, KNOWN), Lookup::Near(meant), "{name}");
            }
        }
    }

    #[test]
    fn other_names_are_ignored_and_known_ones_are_themselves() {
        for name in [
            "_",
            "",
            "t",
            "ts",
            "cb",
            "cache",
            "v",
            "x",
            "nonce",
            "id",
            "ac",
            "acc",
            "back",
            "session_token",
            "page",
            "eventual",
            "tyep_x",
            "ssseion_id",
            "filter[session_id]",
        ] {
            assert_eq!(lookup(name, KNOWN), Lookup::Unknown, "{name}");
        }
        for name in KNOWN {
            assert_eq!(lookup(name, KNOWN), Lookup::Known(name));
        }
        assert_eq!(lookup("session", &["limit"]), Lookup::Unknown, "only for the route's own");
    }

    #[test]
    fn names_are_compared_once_they_are_decoded() {
        let read = |query| pairs(query, KNOWN).collect::<Result<Vec<_>, _>>();
        let known = read("session%5Fid=a%20b&x=1&limit=2").unwrap();
        assert_eq!(known, [("session_id", "a b".into()), ("limit", "2".into())]);
        for query in ["session_id=a&session%5Fid%5B%5D=b", "typ%65s=x", "session+_id=a"] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}
