//! Reasons for which a scoped token grants nothing.
//!
//! May use: no other module.

/// Reason for which a token grants nothing.
///
/// Only the log shows it: every client gets the same answer. No variant holds a part of the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the credential is not a JSON Web Token")]
    Malformed,
    #[error("the algorithm of the token is not auth.jwt.algorithm")]
    Algorithm,
    #[error("the header of the token demands an extension (crit)")]
    CriticalExtension,
    #[error("no key of [auth.jwt] verifies the signature of the token")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
    #[error("the token is not for the audience auth.jwt.audience")]
    Audience,
    #[error("the claim {0} of the token is missing or invalid")]
    Claim(&'static str),
    #[error("the token has a claim whose name is a near miss of {0}")]
    NearClaim(&'static str),
    #[error("the token has the claim {0}, a limit that the relay does not apply yet")]
    UnsupportedClaim(&'static str),
}

/// Maximum length of a token: more than a real token needs, and little enough to parse for any
/// client that sends one.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
