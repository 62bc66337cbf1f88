//! Who asks, and what they may do.
//!
//! In: the credential of a request. Out: a grant, or a denial that does not say why; the log does. Compares digests in constant
//! time.
//!
//! May use: `config`, `event`.

mod claims;
mod grant;
#[cfg(test)]
mod tests;
mod token;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};

use tokio::time::Instant;

use self::{
    claims::Claimed,
    token::{Verifier, is_token},
};
pub(crate) use self::{
    grant::{Farewell, Grant, Holder, Proof},
    token::{Order, mint},
};
use crate::{
    config::{Auth, Permission},
    event::{Only, ProductId, Scope},
};

/// The keys of the configuration, and what is allowed without one.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<([u8; 32], Grant)>,
    tokens: Option<Verifier>,
    anonymous: Option<Grant>,
}

impl Access {
    /// The rules of the configuration.
    pub(crate) fn new(auth: &Auth) -> Self {
        let keys = auth.keys.iter().map(|key| {
            let known_by = fingerprint(key.key.expose().as_bytes());
            let grant = Grant {
                key: key.name.as_str().into(),
                holder: Holder::Key(key.name.as_str().into()),
                products: key.products.clone(),
                permissions: key.permissions.clone(),
                limits: Scope::EVERYTHING,
                expires: None,
                is_anonymous: false,
                proof: Arc::new(Proof::Key(known_by)),
            };
            (known_by, grant)
        });
        let anonymous = auth.allow_anonymous.then(|| Grant {
            key: ANONYMOUS.into(),
            holder: Holder::Key(ANONYMOUS.into()),
            products: Only::Everything,
            permissions: auth.anonymous_permissions.clone(),
            limits: Scope::EVERYTHING,
            expires: None,
            is_anonymous: true,
            proof: Arc::new(Proof::Nothing),
        });
        Self { keys: keys.collect(), tokens: auth.jwt.as_ref().map(Verifier::new), anonymous }
    }

    /// What whoever holds this credential may do. A bad credential is no better where none is needed.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when the credential is neither key nor token, or there is none and one is needed.
    pub(crate) fn identify(&self, credential: Option<&Credential<'_>>) -> Result<Grant, Denial> {
        match credential {
            None => self.anonymous.clone(),
            Some(Credential::Any(text)) => self.of_key(text).cloned().or_else(|| self.of_token(text)),
            Some(Credential::Token(text)) => self.of_token(text),
        }
        .ok_or(Denial::Unauthenticated)
    }

    fn of_key(&self, credential: &[u8]) -> Option<&Grant> {
        let offered = fingerprint(credential);
        let mut found = None;
        for (key, grant) in &self.keys {
            // No early end: the time taken must not tell which key came close.
            if verify_slices_are_equal(key, &offered).is_ok() {
                found = Some(grant);
            }
        }
        found
    }

    /// Whether whoever has shown this would be let in today. The same key under another name is the same key.
    pub(crate) fn still_grants(&self, proof: &Proof, product: &ProductId, permission: Permission) -> bool {
        let grant = match proof {
            Proof::Nothing => self.anonymous.as_ref(),
            Proof::Key(shown) => self.keys.iter().rfind(|(key, _)| key == shown).map(|(_, grant)| grant),
            Proof::Token { signed_by, audience } => {
                return self.tokens.as_ref().is_some_and(|tokens| tokens.still_accepts(signed_by, audience));
            }
        };
        grant.is_some_and(|grant| grant.check(product, permission).is_ok())
    }

    fn of_token(&self, credential: &[u8]) -> Option<Grant> {
        let tokens = self.tokens.as_ref().filter(|_| is_token(credential))?;
        match tokens.read(credential, token::now()) {
            Ok((claimed, signed_by)) => Some(scoped(claimed, signed_by, credential)),
            Err(refusal) => {
                tracing::debug!(reason = %refusal, "a scoped token is refused");
                None
            }
        }
    }

    /// Whether some requests are answered without a credential.
    pub(crate) fn allows_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }
}

/// What a request shows, by what may be in that place.
#[derive(Debug)]
pub(crate) enum Credential<'a> {
    /// A key or a scoped token.
    Any(Cow<'a, [u8]>),
    /// A scoped token: where browsers carry it, no key belongs.
    Token(Cow<'a, [u8]>),
}

/// The grant of a token, which counts from now. What is signed tells it from others: no claim has to, and a signature may be
/// written in several ways.
fn scoped(claimed: Claimed, signed_by: [u8; 32], token: &[u8]) -> Grant {
    let end_of_signed = token.iter().rposition(|byte| *byte == b'.').unwrap_or(token.len());
    let holder = fingerprint(token.split_at(end_of_signed).0);
    let left = Duration::try_from_secs_f64(claimed.seconds_left).unwrap_or(grant::LONGEST).min(grant::LONGEST);
    Grant {
        key: TOKEN.into(),
        holder: Holder::Token(holder),
        products: Only::These(claimed.products),
        permissions: claimed.permissions,
        limits: claimed.limits,
        expires: Some(Instant::now() + left),
        is_anonymous: false,
        proof: Arc::new(Proof::Token { signed_by, audience: claimed.audience }),
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
#[derive(Clone, Debug)]
pub(crate) struct SoleKey(Option<[u8; 32]>);

impl SoleKey {
    /// The key; without one, whoever reaches the listener is let in.
    pub(crate) fn new(key: Option<&str>) -> Self {
        Self(key.map(|key| fingerprint(key.as_bytes())))
    }

    /// What whoever is let in has shown.
    pub(crate) fn proof(&self) -> Arc<Proof> {
        Arc::new(self.0.map_or(Proof::Nothing, Proof::Key))
    }

    /// The same rule as one among others: all for whoever has the key, or for everybody.
    pub(crate) fn access(&self) -> Access {
        let proof = self.proof();
        let grant = Grant {
            key: OPERATOR.into(),
            holder: Holder::Key(OPERATOR.into()),
            products: Only::Everything,
            permissions: BTreeSet::from([Permission::Subscribe]),
            limits: Scope::EVERYTHING,
            expires: None,
            is_anonymous: self.0.is_none(),
            proof,
        };
        match self.0 {
            Some(key) => Access { keys: vec![(key, grant)], tokens: None, anonymous: None },
            None => Access { keys: Vec::new(), tokens: None, anonymous: Some(grant) },
        }
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
        verify_slices_are_equal(key, &offered).map_err(|_| Denial::Unauthenticated)
    }
}

/// The credential of an `Authorization: Bearer` header (RFC 6750, section 2.1).
pub(crate) fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
}

/// Equal lengths for the comparison, whatever is offered.
fn fingerprint(secret: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
    bytes
}

const BEARER: &[u8] = b"Bearer ";

/// Stands for the key's name where there is no key.
const ANONYMOUS: &str = "anonymous";

/// The name of the admin key.
pub(crate) const OPERATOR: &str = "admin";

/// Stands for the key's name where there is a scoped token: whose it is must not show in lists, let alone in metrics.
const TOKEN: &str = "token";
