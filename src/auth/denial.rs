//! Reasons to refuse a request.
//!
//! May use: no other module.

/// Reason to refuse a request. The client learns no more than this.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Denial {
    /// The request has no credential where one is needed. The client gets the same answer as for an
    /// unknown credential.
    #[error("missing or invalid token")]
    NoCredential,
    /// The credential is unknown, or no longer valid.
    #[error("missing or invalid token")]
    Unauthenticated,
    /// The credential is known and does not allow the request.
    #[error("the token does not allow this")]
    Forbidden,
}
