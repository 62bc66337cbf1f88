//! Reasons for which a scoped token grants nothing.
//!
//! May use: no other module.

/// Reasons for which a token grants nothing.
///
/// The log alone shows them: every client gets the same answer. None of them holds a part of the
/// token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("it is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("it is not a JSON Web Token")]
    Malformed,
    #[error("its algorithm is not the one of auth.jwt.algorithm")]
    Algorithm,
    #[error("its head demands an extension (crit)")]
    CriticalExtension,
    #[error("its signature is by none of the keys of [auth.jwt]")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet (nbf)")]
    NotYetValid,
    #[error("it is not for the audience of auth.jwt.audience")]
    Audience,
    #[error("its claim {0} is missing, or not as it must be")]
    Claim(&'static str),
}

/// More than any honest token needs, and little enough to be read for anybody who sends one.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
