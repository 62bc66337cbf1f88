//! Limits that are spelt wrong or that the relay does not apply: no such token is valid.

use serde_json::json;

use super::{GOOD_CLAIMS, TokenError, hs256_token, sessions, verify, verify_claims};

/// Returns the result for one more claim with a harmless value.
fn verify_name(name: &str) -> Result<(), TokenError> {
    verify_claims(&json!({ name: "x" })).map(|_| ())
}

#[test]
fn a_claim_whose_name_is_a_near_miss_makes_the_token_invalid() {
    for (meant, names) in [
        (
            "session_id",
            ["sessionId", "session_ids", "session", "sessions", "SESSION_ID", "session-id"]
                .as_slice(),
        ),
        ("session_id", &["sesion_id", "session_id[]", "session_id\u{0}", "session_id "]),
        ("type", &["types", "Type", "TYPE", "tpye", "event", "events", "Typ", "typ "]),
        ("permissions", &["permission", "Permissions", "permisions"]),
        ("user_id", &["user", "users", "userId", "user_ids", "usr_id"]),
        ("consumer", &["consumers", "Consumer", "consumr"]),
        ("product_id", &["product_ids", "productId"]),
        ("exp", &["EXP", "exps"]),
        ("nbf", &["NBF"]),
        ("aud", &["auds", "Aud"]),
        ("sub", &["subs", "Sub"]),
    ] {
        for name in names {
            assert_eq!(verify_name(name), Err(TokenError::NearClaim(meant)), "{name:?}");
        }
    }
    // The right claim beside the wrong one does not help: one of them is not what the issuer meant.
    let both = json!({"session_id": "s", "sessionId": ["s", "t"]});
    assert_eq!(verify_claims(&both).err(), Some(TokenError::NearClaim("session_id")));
    for escaped in [r#""session\u0049d":"x""#, r#""\u0074ypes":null"#] {
        let token = hs256_token(&format!("{},{escaped}}}", GOOD_CLAIMS.trim_end_matches('}')));
        assert!(matches!(verify(&token), Err(TokenError::NearClaim(_))), "{escaped}");
    }
}

#[test]
fn a_limit_that_the_relay_does_not_apply_makes_the_token_invalid() {
    for value in [json!("x"), json!(["x"]), json!([]), json!(null)] {
        let refusal = verify_claims(&json!({ "consumer": value })).err();
        assert_eq!(refusal, Some(TokenError::UnsupportedClaim("consumer")), "{value}");
    }
}

#[test]
fn claims_of_identity_providers_are_ignored() {
    for name in [
        "iss",
        "iat",
        "jti",
        "azp",
        "scope",
        "scp",
        "sid",
        "email",
        "email_verified",
        "name",
        "given_name",
        "preferred_username",
        "username",
        "roles",
        "groups",
        "nonce",
        "typ",
        "acr",
        "amr",
        "auth_time",
        "client_id",
        "session_state",
        "event_id",
        "token_use",
        "tid",
        "oid",
        "upn",
        "uid",
        "ver",
        "sub_id",
        "cnf",
        "at_hash",
        "realm_access",
        "resource_access",
        "allowed-origins",
        "https://app.example/session_id",
    ] {
        assert_eq!(verify_name(name), Ok(()), "{name}");
    }
    // Neither the value of another claim nor its own repetition is read.
    let nested = format!(r#"{}{{"sessionId":1e999}}{}"#, "[".repeat(200), "]".repeat(200));
    for more in [
        format!(r#""x":{nested}"#),
        r#""x":1,"x":2"#.to_owned(),
        r#""x":{"exp":1,"exp":2,"user_id":3}"#.to_owned(),
    ] {
        let limited = format!(r#"{{"exp":1800000001,"product_id":"p","session_id":"s",{more}}}"#);
        let scope = verify(&hs256_token(&limited)).map(|claimed| claimed.scope.sessions);
        assert_eq!(scope, Ok(sessions(&["s"])), "{more}");
    }
}

#[test]
fn a_subject_is_a_text_of_1_to_128_bytes() {
    for good in ["a", &"x".repeat(128), &"é".repeat(64), "auth0|5f7c"] {
        assert!(verify_claims(&json!({ "sub": good })).is_ok(), "{good}");
    }
    let long = ["x".repeat(129), "é".repeat(65)];
    for bad in [json!(""), json!(long[0]), json!(long[1]), json!(7), json!(null), json!(["a"])] {
        let refusal = verify_claims(&json!({ "sub": bad })).unwrap_err();
        // The library already refuses some of these.
        let is_refused = matches!(refusal, TokenError::Claim("sub") | TokenError::Malformed);
        assert!(is_refused, "{bad}: {refusal:?}");
    }
    let twice = r#"{"exp":1800000001,"product_id":"p","sub":"a","sub":"a"}"#;
    assert_eq!(verify(&hs256_token(twice)).err(), Some(TokenError::Malformed));
}
