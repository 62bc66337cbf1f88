//! What a credential allows.
//!
//! In: what somebody wishes. Out: what of it is granted, or a denial. Nothing of a wish beyond the
//! limits ever passes.
//!
//! May use: `config`, `event`.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Denial;
use crate::{
    config::{Permission, Permissions},
    event::{Kind, Only, ProductId, Scope, SessionId},
};

/// What a credential allows.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// Its name in the configuration; for all scoped tokens the same.
    pub(crate) key: Arc<str>,
    /// Who is counted for limits: the key, or each token by itself.
    pub(crate) holder: CredentialHolder,
    pub(super) products: Only<ProductId>,
    pub(super) permissions: Permissions,
    /// Nothing beyond these sessions and kinds is seen or published.
    pub(super) scope: Scope,
    /// From here on it allows nothing.
    pub(super) expires_at: Option<Instant>,
    pub(super) is_anonymous: bool,
    /// What it was given for.
    pub(crate) proof: Arc<CredentialProof>,
}

/// What a grant was given for: enough to judge it again when keys have changed, and no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum CredentialProof {
    /// No credential.
    Anonymous,
    /// The key of this fingerprint, whatever it is called.
    Key([u8; 32]),
    /// A scoped token.
    Token {
        /// Fingerprint of the key that its signature was checked with, and of the algorithm.
        signed_by: [u8; 32],
        /// Its claim `aud`.
        audience: Box<[Box<str>]>,
    },
}

impl Grant {
    /// Whether `permission` on `product` is granted.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] when it is not; [`Denial::NoCredential`] when a credential might
    /// help.
    pub(crate) fn check(&self, product: &ProductId, permission: Permission) -> Result<(), Denial> {
        let is_granted = self.products.admits(product) && self.permissions.contains(&permission);
        match is_granted {
            true => Ok(()),
            false if self.is_anonymous => Err(Denial::NoCredential),
            false => Err(Denial::Forbidden),
        }
    }

    /// What is to be seen of what is asked for: everything within the grant where nothing is.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] when more is asked for than is granted.
    pub(crate) fn narrow(&self, requested: Scope) -> Result<Scope, Denial> {
        Ok(Scope {
            sessions: narrow_limit(&self.scope.sessions, requested.sessions)?,
            kinds: narrow_limit(&self.scope.kinds, requested.kinds)?,
        })
    }

    /// Whether an event of this session and kind may be published. The permission itself is for
    /// [`Grant::check`].
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] outside the limits; an event of no session is outside of any limit to
    /// sessions.
    pub(crate) fn check_publish(
        &self,
        session: Option<&SessionId>,
        kind: &Kind,
    ) -> Result<(), Denial> {
        if self.scope.includes(session, kind) { Ok(()) } else { Err(Denial::Forbidden) }
    }

    /// Whether it allows anything still: whoever has waited, for a body or for its turn, may have
    /// outlived its token.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when its token is over, as for one that comes too late.
    pub(crate) fn check_not_expired(&self) -> Result<(), Denial> {
        let is_expired = self.expires_at.is_some_and(|end| Instant::now() >= end);
        if is_expired { Err(Denial::Unauthenticated) } else { Ok(()) }
    }

    /// When a stream under this grant that begins now has to end: within the last fifth of the time
    /// left, each at another moment, so that tokens minted together do not all come back together;
    /// and with time to say so before the token's own end.
    pub(crate) fn stream_expiry(&self) -> Option<StreamExpiry> {
        let (expires_at, now) = (self.expires_at?, Instant::now());
        let remaining = expires_at.saturating_duration_since(now);
        let spread = remaining
            .mul_f64(1.0 - EARLIEST_DISCONNECT_FRACTION)
            .saturating_sub(CLOSE_HANDSHAKE_ALLOWANCE.min(remaining.mul_f64(MAX_CLOSE_FRACTION)));
        let disconnect_at =
            now + remaining.mul_f64(EARLIEST_DISCONNECT_FRACTION) + spread.mul_f64(fastrand::f64());
        Some(StreamExpiry { disconnect_at: disconnect_at.min(expires_at.max(now)), expires_at })
    }
}

/// One that limits are counted for. No token can pass for a key: what stands for it is no name, and
/// shown nowhere.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum CredentialHolder {
    /// Whoever has the key of this name, or nobody's.
    Key(Arc<str>),
    /// Whoever has the token of this digest: a browser, or its tabs.
    Token([u8; 32]),
}

/// The end of a stream with its token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StreamExpiry {
    /// From here on its client is given nothing but a goodbye.
    pub(crate) disconnect_at: Instant,
    /// The token's own end: here the stream is gone, whether its client has taken everything or
    /// not.
    pub(crate) expires_at: Instant,
}

/// What is asked for, if the limit includes all of it; the limit itself where nothing is.
fn narrow_limit<T: Clone + Ord>(limit: &Only<T>, requested: Only<T>) -> Result<Only<T>, Denial> {
    match (limit, requested) {
        (Only::Everything, requested) => Ok(requested),
        (Only::These(_), Only::Everything) => Ok(limit.clone()),
        (Only::These(granted), Only::These(requested)) if requested.is_subset(granted) => {
            Ok(Only::These(requested))
        }
        (Only::These(_), Only::These(_)) => Err(Denial::Forbidden),
    }
}

/// Streams end after this part of the time their token had left at the beginning, or a little
/// later.
const EARLIEST_DISCONNECT_FRACTION: f64 = 0.8;

/// What a closing handshake may take.
const CLOSE_HANDSHAKE_ALLOWANCE: Duration = Duration::from_millis(1500);

/// The most of a token's time that goes into it: one that counts for seconds is not to be spent on
/// goodbyes.
const MAX_CLOSE_FRACTION: f64 = 0.1;

/// The longest a token counts. Later ends could not be told from the end of time.
pub(super) const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
