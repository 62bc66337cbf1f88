//! What a scoped token says, once its signature has been found good.
//!
//! In: claims as they stand in the token. Out: what they grant, or why they grant nothing. A claim that is not as it must be
//! never counts as one that is not there: a limit that is spelt wrong would be none.
//!
//! May use: `config`, `event`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::token::Refusal;
use crate::{
    config::{Permission, Permissions},
    event::{Kind, Only, ProductId, Scope, SessionId},
};

/// The claims that count, of whatever type they are. One that stands there twice makes the token unreadable.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Claims {
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

/// What the claims come to.
#[derive(Debug, PartialEq)]
pub(super) struct Claimed {
    pub(super) products: BTreeSet<ProductId>,
    pub(super) permissions: Permissions,
    pub(super) limits: Scope,
    /// Whom it is for, as far as it says.
    pub(super) audience: Box<[Box<str>]>,
    /// Seconds from now to the end; above zero.
    pub(super) seconds_left: f64,
}

impl Claims {
    /// Checks everything there is to check at `now`, in Unix seconds.
    ///
    /// # Errors
    ///
    /// The first claim that is not as it must be.
    pub(super) fn check(&self, now: f64, audience: Option<&str>) -> Result<Claimed, Refusal> {
        let exp = number("exp", self.exp.as_ref())?.ok_or(Refusal::Claim("exp"))?;
        let nbf = number("nbf", self.nbf.as_ref())?;
        let given_audience = texts("aud", self.aud.as_ref())?;
        let products = each("product_id", self.product_id.as_ref(), |text| ProductId::new(text).ok())?;
        let sessions = each("session_id", self.session_id.as_ref(), |text| SessionId::new(text).ok())?;
        let kinds = each("type", self.kind.as_ref(), |text| (!text.is_empty()).then(|| Kind::new(text)))?;
        let permissions = self.permissions()?;
        if exp <= now {
            return Err(Refusal::Expired);
        }
        if nbf.is_some_and(|nbf| nbf > now) {
            return Err(Refusal::NotYet);
        }
        let given_audience: Box<[Box<str>]> = given_audience.unwrap_or_default().into_iter().map(Box::from).collect();
        if !is_for(audience, &given_audience) {
            return Err(Refusal::Audience);
        }
        Ok(Claimed {
            products: products.ok_or(Refusal::Claim("product_id"))?,
            permissions: permissions.unwrap_or_else(|| BTreeSet::from([Permission::Subscribe])),
            limits: Scope { sessions: only(sessions), kinds: only(kinds) },
            audience: given_audience,
            seconds_left: exp - now,
        })
    }

    /// An array, even of one: the other claims name something, this one lists.
    fn permissions(&self) -> Result<Option<Permissions>, Refusal> {
        if self.permissions.as_ref().is_some_and(|value| !value.is_array()) {
            return Err(Refusal::Claim("permissions"));
        }
        each("permissions", self.permissions.as_ref(), |text| Permission::parse(text).ok())
    }
}

/// Whether `given` has the audience that is asked for, if one is.
pub(super) fn is_for(audience: Option<&str>, given: &[Box<str>]) -> bool {
    audience.is_none_or(|own| given.iter().any(|given| **given == *own))
}

/// A claim that is there, `null` included.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A number of seconds, whole or not.
fn number(name: &'static str, claim: Option<&Value>) -> Result<Option<f64>, Refusal> {
    let Some(claim) = claim else { return Ok(None) };
    claim.as_f64().filter(|number| number.is_finite()).map(Some).ok_or(Refusal::Claim(name))
}

/// A text or a list of one text or more. An empty list could be meant as nothing or as everything.
fn texts<'a>(name: &'static str, claim: Option<&'a Value>) -> Result<Option<Vec<&'a str>>, Refusal> {
    let texts = match claim {
        None => return Ok(None),
        Some(Value::String(text)) => Some(vec![text.as_str()]),
        Some(Value::Array(values)) => values.iter().map(Value::as_str).collect(),
        Some(_) => None,
    };
    texts.filter(|texts| !texts.is_empty()).map(Some).ok_or(Refusal::Claim(name))
}

/// What the texts of a claim stand for, if each stands for something.
fn each<T: Ord>(
    name: &'static str,
    claim: Option<&Value>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<BTreeSet<T>>, Refusal> {
    let Some(texts) = texts(name, claim)? else { return Ok(None) };
    let values: Option<BTreeSet<T>> = texts.into_iter().map(parse).collect();
    values.map(Some).ok_or(Refusal::Claim(name))
}

fn only<T>(limit: Option<BTreeSet<T>>) -> Only<T> {
    limit.map_or(Only::Everything, Only::These)
}
