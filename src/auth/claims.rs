//! Claims of a scoped token whose signature has been verified.
//!
//! In: the claims of the token. Out: the grant that they describe, or the reason for which they
//! grant nothing. An invalid claim never counts as a missing one: a misspelt limit would become no
//! limit.
//!
//! May use: `config`, `event`, `near_name`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::token_error::TokenError;
use crate::{
    config::{Permission, Permissions},
    event::{Kind, Only, ProductId, Scope, SessionId, UserId},
    near_name::find_near,
};

/// The claims that the relay reads, of any JSON type; `null` counts as present. A repeated claim
/// makes the token unreadable.
#[derive(Debug, Default)]
pub(super) struct TokenClaims {
    known: BTreeMap<&'static str, Value>,
    /// The known name to which the name of another claim is close.
    near_miss: Option<&'static str>,
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
    fn get(&self, name: &str) -> Option<&Value> {
        self.known.get(name)
    }

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
        self.check_limits()?;
        let exp = parse_number("exp", self.get("exp"))?.ok_or(TokenError::Claim("exp"))?;
        let nbf = parse_number("nbf", self.get("nbf"))?;
        let token_audience = parse_texts("aud", self.get("aud"))?;
        let products =
            parse_set("product_id", self.get("product_id"), |text| ProductId::new(text).ok())?;
        let sessions =
            parse_set("session_id", self.get("session_id"), |text| SessionId::new(text).ok())?;
        let users = parse_set("user_id", self.get("user_id"), |text| UserId::new(text).ok())?;
        let kinds = parse_set("type", self.get("type"), |text| {
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
            scope: Scope {
                sessions: to_only(sessions),
                users: to_only(users),
                kinds: to_only(kinds),
            },
            audience: token_audience,
            seconds_left: exp - now,
        })
    }

    /// Checks that the token has no limit that the relay would not apply, and that `sub`, if given,
    /// can be an owner's name.
    fn check_limits(&self) -> Result<(), TokenError> {
        if let Some(meant) = self.near_miss {
            return Err(TokenError::NearClaim(meant));
        }
        if self.known.contains_key(UNSUPPORTED_NAME) {
            return Err(TokenError::UnsupportedClaim(UNSUPPORTED_NAME));
        }
        let is_owner = |sub: &str| (1..=MAX_SUB_BYTES).contains(&sub.len());
        match self.get("sub") {
            Some(sub) if !sub.as_str().is_some_and(is_owner) => Err(TokenError::Claim("sub")),
            _ => Ok(()),
        }
    }

    /// Returns the permissions, which must be an array even for one: `permissions` is a list by its
    /// name.
    fn parse_permissions(&self) -> Result<Option<Permissions>, TokenError> {
        if self.get("permissions").is_some_and(|value| !value.is_array()) {
            return Err(TokenError::Claim("permissions"));
        }
        parse_set("permissions", self.get("permissions"), |text| Permission::parse(text).ok())
    }
}

/// Returns whether a token is for the configured audience; every token is if none is configured.
pub(super) fn audience_matches(audience: Option<&str>, token_audience: &[Box<str>]) -> bool {
    audience.is_none_or(|own| token_audience.iter().any(|given| **given == *own))
}

impl<'de> Deserialize<'de> for TokenClaims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClaimsVisitor)
    }
}

/// Reader of a token's claims. It is written by hand because a derived one with `flatten` buffers
/// the values of other claims, and so refuses numbers and nesting that the relay has no need to
/// read.
struct ClaimsVisitor;

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = TokenClaims;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenClaims, A::Error> {
        let mut claims = TokenClaims::default();
        while let Some(given) = map.next_key::<String>()? {
            if let Some(name) = KNOWN_NAMES.iter().find(|name| **name == given) {
                if claims.known.insert(name, map.next_value()?).is_some() {
                    return Err(A::Error::duplicate_field(name));
                }
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            if claims.near_miss.is_none() && given != TOKEN_TYPE {
                claims.near_miss = find_near(&given, &KNOWN_NAMES);
            }
        }
        Ok(claims)
    }
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
    limit.map_or(Only::Everything, |values| Only::These(values.into()))
}

/// The claims that mean something to the relay. A claim with a name close to one of these makes the
/// token invalid.
const KNOWN_NAMES: [&str; 10] = [
    "exp",
    "nbf",
    "aud",
    "sub",
    "product_id",
    "session_id",
    "user_id",
    "type",
    "permissions",
    "consumer",
];

/// A limit that the relay does not apply yet: to ignore it would grant more than the token says.
const UNSUPPORTED_NAME: &str = "consumer";

/// The claim that identity providers write to name the token's own type, although the name is one
/// letter away from `type`.
const TOKEN_TYPE: &str = "typ";

/// Maximum length of `sub`, which names the owner of what the token's holder makes.
const MAX_SUB_BYTES: usize = 128;
