//! Scoped tokens, signed without the library that checks them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

use super::PRODUCT;

/// Secret of the relay under test.
pub(crate) const SECRET: &str = "jwt-secret-of-the-test-0123456789";

/// Returns `[auth.jwt]` with [`SECRET`] and more lines.
pub(crate) fn jwt(lines: &str) -> String {
    format!("[auth.jwt]\nsecret = '{SECRET}'\n{lines}\n")
}

/// Returns the time in Unix seconds.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Returns a token for [`PRODUCT`] that is valid for an hour; `claims` override both.
pub(crate) fn token(claims: &Value) -> String {
    let mut all = json!({"exp": now() + 3600.0, "product_id": PRODUCT});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    signed(&json!({"alg": "HS256", "typ": "JWT"}), &all)
}

/// Returns a token of exactly this head and these claims, signed with [`SECRET`].
pub(crate) fn signed(head: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
    let signature =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64.encode(signature))
}

/// Returns a token as the value of the `Authorization` field.
pub(crate) fn bearer(claims: &Value) -> String {
    format!("Bearer {}", token(claims))
}
