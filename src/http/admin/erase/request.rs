//! What an erasure is asked for: sessions and users, in the query or in a JSON body.
//!
//! May use: `config`, `event`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    config::FieldError,
    event::{InvalidName, SessionId, UserId},
    http::{problem::Problem, query},
};

/// Sessions and users to erase; not both are empty.
#[derive(Debug, Default)]
pub(super) struct ErasureRequest {
    /// Sessions that the request names.
    pub(super) sessions: BTreeSet<SessionId>,
    /// Users that the request names.
    pub(super) users: BTreeSet<UserId>,
}

impl ErasureRequest {
    /// Returns what a request names.
    ///
    /// # Errors
    ///
    /// 400 for no name, for too many, for a name that no session or user can have, and for names in
    /// both the query and the body; 422 for a body of another form.
    pub(super) fn parse(query: &str, body: &[u8]) -> Result<Self, Problem> {
        let mut request = Self::from_query(query)?;
        if !body.is_empty() {
            if request.len() > 0 {
                return Err(Problem::bad_request(
                    "names are in the query, and there is a body: write all of them into one of the two",
                ));
            }
            request = Self::from_body(body)?;
        }
        match request.len() {
            0 => Err(Problem::bad_request(
                "session_id and user_id are missing: whose events are to be erased?",
            )),
            1..=MAX_NAMES => Ok(request),
            _ => Err(Problem::bad_request(format!(
                "at most {MAX_NAMES} sessions and users together"
            ))),
        }
    }

    fn len(&self) -> usize {
        self.sessions.len() + self.users.len()
    }

    fn from_query(query: &str) -> Result<Self, Problem> {
        let mut request = Self::default();
        for pair in query::pairs(query, &["session_id", "user_id"]) {
            let (name, value) = pair?;
            let invalid = |error: InvalidName| Problem::bad_request(format!("{name} {error}"));
            match name {
                "user_id" => drop(request.users.insert(UserId::new(&value).map_err(invalid)?)),
                _ => drop(request.sessions.insert(SessionId::new(&value).map_err(invalid)?)),
            }
        }
        Ok(request)
    }

    /// Reads `{"session_ids":[…],"user_ids":[…]}`.
    fn from_body(body: &[u8]) -> Result<Self, Problem> {
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let erasure: Option<ErasureBody> = serde_json::from_slice(body).ok().filter(|_| is_object);
        let Some(ErasureBody { session_ids, user_ids, unknown }) = erasure else {
            let message = "must be a JSON object: {\"session_ids\":[\"…\"],\"user_ids\":[\"…\"]}";
            return Err(Problem::invalid_field("", message));
        };
        let mut errors: Vec<_> = unknown
            .keys()
            .map(|field| FieldError::new(field, "unknown key; known are session_ids and user_ids"))
            .collect();
        let sessions = parse_names("session_ids", &session_ids, SessionId::new, &mut errors);
        let users = parse_names("user_ids", &user_ids, UserId::new, &mut errors);
        if errors.is_empty() { Ok(Self { sessions, users }) } else { Err(Problem::invalid(errors)) }
    }
}

/// Returns the names of a list. One that is none adds an error.
fn parse_names<T: Ord>(
    field: &str,
    names: &[String],
    parse: impl Fn(&str) -> Result<T, InvalidName>,
    errors: &mut Vec<FieldError>,
) -> BTreeSet<T> {
    let mut parsed = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        match parse(name) {
            Ok(name) => drop(parsed.insert(name)),
            Err(error) => {
                errors.push(FieldError::new(format!("{field}[{index}]"), error.to_string()));
            }
        }
    }
    parsed
}

/// Body of an erasure. A key that is given twice is an error of serde: one of the two lists would
/// be lost.
#[derive(Deserialize)]
struct ErasureBody {
    #[serde(default)]
    session_ids: Vec<String>,
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Bound on one request, because each session and each user is a transaction of its own in the
/// store.
const MAX_NAMES: usize = 1000;

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    /// Returns the sessions and the users of a request, or the status of its refusal.
    fn parse(query: &str, body: &str) -> Result<(Vec<String>, Vec<String>), u16> {
        let request = ErasureRequest::parse(query, body.as_bytes())
            .map_err(|problem| problem.into_response().status().as_u16())?;
        let sessions = request.sessions.iter().map(|it| it.as_str().to_owned()).collect();
        Ok((sessions, request.users.iter().map(|it| it.as_str().to_owned()).collect()))
    }

    fn names(sessions: &[&str], users: &[&str]) -> (Vec<String>, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        (owned(sessions), owned(users))
    }

    #[test]
    fn sessions_and_users_are_named_in_the_query_or_in_the_body() {
        assert_eq!(parse("session_id=b&session_id=a&_=1", ""), Ok(names(&["a", "b"], &[])));
        assert_eq!(parse("user_id=u&session_id=a&user_id=v", ""), Ok(names(&["a"], &["u", "v"])));
        let body = r#" {"session_ids":["b","a","b"]} "#;
        assert_eq!(parse("_=1", body), Ok(names(&["a", "b"], &[])));
        let body = r#"{"user_ids":["v","u"],"session_ids":["a"]}"#;
        assert_eq!(parse("", body), Ok(names(&["a"], &["u", "v"])));
        for query in ["session_id=a", "user_id=u"] {
            assert_eq!(parse(query, body), Err(400), "not in both");
        }
        for query in [
            "",
            "session_ids=a",
            "sessionId=a",
            "session_id=a&session_id[]=b",
            "user=u",
            "user_ids=u",
            "user_id=u&userId=v",
            "user_id=",
            "session_id=a&user_id=a%0Ab",
        ] {
            assert_eq!(parse(query, ""), Err(400), "{query}");
        }
    }

    #[test]
    fn a_body_of_another_form_erases_nothing() {
        for body in [
            "x",
            "[]",
            r#"[["a"]]"#,
            r#"{"session_ids":"a"}"#,
            r#"{"session_ids":["a",7]}"#,
            r#"{"session_ids":[""]}"#,
            r#"{"user_ids":[""]}"#,
            r#"{"user_ids":"u"}"#,
            r#"{"session_ids":["a"],"session_id":["b"]}"#,
            r#"{"session_ids":["a"],"users":["u"]}"#,
            r#"{"session_ids":["a"],"session_ids":["b"]}"#,
            r#"{"user_ids":["u"],"user_ids":["v"]}"#,
        ] {
            assert_eq!(parse("", body), Err(422), "{body}");
        }
        for body in ["{}", r#"{"session_ids":[]}"#, r#"{"session_ids":[],"user_ids":[]}"#] {
            assert_eq!(parse("", body), Err(400), "{body}");
        }
        let many: Vec<_> = (0..MAX_NAMES).map(|n| n.to_string()).collect();
        let mut body = serde_json::json!({ "session_ids": many });
        assert!(parse("", &body.to_string()).is_ok());
        body["user_ids"] = serde_json::json!(["u"]);
        assert_eq!(parse("", &body.to_string()), Err(400), "both count");
    }
}
