//! Scoped tokens, signed by hand: the library that checks them has no part in making them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

use super::PRODUCT;

/// What the relay under test accepts.
pub(crate) const SECRET: &str = "jwt-secret-of-the-test-0123456789";

/// `[auth.jwt]` with that secret, and more lines.
pub(crate) fn jwt(lines: &str) -> String {
    format!("[auth.jwt]\nsecret = '{SECRET}'\n{lines}\n")
}

/// The time in Unix seconds.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A token for [`PRODUCT`] and an hour, unless these claims say otherwise.
pub(crate) fn token(claims: &Value) -> String {
    let mut all = json!({"exp": now() + 3600.0, "product_id": PRODUCT});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    signed(&json!({"alg": "HS256", "typ": "JWT"}), &all)
}

/// A token of just this, with the right secret.
pub(crate) fn signed(head: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
    let signature =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64.encode(signature))
}

/// The same as it stands in the header.
pub(crate) fn bearer(claims: &Value) -> String {
    format!("Bearer {}", token(claims))
}
