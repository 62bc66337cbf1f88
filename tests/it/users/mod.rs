//! Users: filters on every way out, and erasure of a person.

mod erasure;
mod filters;

use crate::common::PRODUCT;

/// Returns an event with a number; an empty name is none.
fn event_by(session: &str, user: &str, number: usize) -> String {
    let field = |name: &str, value: &str| match value {
        "" => String::new(),
        value => format!(r#""{name}":"{value}","#),
    };
    let (session, user) = (field("session_id", session), field("user_id", user));
    // The user within the actions is none of the relay's.
    format!(
        r#"{{"type":"actions","product_id":"{PRODUCT}",{session}{user}"actions":[{{"user_id":"inner"}}],"count":{number}}}"#
    )
}
