//! Who asks, and what they may do.
//!
//! In: the credential of a request. Out: a grant, or a denial that does not say why. Compares digests in constant time.
//!
//! May use: `config`, `event`.

mod grant;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{Digest, SHA256, digest},
};

pub(crate) use self::grant::Grant;
use crate::{
    config::Auth,
    event::{Only, Scope},
};

/// The keys of the configuration, and what is allowed without one.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<(Digest, Grant)>,
    anonymous: Option<Grant>,
}

impl Access {
    /// The rules of the configuration.
    pub(crate) fn new(auth: &Auth) -> Self {
        let keys = auth.keys.iter().map(|key| {
            let grant = Grant {
                key: key.name.as_str().into(),
                products: key.products.clone(),
                permissions: key.permissions.clone(),
                limits: Scope::EVERYTHING,
                expires: None,
                is_anonymous: false,
            };
            (fingerprint(key.key.expose().as_bytes()), grant)
        });
        let anonymous = auth.allow_anonymous.then(|| Grant {
            key: ANONYMOUS.into(),
            products: Only::Everything,
            permissions: auth.anonymous_permissions.clone(),
            limits: Scope::EVERYTHING,
            expires: None,
            is_anonymous: true,
        });
        Self { keys: keys.collect(), anonymous }
    }

    /// What whoever holds this credential may do. A bad credential is no better where none is needed.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when the credential is no key, or there is none and one is needed.
    pub(crate) fn identify(&self, credential: Option<&[u8]>) -> Result<Grant, Denial> {
        let Some(credential) = credential else {
            return self.anonymous.clone().ok_or(Denial::Unauthenticated);
        };
        let offered = fingerprint(credential);
        let mut found = None;
        for (key, grant) in &self.keys {
            // No early end: the time taken must not tell which key came close.
            if verify_slices_are_equal(key.as_ref(), offered.as_ref()).is_ok() {
                found = Some(grant);
            }
        }
        found.cloned().ok_or(Denial::Unauthenticated)
    }

    /// Whether some requests are answered without a credential.
    pub(crate) fn allows_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }
}

/// Why a request goes no further. The client learns no more than this.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Denial {
    /// No credential, or not one that is known.
    #[error("missing or invalid token")]
    Unauthenticated,
    /// A known credential for something else.
    #[error("the token does not allow this")]
    Forbidden,
}

/// The one key of a listener, if it has one.
#[derive(Debug)]
pub(crate) struct SoleKey(Option<Digest>);

impl SoleKey {
    /// The key; without one, whoever reaches the listener is let in.
    pub(crate) fn new(key: Option<&str>) -> Self {
        Self(key.map(|key| fingerprint(key.as_bytes())))
    }

    /// Whether the listener asks for a key.
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the offered key opens.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when it does not.
    pub(crate) fn check(&self, offered: Option<&[u8]>) -> Result<(), Denial> {
        let Some(key) = &self.0 else { return Ok(()) };
        let offered = fingerprint(offered.ok_or(Denial::Unauthenticated)?);
        verify_slices_are_equal(key.as_ref(), offered.as_ref()).map_err(|_| Denial::Unauthenticated)
    }
}

/// The credential of an `Authorization: Bearer` header (RFC 6750, section 2.1).
pub(crate) fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
}

/// Equal lengths for the comparison, whatever is offered.
fn fingerprint(secret: &[u8]) -> Digest {
    digest(&SHA256, secret)
}

const BEARER: &[u8] = b"Bearer ";

/// Stands for the key's name where there is no key.
const ANONYMOUS: &str = "anonymous";
