//! Classification of one response, or of its absence.
//!
//! In: a status and headers, or an error of the transport. Out: outcome, disposition, and a text
//! for the operator. The text never repeats bytes that the receiver sent, nor the URL's path and
//! query, which may hold a secret. Pure.
//!
//! ```text
//! 2xx             accepted         408, 425, 429, 3xx, 5xx, other   retry
//! 410             gone: disables   no response, or a truncated head retry
//! any other 4xx   refused: dead    address refused by the guard     dead
//! ```
//!
//! May use: `error_chain`, `outbound`, `webhook_delivery`.

use std::{io, time::Duration};

use hyper::{HeaderMap, StatusCode};
use hyper_util::client::legacy::{self, connect::Connected};

use crate::{
    error_chain::find_in_chain,
    outbound::{
        answer_budget::{BUDGET_EXCEEDED, MAX_ANSWER_BYTES},
        client::parse_retry_after,
        egress_guard::EgressError,
        interim_answers::MAX_INTERIM_ANSWERS,
        tls_problem::describe_tls_problem,
    },
    webhook::Disposition,
    webhook_delivery::Outcome,
};

/// Outcome of an attempt and its consequence.
#[derive(Debug, PartialEq)]
pub(super) struct Classification {
    /// Outcome, for metrics and the list of attempts.
    pub(super) outcome: Outcome,
    /// Status of the response, if one came.
    pub(super) status: Option<StatusCode>,
    /// Description of the failure, if the attempt failed.
    pub(super) error: Option<String>,
    /// Consequence for the delivery.
    pub(super) disposition: Disposition,
}

impl Classification {
    /// Classifies the head of a response.
    pub(super) fn of_response(status: StatusCode, headers: &HeaderMap) -> Self {
        let retry = || Disposition::Retry {
            after: parse_retry_after(headers).map(|wait| wait.min(MAX_RETRY_AFTER)),
        };
        let (outcome, disposition) = match status.as_u16() {
            200..=299 => (Outcome::Accepted, Disposition::Accepted),
            // Timeout, too early, too many: RFC 9110 §15.5.9, RFC 8470 §5.2 and RFC 6585 §4 define
            // these 4xx as temporary.
            408 | 425 | 429 => (Outcome::Refused, retry()),
            410 => (Outcome::Refused, Disposition::Gone),
            400..=499 => (Outcome::Refused, Disposition::Refused),
            _ => (Outcome::Failed, retry()),
        };
        let error = (outcome != Outcome::Accepted).then(|| describe_status(status));
        Self { outcome, status: Some(status), error, disposition }
    }

    /// Classifies the error of an attempt without a response.
    pub(super) fn of_error(failure: &legacy::Error) -> Self {
        if find_in_chain::<io::Error>(failure).is_some_and(|error| error.kind() == BUDGET_EXCEEDED)
        {
            return Self::too_many_bytes();
        }
        let Some(error) = find_in_chain::<EgressError>(failure) else {
            return Self::retry(Outcome::Connect, describe_lost_connection(failure));
        };
        match error {
            EgressError::Dns(_) => Self::retry(Outcome::Dns, error.to_string()),
            EgressError::Connect(..) => Self::retry(Outcome::Connect, error.to_string()),
            EgressError::Timeout => Self::retry(Outcome::Timeout, error.to_string()),
            EgressError::Refused(_) => Self {
                outcome: Outcome::EgressRefused,
                status: None,
                error: Some(error.to_string()),
                disposition: Disposition::Forbidden,
            },
        }
    }

    /// Returns the classification of a passed deadline.
    pub(super) fn timeout(timeout: Duration) -> Self {
        Self::retry(
            Outcome::Timeout,
            format!("no complete answer within {} s", timeout.as_secs_f64()),
        )
    }

    /// Returns the classification of too many interim answers.
    pub(super) fn interim_answers() -> Self {
        Self::retry(
            Outcome::Failed,
            format!("more than {MAX_INTERIM_ANSWERS} interim answers (1xx) and no other"),
        )
    }

    /// Returns the classification of a receiver that sends more than answers.
    fn too_many_bytes() -> Self {
        let kib = MAX_ANSWER_BYTES / 1024;
        Self::retry(
            Outcome::Failed,
            format!("the receiver sent more than {kib} KiB for each request, and no whole head"),
        )
    }

    /// Returns the classification of a request that cannot be built.
    pub(super) fn unsendable() -> Self {
        Self::retry(
            Outcome::Failed,
            "the secret or the event's id is not a valid header value".to_owned(),
        )
    }

    fn retry(outcome: Outcome, error: String) -> Self {
        Self {
            outcome,
            status: None,
            error: Some(error),
            disposition: Disposition::Retry { after: None },
        }
    }
}

/// Returns whether the receiver has provably not processed the request, by RFC 9113, section 8.7:
/// it refused the stream, or ended the connection with a GOAWAY that names a lower stream.
///
/// h2 gives the error of a GOAWAY to streams above the last one that it names, and to no others;
/// those at or below it end with an I/O error when the connection does.
pub(super) fn proves_unprocessed(failure: &legacy::Error) -> bool {
    if let Some(error) = find_in_chain::<h2::Error>(failure) {
        let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        return error.is_remote() && (is_refused || error.is_go_away());
    }
    // On a connection that is going away hyper cancels requests that it has not written.
    let is_h2 = failure.connect_info().is_some_and(Connected::is_negotiated_h2);
    is_h2 && find_in_chain::<hyper::Error>(failure).is_some_and(hyper::Error::is_canceled)
}

fn describe_status(status: StatusCode) -> String {
    let hint = if status.is_redirection() {
        "; redirects are not followed, so write the address it leads to as the webhook's url"
    } else {
        ""
    };
    // The canonical reason phrase, not the receiver's: its text could be anything.
    format!("answered {} {}", status.as_u16(), status.canonical_reason().unwrap_or_default())
        .trim_end()
        .to_owned()
        + hint
}

/// Describes the loss of a connection that was dialled.
fn describe_lost_connection(failure: &legacy::Error) -> String {
    if let Some(problem) = describe_tls_problem(failure) {
        return problem;
    }
    if failure.is_connect() {
        return "no TLS on the connection: it was lost on the way".to_owned();
    }
    if proves_unprocessed(failure) {
        return "the receiver refuses requests before it looks at them (HTTP/2: REFUSED_STREAM or \
                GOAWAY)"
            .to_owned();
    }
    match find_in_chain::<hyper::Error>(failure) {
        Some(error) if error.is_parse() => "the answer is not HTTP".to_owned(),
        Some(error) if error.is_incomplete_message() => {
            "the connection was closed before the answer".to_owned()
        }
        _ => "the connection was lost before the answer".to_owned(),
    }
}

/// Upper bound of `Retry-After`: a mistaken date must not silence an endpoint for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
