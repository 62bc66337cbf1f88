//! Classifies an answer, or its absence.
//!
//! In: a status and headers, or an error of the transport. Out: outcome, disposition, and a text
//! for the operator. The text never repeats what the receiver wrote, nor the URL's path and query,
//! which may hold a secret. Pure.
//!
//! May use: `outbound`, `webhook_delivery`.

use std::{error::Error, io, time::Duration};

use hyper::{HeaderMap, StatusCode};
use hyper_util::client::legacy;
use rustls::CertificateError;

use crate::{
    outbound::{client::parse_retry_after, egress_guard::EgressError},
    webhook::Disposition,
    webhook_delivery::Outcome,
};

/// How an attempt went, and what is to be done.
#[derive(Debug, PartialEq)]
pub(super) struct Classification {
    /// How it went.
    pub(super) outcome: Outcome,
    /// What was answered, if anything.
    pub(super) status: Option<StatusCode>,
    /// What went wrong, if anything.
    pub(super) error: Option<String>,
    /// What is to be done.
    pub(super) disposition: Disposition,
}

impl Classification {
    /// Judges the head of an answer.
    pub(super) fn of_response(status: StatusCode, headers: &HeaderMap) -> Self {
        let retry = || Disposition::Retry {
            after: parse_retry_after(headers).map(|wait| wait.min(MAX_RETRY_AFTER)),
        };
        let (outcome, disposition) = match status.as_u16() {
            200..=299 => (Outcome::Accepted, Disposition::Accepted),
            408 | 425 | 429 => (Outcome::Refused, retry()),
            410 => (Outcome::Refused, Disposition::Gone),
            400..=499 => (Outcome::Refused, Disposition::Refused),
            _ => (Outcome::Failed, retry()),
        };
        let error = (outcome != Outcome::Accepted).then(|| describe_status(status));
        Self { outcome, status: Some(status), error, disposition }
    }

    /// Judges why there is no answer.
    pub(super) fn of_error(failure: &legacy::Error) -> Self {
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

    /// The deadline has passed.
    pub(super) fn timeout(timeout: Duration) -> Self {
        Self::retry(
            Outcome::Timeout,
            format!("no complete answer within {} s", timeout.as_secs_f64()),
        )
    }

    /// The connection was lost behind the answer's head.
    pub(super) fn truncated() -> Self {
        Self::retry(
            Outcome::Connect,
            "the connection was lost in the middle of the answer".to_owned(),
        )
    }

    /// The request could not be made.
    pub(super) fn unsendable() -> Self {
        Self::retry(
            Outcome::Failed,
            "the secret or the event's id cannot stand in a request header".to_owned(),
        )
    }

    /// The same with the status that was seen before.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status: Some(status), ..self }
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

fn describe_status(status: StatusCode) -> String {
    let hint = if status.is_redirection() {
        "; redirects are not followed, so write the address it leads to as the webhook's url"
    } else {
        ""
    };
    // The reason is the one that the code has everywhere, not the receiver's.
    format!("answered {} {}", status.as_u16(), status.canonical_reason().unwrap_or_default())
        .trim_end()
        .to_owned()
        + hint
}

/// What has become of a connection that was dialled.
fn describe_lost_connection(failure: &legacy::Error) -> String {
    if let Some(error) = find_in_chain::<rustls::Error>(failure) {
        return describe_tls_error(error);
    }
    if failure.is_connect() {
        return "no TLS on the connection: it was lost on the way".to_owned();
    }
    match find_in_chain::<hyper::Error>(failure) {
        Some(error) if error.is_parse() => "the answer is not HTTP".to_owned(),
        Some(error) if error.is_incomplete_message() => {
            "the connection was closed before the answer".to_owned()
        }
        _ => "the connection was lost before the answer".to_owned(),
    }
}

/// Why there is no TLS. The library's own text can repeat names out of the receiver's certificate.
fn describe_tls_error(error: &rustls::Error) -> String {
    let reason = match error {
        rustls::Error::InvalidCertificate(reason) => describe_certificate_error(reason),
        rustls::Error::AlertReceived(alert) => {
            return format!("no TLS on the connection: the receiver said {alert:?}");
        }
        _ => {
            return "no TLS on the connection: the receiver speaks another protocol or version"
                .to_owned();
        }
    };
    format!("the receiver's certificate {reason}")
}

fn describe_certificate_error(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => {
            "is signed by nobody this relay trusts; give its root as egress.ca_file if it is to be trusted"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another name"
        }
        CertificateError::Revoked => "is revoked",
        _ => "cannot be trusted",
    }
}

/// The first error of this type, from the outermost inwards.
fn find_in_chain<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error names what is below its inner error as its source, never the inner error
        // itself.
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
