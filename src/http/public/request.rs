//! Parses what a subscriber asks for: media type, filter, position to start from.
//!
//! Pure: headers and query in, checked values out.
//!
//! May use: `event`.

use std::collections::BTreeSet;

use hyper::{HeaderMap, header::ACCEPT};

use crate::{
    event::{Kind, Only, Scope, SessionId, StartPosition, UserId},
    http::{
        problem::Problem,
        query::{self, LAST_EVENT_ID},
    },
};

/// Filter and start position of a subscription, as its client asks for them.
#[derive(Debug, PartialEq)]
pub(crate) struct SubscriptionRequest {
    /// Events that the client asks for.
    pub(crate) scope: Scope,
    /// Position that the client resumes from.
    pub(crate) start: StartPosition,
}

impl SubscriptionRequest {
    /// Reads the query, and the `Last-Event-ID` header, which wins over the query: a browser
    /// repeats the URL with its old id at each reconnect and puts the new one into the header.
    ///
    /// # Errors
    ///
    /// 400 for a misspelt name, for a filter value that is empty or too long, and for too many
    /// values. A malformed id is no error: it becomes [`StartPosition::Malformed`], and the stream
    /// starts with a gap.
    pub(crate) fn parse(query: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut parameters = SubscriptionParameters::default();
        for pair in query::pairs(query, SUBSCRIPTION_NAMES) {
            let (name, value) = pair?;
            parameters.take(name, &value)?;
        }
        parameters.into_request(headers)
    }
}

/// Parameters of a subscription, as they are read from a query one by one.
#[derive(Debug)]
pub(in crate::http) struct SubscriptionParameters {
    sessions: BTreeSet<SessionId>,
    users: BTreeSet<UserId>,
    kinds: BTreeSet<Kind>,
    start: StartPosition,
}

impl Default for SubscriptionParameters {
    fn default() -> Self {
        Self {
            sessions: BTreeSet::new(),
            users: BTreeSet::new(),
            kinds: BTreeSet::new(),
            start: StartPosition::Now,
        }
    }
}

impl SubscriptionParameters {
    /// Takes one parameter, by its name among [`SUBSCRIPTION_NAMES`].
    ///
    /// # Errors
    ///
    /// 400 for a value that is empty or too long, and for a name that this version does not know
    /// the meaning of.
    pub(in crate::http) fn take(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        match name {
            "session_id" => {
                let session = SessionId::new(value);
                self.sessions.insert(
                    session.map_err(|error| Problem::bad_request(format!("session_id {error}")))?,
                );
            }
            "user_id" => {
                let user = UserId::new(value);
                self.users.insert(
                    user.map_err(|error| Problem::bad_request(format!("user_id {error}")))?,
                );
            }
            "type" if value.is_empty() => {
                return Err(Problem::bad_request("type must not be empty"));
            }
            "type" => {
                self.kinds.insert(Kind::new(value));
            }
            // An empty spelling beside one with a position must not hide the position.
            LAST_EVENT_ID if value.is_empty() => {}
            LAST_EVENT_ID => self.start = StartPosition::parse(value.as_bytes()),
            // Ignoring these would send more, or less, than the client asks for.
            "since" | "consumer" | "ack" => {
                return Err(Problem::bad_request(format!(
                    "this relay does not know {name}: leave it out, or update the relay"
                )));
            }
            _ => {} // `access_token`: see `credential`
        }
        Ok(())
    }

    /// Returns the request that the parameters and the headers make.
    ///
    /// # Errors
    ///
    /// 400 for too many values.
    pub(in crate::http) fn into_request(
        self,
        headers: &HeaderMap,
    ) -> Result<SubscriptionRequest, Problem> {
        let Self { sessions, users, kinds, mut start } = self;
        if sessions.len() + users.len() + kinds.len() > MAX_FILTER_VALUES {
            return Err(Problem::bad_request(format!(
                "at most {MAX_FILTER_VALUES} session_id, user_id and type values"
            )));
        }
        // Empty means no id (WHATWG HTML, section 9.2.3: an empty id sends no header, but other
        // clients send it empty).
        let mut ids = headers.get_all("last-event-id").iter().filter(|id| !id.is_empty());
        if let Some(id) = ids.next_back() {
            start = StartPosition::parse(id.as_bytes());
        }
        Ok(SubscriptionRequest {
            scope: Scope {
                sessions: only_or_everything(sessions),
                users: only_or_everything(users),
                kinds: only_or_everything(kinds),
            },
            start,
        })
    }
}

/// Names that a subscription reads from its query.
pub(in crate::http) const SUBSCRIPTION_NAMES: &[&str] =
    &["session_id", "user_id", "type", LAST_EVENT_ID, "access_token", "since", "consumer", "ack"];

/// Returns the limit that a list of values means: no value is no limit.
pub(in crate::http) fn only_or_everything<T>(values: BTreeSet<T>) -> Only<T> {
    if values.is_empty() { Only::Everything } else { Only::These(values.into()) }
}

/// Returns true if `Accept` admits an event stream. The most specific range decides (RFC 9110,
/// section 12.5.1), and without `Accept` every type is admitted.
pub(crate) fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let mut best: Option<(usize, bool)> = None;
    let mut has_ranges = false;
    for range in headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        has_ranges |= !media.is_empty();
        let Some(specificity) =
            MEDIA_RANGES.iter().position(|known| media.eq_ignore_ascii_case(known))
        else {
            continue;
        };
        let is_refused = parts.any(zero_quality);
        if best.is_none_or(|(known, _)| specificity > known) {
            best = Some((specificity, !is_refused));
        }
    }
    best.map_or(!has_ranges, |(_, is_accepted)| is_accepted)
}

/// Returns true for `q=0`, `q=0.0`, `q=0.00` and `q=0.000`, which exclude a range (RFC 9110,
/// section 12.4.2).
fn zero_quality(parameter: &[u8]) -> bool {
    let Some(value) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))
    else {
        return false;
    };
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.trim().parse::<f32>().is_ok_and(|quality| quality == 0.0)
}

/// Ranges that include an event stream, the most specific last: the index is the specificity.
const MEDIA_RANGES: [&[u8]; 3] = [b"*/*", b"text/*", b"text/event-stream"];

/// Bound on the values of one filter, because each wake-up of the subscription walks them.
pub(crate) const MAX_FILTER_VALUES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn accepts(accept: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        accepts_event_stream(&headers)
    }

    #[test]
    fn the_most_specific_range_decides_whether_a_stream_is_accepted() {
        for accept in [
            &[][..],
            &[""],
            &["text/event-stream"],
            &["*/*"],
            &["text/*;q=0.1"],
            &["application/json, Text/Event-Stream; charset=utf-8"],
            &["application/json", "*/*;q=0.1"],
            &["*/*;q=0, text/event-stream"],
            &["text/event-stream;q=0.001"],
        ] {
            assert!(accepts(accept), "{accept:?}");
        }
        for accept in [
            &["application/json"][..],
            &["text/html, text/plain"],
            &["text/event-stream;q=0"],
            &["*/*, text/event-stream; q=0.000"],
            &["text/*;q=0.0, */*"],
            &["text/event-stream-x"],
        ] {
            assert!(!accepts(accept), "{accept:?}");
        }
    }

    fn parsed(
        query: &str,
        last_event_id: Option<&'static str>,
    ) -> Result<SubscriptionRequest, u16> {
        let mut headers = HeaderMap::new();
        if let Some(id) = last_event_id {
            headers.insert("last-event-id", id.parse().unwrap());
        }
        SubscriptionRequest::parse(query, &headers).map_err(|problem| {
            axum::response::IntoResponse::into_response(problem).status().as_u16()
        })
    }

    #[test]
    fn filters_are_read_from_the_query_percent_decoded() {
        let requested =
            parsed("session_id=a%2Fb&session_id=%C3%A4+b&user_id=u%2F1&type=summary&cache=1", None)
                .unwrap();
        let sessions = ["a/b", "ä b"].map(|session| SessionId::new(session).unwrap());
        assert_eq!(requested.scope.sessions, Only::These(sessions.into()));
        assert_eq!(requested.scope.users, Only::These([UserId::new("u/1").unwrap()].into()));
        assert_eq!(requested.scope.kinds, Only::These([Kind::Summary].into()));
        assert_eq!(requested.start, StartPosition::Now);
    }

    #[test]
    fn no_filter_means_everything_and_an_empty_one_is_refused() {
        assert_eq!(parsed("", None).unwrap().scope, Scope::EVERYTHING);
        for query in [
            "session_id=",
            "user_id=",
            "type=",
            "session_id=a&session_id",
            "user_id=u&user_id",
            "session_id=a%0Ab",
            "user_id=a%0Db",
        ] {
            assert_eq!(parsed(query, None), Err(400), "{query}");
        }
    }

    #[test]
    fn a_misspelt_filter_and_one_that_this_version_does_not_know_are_refused() {
        for query in [
            "session_id=a&session_id[]=b",
            "sessionId=a",
            "types=summary",
            "event=summary",
            "acces_token=x",
            "user=u",
            "userId=u",
            "user_ids=u",
            "since=1",
            "consumer=c&ack=explicit",
        ] {
            assert_eq!(parsed(query, None), Err(400), "{query}");
        }
        assert!(parsed("_=1&nonce=2&access_token=x", None).is_ok());
    }

    #[test]
    fn a_thousand_filter_values_are_the_most() {
        let query = |values: usize| {
            (0..values).map(|value| format!("session_id=s{value}&")).collect::<String>()
        };
        assert!(parsed(&query(1000), None).is_ok());
        assert_eq!(parsed(&query(1001), None), Err(400));
        assert_eq!(parsed(&(query(1000) + "type=x"), None), Err(400));
        assert_eq!(parsed(&(query(1000) + "user_id=u"), None), Err(400));
    }

    #[test]
    fn the_header_wins_over_the_query_and_no_id_is_an_error() {
        let id = |epoch, sequence| StartPosition::After(EventId::new(epoch, sequence));
        for (query, header, start) in [
            ("last_event_id=1-2", None, id(1, 2)),
            ("last_event_id=1-2", Some("3-4"), id(3, 4)),
            ("last_event_id=1-2", Some(""), id(1, 2)),
            ("last_event_id=0", None, StartPosition::Oldest),
            ("last_event_id=", None, StartPosition::Now),
            ("lastEventId=1-2", None, id(1, 2)),
            ("Last-Event-ID=1-2", Some("3-4"), id(3, 4)),
            ("", Some("0"), StartPosition::Oldest),
            ("", Some("nonsense"), StartPosition::Malformed),
            ("", Some("01-2"), StartPosition::Malformed),
            ("", Some("1-2-3"), StartPosition::Malformed),
            ("", Some("+1-2"), StartPosition::Malformed),
            ("", Some("1-99999999999999999999"), StartPosition::Malformed),
            ("last_event_id=%FF", None, StartPosition::Malformed),
        ] {
            assert_eq!(parsed(query, header).unwrap().start, start, "{query} {header:?}");
        }
        let long = "1".repeat(200);
        assert_eq!(
            parsed(&format!("last_event_id={long}"), None).unwrap().start,
            StartPosition::Malformed
        );
    }
}
