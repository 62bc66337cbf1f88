//! Tokens that an attacker without a key could make: every form of them is refused.

use super::*;

fn verify_with(jwt: &JwtConfig, token: &str) -> Result<VerifiedClaims, TokenError> {
    TokenVerifier::new(jwt).verify(token.as_bytes(), NOW).map(|(claimed, _)| claimed)
}

#[test]
fn a_key_that_a_token_brings_along_is_ignored() {
    let own = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der = der_of(own.public_key());
    let point = &der[der.len() - 64..];
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": BASE64.encode(&point[..32]), "y": BASE64.encode(&point[32..])});
    let pairs = key_pairs();
    let by_own =
        |text: &str| own.sign(&SystemRandom::new(), text.as_bytes()).unwrap().as_ref().to_vec();
    for brought in [
        json!({ "jwk": jwk }),
        json!({"jku": "https://evil.test/jwks.json", "kid": "1"}),
        json!({"x5c": [STANDARD.encode(&der)]}),
        json!({"x5u": "https://evil.test/own.pem", "x5t": "AAAA"}),
        json!({"kid": "file:///dev/null"}),
    ] {
        for (algorithm, name, keys, _) in &pairs {
            let mut head = brought.clone();
            head["alg"] = json!(name);
            let token = sign_token(&head.to_string(), GOOD_CLAIMS, by_own);
            let refusal =
                verify_with(&public_key_config(*algorithm, &[&keys[0], &keys[1]]), &token)
                    .unwrap_err();
            assert!(
                matches!(refusal, TokenError::Signature | TokenError::Malformed),
                "{head}: {refusal:?}"
            );
        }
        let mut head = brought.clone();
        head["alg"] = json!("HS256");
        for key in [b"".as_slice(), b"\0", &der, point] {
            let token = sign_token(&head.to_string(), GOOD_CLAIMS, |text| hmac_of(key, text));
            assert!(
                matches!(verify(&token), Err(TokenError::Signature | TokenError::Malformed)),
                "{head}"
            );
        }
    }
    let octets =
        json!({"alg": "HS256", "jwk": {"kty": "oct", "k": BASE64.encode("own")}}).to_string();
    assert_eq!(
        verify(&sign_token(&octets, GOOD_CLAIMS, |text| hmac_of(b"own", text))),
        Err(TokenError::Signature)
    );
}

#[test]
fn degenerate_signatures_are_refused() {
    // The order of P-256: careless verifiers once accepted a signature of it, or of zeros.
    const P256_ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    for (algorithm, name, [_, key], sign) in key_pairs() {
        let head = json!({ "alg": name }).to_string();
        let good = sign(&unsigned(&head, GOOD_CLAIMS));
        let tagged =
            [[0x30, 0x44, 2, 0x20].as_slice(), &good[..32], &[2, 0x20], &good[32..64]].concat();
        for signature in [
            Vec::new(),
            vec![0; good.len()],
            vec![0xff; good.len()],
            vec![1; good.len()],
            [P256_ORDER, P256_ORDER].concat(),
            [good.as_slice(), &[0]].concat(),
            good[1..].to_vec(),
            tagged, // DER, as OpenSSL writes it; a token has the fixed form
        ] {
            let token = sign_token(&head, GOOD_CLAIMS, |_| signature.clone());
            assert_eq!(
                verify_with(&public_key_config(algorithm, &[&key]), &token),
                Err(TokenError::Signature),
                "{name} {signature:?}"
            );
        }
        assert!(
            verify_with(
                &public_key_config(algorithm, &[&key]),
                &sign_token(&head, GOOD_CLAIMS, |_| good.clone())
            )
            .is_ok(),
            "{name}"
        );
    }
}

#[test]
fn an_expiry_is_a_finite_number_in_the_future() {
    let with = |exp: &str| verify(&hs256_token(&format!(r#"{{"exp":{exp},"product_id":"p"}}"#)));
    for exp in ["-1", "-1e300", "-0.0", "0", "1e-300", "-9223372036854775809", "1800000000.4999"] {
        assert_eq!(with(exp), Err(TokenError::Expired), "{exp}");
    }
    for exp in [
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "0x7fffffff",
        "1800000100.",
        "+1800000100",
        "01800000100",
        "1.8e9e",
        "",
    ] {
        assert_eq!(with(exp), Err(TokenError::Malformed), "{exp}");
    }
    for exp in [r#""1800000100""#, r#""never""#, "null", "[]", "{}", "[1800000100]", "true"] {
        assert!(
            matches!(with(exp), Err(TokenError::Claim("exp") | TokenError::Malformed)),
            "{exp}"
        );
    }
    for exp in ["18446744073709551616", "9007199254740993", "1e300"] {
        // A distant expiry is still an expiry: a stream under it must end.
        let far = with(exp).map(|claimed| grant_for_claims(claimed, [0; 32], b"").stream_expiry());
        assert!(matches!(far, Ok(Some(_))), "{exp}: {far:?}");
    }
}

#[test]
fn a_repeated_claim_is_refused() {
    let good = json!({"exp": 1_800_000_100, "nbf": 1, "aud": "a", "product_id": "p", "session_id": "s", "type": "t",
                      "permissions": ["subscribe"]});
    assert!(verify(&hs256_token(&good.to_string())).is_ok());
    for (name, value) in good.as_object().unwrap() {
        let text = good.to_string();
        let (first, last) =
            (format!(r#"{{"{name}":{value},{}"#, &text[1..]), text.replacen('}', "", 1));
        for twice in [first, format!(r#"{last},"{name}":{value}}}"#)] {
            assert_eq!(verify(&hs256_token(&twice)), Err(TokenError::Malformed), "{twice}");
        }
    }
}

#[test]
fn a_credential_that_is_not_a_compact_token_is_refused() {
    let good = hs256_token(GOOD_CLAIMS);
    let parts: Vec<_> = good.split('.').collect();
    let (head, claims, signature) = (parts[0], parts[1], parts[2]);
    for at in 0..=good.len() {
        for white in [" ", "\t", "\n", "\r\n", "\u{0}", "=", "."] {
            let token = format!("{}{white}{}", &good[..at], &good[at..]);
            assert!(verify(&token).is_err(), "{token:?}");
        }
    }
    for (at, byte) in good.bytes().enumerate() {
        for other in b"Ab0_-+/".iter().filter(|other| **other != byte) {
            let mut token = good.clone().into_bytes();
            token[at] = *other;
            let token = String::from_utf8(token).unwrap();
            assert!(verify(&token).is_err(), "{token}");
        }
    }
    let encrypted = json!({"alg": "dir", "enc": "A256GCM"}).to_string();
    let json =
        json!({"payload": claims, "signatures": [{"protected": head, "signature": signature}]})
            .to_string();
    for token in [
        format!("{}..{}.{claims}.{signature}", BASE64.encode(&encrypted), BASE64.encode([0; 12])),
        format!("{}.{claims}.{signature}", BASE64.encode(&encrypted)),
        json!({"payload": claims, "protected": head, "signature": signature}).to_string(),
        json,
        format!("{}.", unsigned(r#"{"alg":"none"}"#, GOOD_CLAIMS)),
        format!("{}.{signature}", unsigned(r#"{"alg":"none"}"#, GOOD_CLAIMS)),
        hs256_token(&format!("\u{feff}{GOOD_CLAIMS}")),
        hs256_token(&format!("{GOOD_CLAIMS}{GOOD_CLAIMS}")),
        hs256_token(&format!(
            r#"{{"exp":1800000001,"product_id":{}"p"{}}}"#,
            "[".repeat(2000),
            "]".repeat(2000)
        )),
    ] {
        assert!(verify(&token).is_err(), "{token}");
    }
    let padded = |bytes: usize| {
        let claims =
            format!(r#"{{"exp":1800000001,"product_id":"p","x":"{}"}}"#, "x".repeat(bytes));
        let token = hs256_token(&claims);
        (token.len(), verify(&token).map(|_| ()))
    };
    let longest = (5900..6200).map(padded).rfind(|(length, _)| *length <= 8192).unwrap();
    assert!(longest.0 > 8180 && longest.1.is_ok(), "{longest:?}");
    assert!((5900..6200).map(padded).all(|(length, read)| read.is_ok() == (length <= 8192)));
}
