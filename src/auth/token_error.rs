//! Reasons for which a scoped token grants nothing.
//!
//! May use: no other module.

/// Reason for which a token grants nothing.
///
/// Only the log shows it: every client gets the same answer. No variant holds a part of the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("it is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("it is not a JSON Web Token")]
    Malformed,
    #[error("its algorithm is not the one of auth.jwt.algorithm")]
    Algorithm,
    #[error("its header demands an extension (crit)")]
    CriticalExtension,
    #[error("no key of [auth.jwt] verifies its signature")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet (nbf)")]
    NotYetValid,
    #[error("it is not for the audience of auth.jwt.audience")]
    Audience,
    #[error("its claim {0} is missing or invalid")]
    Claim(&'static str),
}

/// Maximum length of a token: more than a real token needs, and little enough to parse for any
/// client that sends one.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
