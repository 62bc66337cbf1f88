//! Scoped tokens: JSON Web Tokens that say what their holder may see.
//!
//! In: the text of a token. Out: its verified claims, or the reason for which it is refused. The
//! algorithm comes from the configuration; the `alg` of the token's header must agree, and no other
//! field of the header is trusted.
//!
//! May use: `config`, `event`.

use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    errors::ErrorKind,
};
use serde::Serialize;

use super::{
    claims::{TokenClaims, VerifiedClaims, audience_matches},
    fingerprint::fingerprint,
    token_error::{MAX_TOKEN_BYTES, TokenError},
};
use crate::{
    config::{JwtConfig, JwtVerification, Permission, PublicKey, PublicKeyAlgorithm, Secret},
    event::{Kind, ProductId, SessionId, UserId},
};

/// Verifier of the tokens of one `[auth.jwt]`.
#[derive(Debug)]
pub(super) struct TokenVerifier {
    /// Several keys while keys are being rotated. Each is tried; the `kid` of a token is ignored.
    keys: Vec<(DecodingKey, [u8; 32])>,
    validation: Validation,
    audience: Option<String>,
}

impl TokenVerifier {
    /// Creates the verifier of the configuration.
    pub(super) fn new(jwt: &JwtConfig) -> Self {
        let name = jwt.verification.algorithm_name();
        let with_fingerprint = |key: &[u8], make: fn(&[u8]) -> DecodingKey| {
            (make(key), fingerprint(&[name.as_bytes(), key].concat()))
        };
        let (algorithm, keys) = match &jwt.verification {
            JwtVerification::SharedSecret { secret, previous_secret } => {
                let secrets = [Some(secret), previous_secret.as_ref()].into_iter().flatten();
                let keys = secrets.map(|secret| {
                    with_fingerprint(secret.expose().as_bytes(), DecodingKey::from_secret)
                });
                (Algorithm::HS256, keys.collect())
            }
            JwtVerification::PublicKeys { algorithm, keys, .. } => {
                let (algorithm, from_der): (_, fn(&[u8]) -> DecodingKey) = match algorithm {
                    PublicKeyAlgorithm::EdDsa => (Algorithm::EdDSA, DecodingKey::from_ed_der),
                    PublicKeyAlgorithm::Es256 => (Algorithm::ES256, DecodingKey::from_ec_der),
                    PublicKeyAlgorithm::Rs256 => (Algorithm::RS256, DecodingKey::from_rsa_der),
                };
                (
                    algorithm,
                    keys.iter()
                        .map(PublicKey::as_der)
                        .map(|key| with_fingerprint(key, from_der))
                        .collect(),
                )
            }
        };
        Self {
            keys,
            validation: signature_only_validation(algorithm),
            audience: jwt.audience.clone(),
        }
    }

    /// Returns the claims of a token at `now`, in Unix seconds, and the fingerprint of the key that
    /// verified its signature.
    ///
    /// # Errors
    ///
    /// The reason for which the token grants nothing.
    pub(super) fn verify(
        &self,
        token: &[u8],
        now: f64,
    ) -> Result<(VerifiedClaims, [u8; 32]), TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        if decode_header(token).is_ok_and(|header| header.crit.is_some()) {
            // The relay implements no extension, so it cannot honour one that the token declares
            // critical (RFC 7515, section 4.1.11).
            return Err(TokenError::CriticalExtension);
        }
        let mut error = TokenError::Signature;
        for (key, fingerprint) in &self.keys {
            match decode::<TokenClaims>(token, key, &self.validation) {
                Ok(token) => {
                    return Ok((token.claims.verify(now, self.audience.as_deref())?, *fingerprint));
                }
                Err(cause) => error = classify_error(cause.kind()),
            }
            if error != TokenError::Signature {
                break;
            }
        }
        Err(error)
    }

    /// Returns whether a token that was accepted earlier would be accepted today, its expiry aside.
    pub(super) fn still_accepts(&self, signed_by: &[u8; 32], audience: &[Box<str>]) -> bool {
        self.keys.iter().any(|(_, known)| known == signed_by)
            && audience_matches(self.audience.as_deref(), audience)
    }
}

/// Returns the library's settings to check algorithm and signature alone. The claims are checked in
/// `claims`: the library may take a claim of the wrong type for a missing one, and accepts a token
/// for a moment after its expiry.
fn signature_only_validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims = HashSet::new();
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

fn classify_error(error: &ErrorKind) -> TokenError {
    match error {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => TokenError::Algorithm,
        ErrorKind::InvalidSignature => TokenError::Signature,
        _ => TokenError::Malformed,
    }
}

/// Returns whether `credential` has the shape of a token: two dots. A configured key may have that
/// shape too, so keys are looked up first.
pub(super) fn looks_like_token(credential: &[u8]) -> bool {
    credential.iter().filter(|byte| **byte == b'.').count() == 2
}

/// The contents of a new token.
#[derive(Debug)]
pub(crate) struct TokenSpec {
    /// The product that the token grants.
    pub(crate) product: ProductId,
    /// The sessions that the token is limited to; empty for no limit.
    pub(crate) sessions: BTreeSet<SessionId>,
    /// The users that the token is limited to; empty for no limit.
    pub(crate) users: BTreeSet<UserId>,
    /// The kinds that the token is limited to; empty for no limit.
    pub(crate) kinds: BTreeSet<Kind>,
    /// The time from now to its expiry.
    pub(crate) ttl: Duration,
}

#[derive(Serialize)]
struct MintedClaims<'a> {
    exp: u64,
    product_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    session_id: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    user_id: Vec<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Vec::is_empty")]
    kind: Vec<&'a str>,
    permissions: [&'a str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Returns a new token that is signed with the secret. It grants subscribing, and names the
/// audience if one is configured.
///
/// # Errors
///
/// The error of the library that cannot sign.
pub(crate) fn mint(
    secret: &Secret,
    audience: Option<&str>,
    spec: &TokenSpec,
) -> Result<String, jsonwebtoken::errors::Error> {
    let claims = MintedClaims {
        exp: (unix_now() + spec.ttl.as_secs_f64()).ceil() as u64,
        product_id: spec.product.as_str(),
        session_id: spec.sessions.iter().map(SessionId::as_str).collect(),
        user_id: spec.users.iter().map(UserId::as_str).collect(),
        kind: spec.kinds.iter().map(Kind::as_str).collect(),
        permissions: [Permission::Subscribe.name()],
        aud: audience,
    };
    encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.expose().as_bytes()),
    )
}

/// Returns the current time in Unix seconds. A clock before 1970 reads as 1970.
pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
