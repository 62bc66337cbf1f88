//! Claims of a scoped token whose signature has been verified.
//!
//! In: the claims of the token. Out: the grant that they describe, or the reason for which they
//! grant nothing. An invalid claim never counts as a missing one: a misspelt limit would become no
//! limit.
//!
//! May use: `config`, `event`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::token_error::TokenError;
use crate::{
    config::{Permission, Permissions},
    event::{Kind, Only, ProductId, Scope, SessionId},
};

/// The claims that the relay reads, of any JSON type. A repeated claim makes the token unreadable.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenClaims {
    #[serde(deserialize_with = "given")]
    exp: Option<Value>,
    #[serde(deserialize_with = "given")]
    nbf: Option<Value>,
    #[serde(deserialize_with = "given")]
    aud: Option<Value>,
    #[serde(deserialize_with = "given")]
    product_id: Option<Value>,
    #[serde(deserialize_with = "given")]
    session_id: Option<Value>,
    #[serde(rename = "type", deserialize_with = "given")]
    kind: Option<Value>,
    #[serde(deserialize_with = "given")]
    permissions: Option<Value>,
}

/// The checked claims.
#[derive(Debug, PartialEq)]
pub(super) struct VerifiedClaims {
    pub(super) products: BTreeSet<ProductId>,
    pub(super) permissions: Permissions,
    pub(super) scope: Scope,
    /// The audiences that the token names.
    pub(super) audience: Box<[Box<str>]>,
    /// Seconds from now to the expiry; above zero.
    pub(super) seconds_left: f64,
}

impl TokenClaims {
    /// Checks all claims at `now`, in Unix seconds.
    ///
    /// # Errors
    ///
    /// The first claim that is invalid, or the reason for which the token is not valid now or not
    /// for this audience.
    pub(super) fn verify(
        &self,
        now: f64,
        audience: Option<&str>,
    ) -> Result<VerifiedClaims, TokenError> {
        let exp = parse_number("exp", self.exp.as_ref())?.ok_or(TokenError::Claim("exp"))?;
        let nbf = parse_number("nbf", self.nbf.as_ref())?;
        let token_audience = parse_texts("aud", self.aud.as_ref())?;
        let products =
            parse_set("product_id", self.product_id.as_ref(), |text| ProductId::new(text).ok())?;
        let sessions =
            parse_set("session_id", self.session_id.as_ref(), |text| SessionId::new(text).ok())?;
        let kinds = parse_set("type", self.kind.as_ref(), |text| {
            (!text.is_empty()).then(|| Kind::new(text))
        })?;
        let permissions = self.parse_permissions()?;
        if exp <= now {
            return Err(TokenError::Expired);
        }
        if nbf.is_some_and(|nbf| nbf > now) {
            return Err(TokenError::NotYetValid);
        }
        let token_audience: Box<[Box<str>]> =
            token_audience.unwrap_or_default().into_iter().map(Box::from).collect();
        if !audience_matches(audience, &token_audience) {
            return Err(TokenError::Audience);
        }
        Ok(VerifiedClaims {
            products: products.ok_or(TokenError::Claim("product_id"))?,
            permissions: permissions.unwrap_or_else(|| BTreeSet::from([Permission::Subscribe])),
            scope: Scope { sessions: to_only(sessions), kinds: to_only(kinds) },
            audience: token_audience,
            seconds_left: exp - now,
        })
    }

    /// Returns the permissions, which must be an array even for one: `permissions` is a list by its
    /// name.
    fn parse_permissions(&self) -> Result<Option<Permissions>, TokenError> {
        if self.permissions.as_ref().is_some_and(|value| !value.is_array()) {
            return Err(TokenError::Claim("permissions"));
        }
        parse_set("permissions", self.permissions.as_ref(), |text| Permission::parse(text).ok())
    }
}

/// Returns whether a token is for the configured audience; every token is if none is configured.
pub(super) fn audience_matches(audience: Option<&str>, token_audience: &[Box<str>]) -> bool {
    audience.is_none_or(|own| token_audience.iter().any(|given| **given == *own))
}

/// Deserializes a claim that is present; `null` counts as present.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Returns the claim as a finite number of seconds, possibly fractional.
fn parse_number(name: &'static str, claim: Option<&Value>) -> Result<Option<f64>, TokenError> {
    let Some(claim) = claim else { return Ok(None) };
    claim.as_f64().filter(|number| number.is_finite()).map(Some).ok_or(TokenError::Claim(name))
}

/// Returns the claim as one or more strings. An empty list is refused because it could mean nothing
/// or everything.
fn parse_texts<'a>(
    name: &'static str,
    claim: Option<&'a Value>,
) -> Result<Option<Vec<&'a str>>, TokenError> {
    let texts = match claim {
        None => return Ok(None),
        Some(Value::String(text)) => Some(vec![text.as_str()]),
        Some(Value::Array(values)) => values.iter().map(Value::as_str).collect(),
        Some(_) => None,
    };
    texts.filter(|texts| !texts.is_empty()).map(Some).ok_or(TokenError::Claim(name))
}

/// Returns the parsed strings of the claim if every one of them can be parsed.
fn parse_set<T: Ord>(
    name: &'static str,
    claim: Option<&Value>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<BTreeSet<T>>, TokenError> {
    let Some(texts) = parse_texts(name, claim)? else { return Ok(None) };
    let values: Option<BTreeSet<T>> = texts.into_iter().map(parse).collect();
    values.map(Some).ok_or(TokenError::Claim(name))
}

fn to_only<T>(limit: Option<BTreeSet<T>>) -> Only<T> {
    limit.map_or(Only::Everything, Only::These)
}
