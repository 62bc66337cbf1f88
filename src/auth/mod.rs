//! Authentication of requests, and what their credentials allow.
//!
//! In: the credential of a request. Out: a grant, or a denial. A denial does not tell the client
//! its reason; the log has it at debug. Digests of keys are compared in constant time.
//!
//! May use: `config`, `event`.

mod claims;
mod denial;
mod fingerprint;
mod grant;
mod publish_rate;
#[cfg(test)]
mod tests;
mod token;
mod token_error;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::time::Instant;

use self::{
    claims::VerifiedClaims,
    fingerprint::fingerprint,
    publish_rate::PublishRate,
    token::{TokenVerifier, looks_like_token},
};
pub(crate) use self::{
    denial::Denial,
    grant::{CredentialHolder, CredentialProof, Grant, StreamExpiry},
    token::{TokenSpec, mint},
};
use crate::{
    config::{AuthConfig, Permission},
    event::{Only, ProductId, Scope},
};

/// The keys and the token verification of the configuration, and the grant of requests without a
/// credential.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<([u8; 32], Grant)>,
    token_verifier: Option<TokenVerifier>,
    anonymous: Option<Grant>,
}

impl Access {
    /// Creates the access rules of the configuration.
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
                // Another configuration has full buckets: its limits may be other ones.
                publish_rate: key.max_publishes_per_second.map(PublishRate::new).map(Arc::new),
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
            publish_rate: None,
            proof: Arc::new(CredentialProof::Anonymous),
        });
        Self {
            keys: keys.collect(),
            token_verifier: auth.jwt.as_ref().map(TokenVerifier::new),
            anonymous,
        }
    }

    /// Returns the grant of a credential. An unknown credential is refused even where requests
    /// without a credential are allowed.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] if the credential is neither a known key nor a valid token, or
    /// [`Denial::NoCredential`] if the request has no credential and needs one.
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
            // The loop has no early exit: its time must not tell an attacker which key came close.
            if verify_slices_are_equal(key, &offered).is_ok() {
                found = Some(grant);
            }
        }
        found
    }

    /// Returns whether the credential behind `proof` still grants `permission` on `product` by
    /// these rules. A key is recognised by its fingerprint, so that it may have been renamed.
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

    /// Returns whether some requests are answered without a credential.
    pub(crate) fn allows_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }
}

/// Credential of a request, by the part of the request that carries it.
#[derive(Debug)]
pub(crate) enum Credential<'a> {
    /// A key or a scoped token.
    KeyOrToken(Cow<'a, [u8]>),
    /// A scoped token only. Cookies and query parameters carry it, and keys do not belong there.
    TokenOnly(Cow<'a, [u8]>),
}

/// Returns the grant of a verified token, which lasts from now. Its holder is identified by the
/// signed part of the token: no claim has to identify it, and one signature can be written in
/// several ways.
fn grant_for_claims(claims: VerifiedClaims, signed_by: [u8; 32], token: &[u8]) -> Grant {
    let signed_len = token.iter().rposition(|byte| *byte == b'.').unwrap_or(token.len());
    let holder = fingerprint(token.split_at(signed_len).0);
    let remaining = Duration::try_from_secs_f64(claims.seconds_left)
        .unwrap_or(grant::MAX_TOKEN_LIFETIME)
        .min(grant::MAX_TOKEN_LIFETIME);
    Grant {
        key: TOKEN_KEY_NAME.into(),
        holder: CredentialHolder::Token(holder),
        products: Only::These(claims.products.into()),
        permissions: claims.permissions,
        scope: claims.scope,
        expires_at: Some(Instant::now() + remaining),
        is_anonymous: false,
        publish_rate: None,
        proof: Arc::new(CredentialProof::Token { signed_by, audience: claims.audience }),
    }
}

/// The only key of a listener, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct ListenerKey(Option<[u8; 32]>);

impl ListenerKey {
    /// Creates the check of `key`. Without a key the listener admits every request.
    pub(crate) fn new(key: Option<&str>) -> Self {
        Self(key.map(|key| fingerprint(key.as_bytes())))
    }

    /// Returns the proof of an admitted request.
    pub(crate) fn proof(&self) -> Arc<CredentialProof> {
        Arc::new(self.0.map_or(CredentialProof::Anonymous, CredentialProof::Key))
    }

    /// Returns the same rule as [`Access`]: everything is granted to requests with the key, or to
    /// every request where there is no key.
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
            publish_rate: None,
            proof,
        };
        match self.0 {
            Some(key) => Access { keys: vec![(key, grant)], token_verifier: None, anonymous: None },
            None => Access { keys: Vec::new(), token_verifier: None, anonymous: Some(grant) },
        }
    }

    /// Returns whether the listener demands a key.
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Checks the offered key.
    ///
    /// # Errors
    ///
    /// [`Denial::NoCredential`] if the listener has a key and the request offers none,
    /// [`Denial::Unauthenticated`] if `offered` is not that key.
    pub(crate) fn check(&self, offered: Option<&[u8]>) -> Result<(), Denial> {
        let Some(key) = &self.0 else { return Ok(()) };
        let offered = fingerprint(offered.ok_or(Denial::NoCredential)?);
        verify_slices_are_equal(key, &offered).map_err(|_| Denial::Unauthenticated)
    }
}

/// Returns the credential of an `Authorization: Bearer` header (RFC 6750, section 2.1).
pub(crate) fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(BEARER_PREFIX.len())?;
    scheme.eq_ignore_ascii_case(BEARER_PREFIX).then(|| token.trim_ascii())
}

const BEARER_PREFIX: &[u8] = b"Bearer ";

/// Key name of requests without a credential.
const ANONYMOUS_KEY_NAME: &str = "anonymous";

/// Name of the admin key.
pub(crate) const ADMIN_KEY_NAME: &str = "admin";

/// Key name of requests with a scoped token: the token's holder must not appear in lists or
/// metrics.
const TOKEN_KEY_NAME: &str = "token";
