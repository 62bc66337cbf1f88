//! Grants: what a credential allows.
//!
//! In: a requested scope, or an event to publish. Out: the requested scope within the limits of the
//! grant, or a denial. A request beyond the limits is never widened or passed.
//!
//! May use: `config`, `event`.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{denial::Denial, publish_rate::PublishRate};
use crate::{
    config::{Permission, Permissions},
    event::{Only, ProductId, Scope, ScopeKey},
};

/// Permissions of one credential.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// Name of the key in the configuration; the same name for all scoped tokens.
    pub(crate) key: Arc<str>,
    /// Holder that limits are counted for: the key, or each token by itself.
    pub(crate) holder: CredentialHolder,
    pub(super) products: Only<ProductId>,
    pub(super) permissions: Permissions,
    /// Sessions, users and kinds that may be seen and published.
    pub(super) scope: Scope,
    /// Time from which the grant allows nothing.
    pub(super) expires_at: Option<Instant>,
    pub(super) is_anonymous: bool,
    /// Rate at which the credential may publish, over all products, if that is limited.
    pub(super) publish_rate: Option<Arc<PublishRate>>,
    /// The credential that the grant was given for.
    pub(crate) proof: Arc<CredentialProof>,
}

/// The credential that a grant was given for: enough to judge it again after keys have changed, and
/// no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum CredentialProof {
    /// No credential.
    Anonymous,
    /// The key with this fingerprint, under any name.
    Key([u8; 32]),
    /// A scoped token.
    Token {
        /// Fingerprint of the key that verified the signature, and of the algorithm.
        signed_by: [u8; 32],
        /// The claim `aud`.
        audience: Box<[Box<str>]>,
    },
}

impl Grant {
    /// Checks whether `permission` on `product` is granted.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] if it is not granted, or [`Denial::NoCredential`] if the request had
    /// no credential and one might help.
    pub(crate) fn check(&self, product: &ProductId, permission: Permission) -> Result<(), Denial> {
        let is_granted = self.products.admits(product) && self.permissions.contains(&permission);
        match is_granted {
            true => Ok(()),
            false if self.is_anonymous => Err(Denial::NoCredential),
            false => Err(Denial::Forbidden),
        }
    }

    /// Returns the requested scope, or the whole scope of the grant where the request names no
    /// limit.
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] if more is requested than granted.
    pub(crate) fn narrow(&self, requested: Scope) -> Result<Scope, Denial> {
        Ok(Scope {
            sessions: narrow_limit(&self.scope.sessions, requested.sessions)?,
            users: narrow_limit(&self.scope.users, requested.users)?,
            kinds: narrow_limit(&self.scope.kinds, requested.kinds)?,
        })
    }

    /// Checks whether an event with this key may be published. The permission to publish is checked
    /// by [`Grant::check`].
    ///
    /// # Errors
    ///
    /// [`Denial::Forbidden`] outside the limits. An event without a session is outside every limit
    /// to sessions, and one without a user outside every limit to users.
    pub(crate) fn check_publish(&self, event: ScopeKey<'_>) -> Result<(), Denial> {
        if self.scope.includes(event) { Ok(()) } else { Err(Denial::Forbidden) }
    }

    /// Counts one request to publish.
    ///
    /// # Errors
    ///
    /// The time after which the next one is within the rate. This one is not counted then.
    pub(crate) fn take_publish(&self) -> Result<(), Duration> {
        self.publish_rate.as_ref().map_or(Ok(()), |rate| rate.take())
    }

    /// Checks that the grant has not expired. A request that waited, for its body or for its turn,
    /// may outlive its token.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] if the token has expired, as for a request with an expired
    /// token.
    pub(crate) fn check_not_expired(&self) -> Result<(), Denial> {
        let is_expired = self.expires_at.is_some_and(|end| Instant::now() >= end);
        if is_expired { Err(Denial::Unauthenticated) } else { Ok(()) }
    }

    /// Returns when a stream that begins now under this grant must end; [`None`] if the grant does
    /// not expire.
    ///
    /// The stream is disconnected at a random moment in the last fifth of the remaining time, so
    /// that tokens minted together do not all reconnect together, and early enough to finish the
    /// closing handshake before the token expires.
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

/// Holder that limits are counted for. A token cannot pass for a key: it is represented by its
/// digest, which is no name and is shown nowhere.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum CredentialHolder {
    /// The holders of the key of this name, or the requests without a credential.
    Key(Arc<str>),
    /// The holders of the token with this digest: a browser with its tabs.
    Token([u8; 32]),
}

/// End of a stream because of its token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StreamExpiry {
    /// Time from which the client is only sent the disconnect message.
    pub(crate) disconnect_at: Instant,
    /// Expiry of the token: the connection is closed then, even if the client has not taken
    /// everything.
    pub(crate) expires_at: Instant,
}

/// Returns the requested limit if `limit` includes it, or `limit` itself if nothing is requested.
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

/// Fraction of the remaining time after which streams may be disconnected.
const EARLIEST_DISCONNECT_FRACTION: f64 = 0.8;

/// Time that a closing handshake may take.
const CLOSE_HANDSHAKE_ALLOWANCE: Duration = Duration::from_millis(1500);

/// Maximum fraction of the remaining time that is reserved for the closing handshake: a token of a
/// few seconds is not to be spent on it.
const MAX_CLOSE_FRACTION: f64 = 0.1;

/// Maximum lifetime of a token, ten years. A claim may say 1e300, which fits no `Duration`; such a
/// token lasts this long.
pub(super) const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
