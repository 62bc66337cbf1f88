//! Who asks, and what they may do.
//!
//! In: the credential of a request. Out: a grant, or a denial that does not say why; the log does.
//! Compares digests in constant time.
//!
//! May use: `config`, `event`.

mod claims;
mod grant;
#[cfg(test)]
mod tests;
mod token;
mod token_error;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};

use tokio::time::Instant;

use self::{
    claims::VerifiedClaims,
    token::{TokenVerifier, looks_like_token},
};
pub(crate) use self::{
    grant::{CredentialHolder, CredentialProof, Grant, StreamExpiry},
    token::{TokenSpec, mint},
};
use crate::{
    config::{AuthConfig, Permission},
    event::{Only, ProductId, Scope},
};

/// The keys of the configuration, and what is allowed without one.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<([u8; 32], Grant)>,
    token_verifier: Option<TokenVerifier>,
    anonymous: Option<Grant>,
}

impl Access {
    /// The rules of the configuration.
    pub(crate) fn new(auth: &AuthConfig) -> Self {
        let keys = auth.keys.iter().map(|key| {
            let key_fingerprint = fingerprint(key.key.expose().as_bytes());
            let grant = Grant {
                key: key.name.as_str().into(),
                holder: CredentialHolder::Key(key.name.as_str().into()),
                products: key.products.clone(),
                permissions: key.permissions.clone(),
                scope: Scope::EVERYTHING,
                expires_at: None,
                is_anonymous: false,
                proof: Arc::new(CredentialProof::Key(key_fingerprint)),
            };
            (key_fingerprint, grant)
        });
        let anonymous = auth.allow_anonymous.then(|| Grant {
            key: ANONYMOUS_KEY_NAME.into(),
            holder: CredentialHolder::Key(ANONYMOUS_KEY_NAME.into()),
            products: Only::Everything,
            permissions: auth.anonymous_permissions.clone(),
            scope: Scope::EVERYTHING,
            expires_at: None,
            is_anonymous: true,
            proof: Arc::new(CredentialProof::Anonymous),
        });
        Self {
            keys: keys.collect(),
            token_verifier: auth.jwt.as_ref().map(TokenVerifier::new),
            anonymous,
        }
    }

    /// What whoever holds this credential may do. A bad credential is no better where none is
    /// needed.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when the credential is neither key nor token;
    /// [`Denial::NoCredential`] when there is none and one is needed.
    pub(crate) fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
    ) -> Result<Grant, Denial> {
        match credential {
            None => return self.anonymous.clone().ok_or(Denial::NoCredential),
            Some(Credential::KeyOrToken(text)) => {
                self.grant_for_key(text).cloned().or_else(|| self.grant_for_token(text))
            }
            Some(Credential::TokenOnly(text)) => self.grant_for_token(text),
        }
        .ok_or(Denial::Unauthenticated)
    }

    fn grant_for_key(&self, credential: &[u8]) -> Option<&Grant> {
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

    /// Whether whoever has shown this would be let in today. The same key under another name is the
    /// same key.
    pub(crate) fn still_grants(
        &self,
        proof: &CredentialProof,
        product: &ProductId,
        permission: Permission,
    ) -> bool {
        let grant = match proof {
            CredentialProof::Anonymous => self.anonymous.as_ref(),
            CredentialProof::Key(fingerprint) => {
                self.keys.iter().rfind(|(key, _)| key == fingerprint).map(|(_, grant)| grant)
            }
            CredentialProof::Token { signed_by, audience } => {
                return self
                    .token_verifier
                    .as_ref()
                    .is_some_and(|tokens| tokens.still_accepts(signed_by, audience));
            }
        };
        grant.is_some_and(|grant| grant.check(product, permission).is_ok())
    }

    fn grant_for_token(&self, credential: &[u8]) -> Option<Grant> {
        let verifier = self.token_verifier.as_ref().filter(|_| looks_like_token(credential))?;
        match verifier.verify(credential, token::unix_now()) {
            Ok((claimed, signed_by)) => Some(grant_for_claims(claimed, signed_by, credential)),
            Err(error) => {
                tracing::debug!(reason = %error, "a scoped token is refused");
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
    KeyOrToken(Cow<'a, [u8]>),
    /// A scoped token: where browsers carry it, no key belongs.
    TokenOnly(Cow<'a, [u8]>),
}

/// The grant of a token, which counts from now. What is signed tells it from others: no claim has
/// to, and a signature may be written in several ways.
fn grant_for_claims(claims: VerifiedClaims, signed_by: [u8; 32], token: &[u8]) -> Grant {
    let signed_len = token.iter().rposition(|byte| *byte == b'.').unwrap_or(token.len());
    let holder = fingerprint(token.split_at(signed_len).0);
    let remaining = Duration::try_from_secs_f64(claims.seconds_left)
        .unwrap_or(grant::MAX_TOKEN_LIFETIME)
        .min(grant::MAX_TOKEN_LIFETIME);
    Grant {
        key: TOKEN_KEY_NAME.into(),
        holder: CredentialHolder::Token(holder),
        products: Only::These(claims.products),
        permissions: claims.permissions,
        scope: claims.scope,
        expires_at: Some(Instant::now() + remaining),
        is_anonymous: false,
        proof: Arc::new(CredentialProof::Token { signed_by, audience: claims.audience }),
    }
}

/// Why a request goes no further. The client learns no more than this.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Denial {
    /// No credential where one is needed. Clients are told the same as for one that is not known.
    #[error("missing or invalid token")]
    NoCredential,
    /// A credential that is not known, or no longer.
    #[error("missing or invalid token")]
    Unauthenticated,
    /// A known credential for something else.
    #[error("the token does not allow this")]
    Forbidden,
}

/// The one key of a listener, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct ListenerKey(Option<[u8; 32]>);

impl ListenerKey {
    /// The key; without one, whoever reaches the listener is let in.
    pub(crate) fn new(key: Option<&str>) -> Self {
        Self(key.map(|key| fingerprint(key.as_bytes())))
    }

    /// What whoever is let in has shown.
    pub(crate) fn proof(&self) -> Arc<CredentialProof> {
        Arc::new(self.0.map_or(CredentialProof::Anonymous, CredentialProof::Key))
    }

    /// The same rule as one among others: all for whoever has the key, or for everybody.
    pub(crate) fn to_access(&self) -> Access {
        let proof = self.proof();
        let grant = Grant {
            key: ADMIN_KEY_NAME.into(),
            holder: CredentialHolder::Key(ADMIN_KEY_NAME.into()),
            products: Only::Everything,
            permissions: BTreeSet::from([Permission::Subscribe]),
            scope: Scope::EVERYTHING,
            expires_at: None,
            is_anonymous: self.0.is_none(),
            proof,
        };
        match self.0 {
            Some(key) => Access { keys: vec![(key, grant)], token_verifier: None, anonymous: None },
            None => Access { keys: Vec::new(), token_verifier: None, anonymous: Some(grant) },
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
    /// [`Denial::NoCredential`] when there is none, [`Denial::Unauthenticated`] when it does not.
    pub(crate) fn check(&self, offered: Option<&[u8]>) -> Result<(), Denial> {
        let Some(key) = &self.0 else { return Ok(()) };
        let offered = fingerprint(offered.ok_or(Denial::NoCredential)?);
        verify_slices_are_equal(key, &offered).map_err(|_| Denial::Unauthenticated)
    }
}

/// The credential of an `Authorization: Bearer` header (RFC 6750, section 2.1).
pub(crate) fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(BEARER_PREFIX.len())?;
    scheme.eq_ignore_ascii_case(BEARER_PREFIX).then(|| token.trim_ascii())
}

/// Equal lengths for the comparison, whatever is offered.
fn fingerprint(secret: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
    bytes
}

const BEARER_PREFIX: &[u8] = b"Bearer ";

/// Stands for the key's name where there is no key.
const ANONYMOUS_KEY_NAME: &str = "anonymous";

/// The name of the admin key.
pub(crate) const ADMIN_KEY_NAME: &str = "admin";

/// Stands for the key's name where there is a scoped token: whose it is must not show in lists, let
/// alone in metrics.
const TOKEN_KEY_NAME: &str = "token";
