//! What an answer, or the lack of one, means.
//!
//! In: a status and headers, or an error of the transport. Out: outcome, verdict, and a text for the operator. The text
//! never repeats what the receiver wrote, nor the URL's path and query, which may hold a secret. Pure.
//!
//! May use: `client` (Retry-After), `delivery`, `egress` (its errors).

use std::{error::Error, io, time::Duration};

use hyper::{HeaderMap, StatusCode};
use hyper_util::client::legacy;
use rustls::CertificateError;

use crate::{
    outbound::{client::retry_after, egress_guard::EgressError},
    webhook::Verdict,
    webhook_delivery::Outcome,
};

/// How an attempt went, and what is to be done.
#[derive(Debug, PartialEq)]
pub(super) struct Judgement {
    /// How it went.
    pub(super) outcome: Outcome,
    /// What was answered, if anything.
    pub(super) status: Option<StatusCode>,
    /// What went wrong, if anything.
    pub(super) error: Option<String>,
    /// What is to be done.
    pub(super) verdict: Verdict,
}

impl Judgement {
    /// Judges the head of an answer.
    pub(super) fn of_answer(status: StatusCode, headers: &HeaderMap) -> Self {
        let again = || Verdict::Again { after: retry_after(headers).map(|wait| wait.min(MAX_RETRY_AFTER)) };
        let (outcome, verdict) = match status.as_u16() {
            200..=299 => (Outcome::Accepted, Verdict::Accepted),
            408 | 425 | 429 => (Outcome::Refused, again()),
            410 => (Outcome::Refused, Verdict::Gone),
            400..=499 => (Outcome::Refused, Verdict::Refused),
            _ => (Outcome::Failed, again()),
        };
        let error = (outcome != Outcome::Accepted).then(|| answered(status));
        Self { outcome, status: Some(status), error, verdict }
    }

    /// Judges why there is no answer.
    pub(super) fn of_failure(failure: &legacy::Error) -> Self {
        let Some(error) = find::<EgressError>(failure) else {
            return Self::again(Outcome::Connect, lost(failure));
        };
        match error {
            EgressError::Dns(_) => Self::again(Outcome::Dns, error.to_string()),
            EgressError::Connect(..) => Self::again(Outcome::Connect, error.to_string()),
            EgressError::Timeout => Self::again(Outcome::Timeout, error.to_string()),
            EgressError::Refused(_) => Self {
                outcome: Outcome::EgressRefused,
                status: None,
                error: Some(error.to_string()),
                verdict: Verdict::Forbidden,
            },
        }
    }

    /// The deadline has passed.
    pub(super) fn timeout(timeout: Duration) -> Self {
        Self::again(Outcome::Timeout, format!("no complete answer within {} s", timeout.as_secs_f64()))
    }

    /// The connection was lost behind the answer's head.
    pub(super) fn broken() -> Self {
        Self::again(Outcome::Connect, "the connection was lost in the middle of the answer".to_owned())
    }

    /// The request could not be made.
    pub(super) fn unsendable() -> Self {
        Self::again(Outcome::Failed, "the secret or the event's id cannot stand in a request header".to_owned())
    }

    /// The same with the status that was seen before.
    pub(super) fn after(self, status: StatusCode) -> Self {
        Self { status: Some(status), ..self }
    }

    fn again(outcome: Outcome, error: String) -> Self {
        Self { outcome, status: None, error: Some(error), verdict: Verdict::Again { after: None } }
    }
}

fn answered(status: StatusCode) -> String {
    let hint = if status.is_redirection() {
        "; redirects are not followed, so write the address it leads to as the webhook's url"
    } else {
        ""
    };
    // The reason is the one that the code has everywhere, not the receiver's.
    format!("answered {} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()).trim_end().to_owned()
        + hint
}

/// What has become of a connection that was dialled.
fn lost(failure: &legacy::Error) -> String {
    if let Some(error) = find::<rustls::Error>(failure) {
        return tls(error);
    }
    if failure.is_connect() {
        return "no TLS on the connection: it was lost on the way".to_owned();
    }
    match find::<hyper::Error>(failure) {
        Some(error) if error.is_parse() => "the answer is not HTTP".to_owned(),
        Some(error) if error.is_incomplete_message() => "the connection was closed before the answer".to_owned(),
        _ => "the connection was lost before the answer".to_owned(),
    }
}

/// Why there is no TLS. The library's own text can repeat names out of the receiver's certificate.
fn tls(error: &rustls::Error) -> String {
    let reason = match error {
        rustls::Error::InvalidCertificate(reason) => certificate(reason),
        rustls::Error::AlertReceived(alert) => return format!("no TLS on the connection: the receiver said {alert:?}"),
        _ => return "no TLS on the connection: the receiver speaks another protocol or version".to_owned(),
    };
    format!("the receiver's certificate {reason}")
}

fn certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => {
            "is signed by nobody this relay trusts; give its root as egress.ca_file if it is to be trusted"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "is for another name",
        CertificateError::Revoked => "is revoked",
        _ => "cannot be trusted",
    }
}

/// The first error of this type, from the outermost inwards.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error names what is below its inner error as its source, never the inner error itself.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// A mistaken date must not silence an endpoint for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
