//! Tokens that are accepted and refused, and that no grant is ever widened. The tests sign tokens
//! by hand: the library that verifies them has no part in making them.

mod attacks;
mod limits;

use std::collections::BTreeSet;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair,
    },
};
use base64::{
    Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD as BASE64,
};
use proptest::{collection::btree_set, option, prelude::*};
use serde_json::{Value, json};

use super::{claims::VerifiedClaims, token::TokenVerifier, token_error::TokenError, *};
use crate::{
    config::{
        JwtConfig, JwtVerification, Permission, Permissions, PublicKey, PublicKeyAlgorithm, Secret,
    },
    event::{Kind, ProductId, ScopeKey, SessionId, UserId},
};

const SECRET: &str = "hush-hush-hush-hush-hush-hush-32";
const PREVIOUS_SECRET: &str = "rust-rust-rust-rust-rust-rust-32";

/// Current time of all tests here.
const NOW: f64 = 1_800_000_000.5;

fn shared_secret_config(audience: Option<&str>) -> JwtConfig {
    let verification = JwtVerification::SharedSecret {
        secret: Secret::inline(SECRET.to_owned()),
        previous_secret: Some(Secret::inline(PREVIOUS_SECRET.to_owned())),
    };
    jwt_config(verification, audience)
}

fn public_key_config(algorithm: PublicKeyAlgorithm, keys: &[&[u8]]) -> JwtConfig {
    let keys = keys.iter().map(|der| PublicKey::from_der(der)).collect();
    jwt_config(
        JwtVerification::PublicKeys { algorithm, public_key_file: "keys.pem".into(), keys },
        None,
    )
}

fn jwt_config(verification: JwtVerification, audience: Option<&str>) -> JwtConfig {
    JwtConfig {
        verification,
        audience: audience.map(str::to_owned),
        allow_query_token: false,
        cookie_name: None,
    }
}

fn unsigned(head: &str, claims: &str) -> String {
    format!("{}.{}", BASE64.encode(head), BASE64.encode(claims))
}

fn hmac_of(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Returns a token of this header and these claims, signed by `sign`.
fn sign_token(head: &str, claims: &str, sign: impl Fn(&str) -> Vec<u8>) -> String {
    let text = unsigned(head, claims);
    let signature = BASE64.encode(sign(&text));
    format!("{text}.{signature}")
}

fn hs256_token(claims: &str) -> String {
    sign_token(r#"{"alg":"HS256"}"#, claims, |text| hmac_of(SECRET.as_bytes(), text))
}

fn token_with_header(head: &str) -> String {
    sign_token(head, GOOD_CLAIMS, |text| hmac_of(SECRET.as_bytes(), text))
}

const GOOD_CLAIMS: &str = r#"{"exp":1800000001,"product_id":"p"}"#;

fn verify(token: &str) -> Result<VerifiedClaims, TokenError> {
    TokenVerifier::new(&shared_secret_config(None))
        .verify(token.as_bytes(), NOW)
        .map(|(claimed, _)| claimed)
}

/// Returns the result for these claims, with an expiry and a product added.
fn verify_claims(more: &Value) -> Result<VerifiedClaims, TokenError> {
    let mut claims = json!({"exp": 1_800_000_100, "product_id": "p"});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    verify(&hs256_token(&claims.to_string()))
}

fn sessions(names: &[&str]) -> Only<SessionId> {
    Only::These(names.iter().map(|name| SessionId::new(name).unwrap()).collect())
}

fn users(names: &[&str]) -> Only<UserId> {
    Only::These(names.iter().map(|name| UserId::new(name).unwrap()).collect())
}

#[test]
fn a_good_token_grants_what_it_says() {
    let least = verify(&hs256_token(GOOD_CLAIMS)).unwrap();
    assert_eq!(least.scope, Scope::EVERYTHING);
    assert_eq!(least.permissions, BTreeSet::from([Permission::Subscribe]));
    assert!(least.seconds_left > 0.4 && least.seconds_left < 0.6, "{least:?}");
    let more = json!({"product_id": ["p", "q"], "session_id": "s", "user_id": ["u", "v"], "type": ["summary", "own"],
                      "permissions": ["publish"], "nbf": 1_800_000_000, "iat": "whatever", "sub": "7"});
    let more = verify_claims(&more).unwrap();
    assert_eq!(more.products, ["p", "q"].map(|name| ProductId::new(name).unwrap()).into());
    assert_eq!(more.scope.sessions, sessions(&["s"]));
    assert_eq!(more.scope.users, users(&["u", "v"]));
    assert_eq!(more.scope.kinds, Only::These([Kind::Summary, Kind::new("own")].into()));
    assert_eq!(more.permissions, BTreeSet::from([Permission::Publish]));
    let fraction = verify_claims(&json!({"exp": 1_800_000_000.75})).unwrap();
    assert!(fraction.seconds_left < 0.3, "{fraction:?}");
    let for_ever = verify_claims(&json!({"exp": 1e300})).unwrap();
    assert!(grant_for_claims(for_ever, [0; 32], b"").stream_expiry().is_some());
}

#[test]
fn the_previous_secret_is_accepted_and_keys_named_in_a_header_are_ignored() {
    let old = sign_token(r#"{"alg":"HS256"}"#, GOOD_CLAIMS, |text| {
        hmac_of(PREVIOUS_SECRET.as_bytes(), text)
    });
    assert!(verify(&old).is_ok());
    for head in [
        r#"{"alg":"HS256","kid":"../../../dev/null"}"#,
        r#"{"alg":"HS256","kid":"' OR 1=1 --","typ":"JWT"}"#,
        r#"{"alg":"HS256","jku":"https://evil.test/keys","x5u":"https://evil.test/x"}"#,
    ] {
        assert!(verify(&token_with_header(head)).is_ok(), "{head}");
        let empty = sign_token(head, GOOD_CLAIMS, |text| hmac_of(b"", text));
        assert_eq!(verify(&empty), Err(TokenError::Signature), "{head}");
    }
}

#[test]
fn a_manipulated_header_is_refused() {
    for algorithm in
        ["none", "None", "NONE", "nOnE", "", "HS384", "HS512", "RS256", "ES256", "hs256", "HS256 "]
    {
        let head = json!({ "alg": algorithm }).to_string();
        for token in [format!("{}.", unsigned(&head, GOOD_CLAIMS)), token_with_header(&head)] {
            assert!(
                matches!(verify(&token), Err(TokenError::Malformed | TokenError::Algorithm)),
                "{algorithm:?}: {:?}",
                verify(&token)
            );
        }
    }
    for head in [
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":null}"#,
        "{}",
        "[]",
        "",
        "HS256",
        r#"{"alg":"HS256","crit":"exp"}"#,
    ] {
        assert_eq!(verify(&token_with_header(head)), Err(TokenError::Malformed), "{head}");
    }
    for head in [
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"crit":["b64"],"b64":false,"alg":"HS256"}"#,
    ] {
        assert_eq!(verify(&token_with_header(head)), Err(TokenError::CriticalExtension), "{head}");
    }
}

#[test]
fn damaged_tokens_are_refused() {
    let good = hs256_token(GOOD_CLAIMS);
    let mut parts = good.split('.');
    let (head, claims, signature) =
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    for end in 0..good.len() {
        assert!(verify(&good[..end]).is_err(), "cut at {end}");
    }
    for token in [
        format!("{head}.{claims}."),
        format!("{good}.{signature}"),
        format!("{good}="),
        format!("{good}A"),
        format!(".{claims}.{signature}"),
        format!("{head}..{signature}"),
        format!(" {good}"),
        format!("{claims}.{head}.{signature}"),
        "..".to_owned(),
        hs256_token("not json"),
        hs256_token("null"),
        hs256_token("\u{0}"),
    ] {
        assert!(verify(&token).is_err(), "{token}");
    }
    assert_eq!(
        verify(&hs256_token(&format!(
            r#"{{"exp":1800000001,"product_id":"p","x":"{}"}}"#,
            "x".repeat(8192)
        ))),
        Err(TokenError::TooLong)
    );
    assert_eq!(
        TokenVerifier::new(&shared_secret_config(None)).verify(b"\xff.\xff.\xff", NOW).err(),
        Some(TokenError::Malformed)
    );
}

#[test]
fn a_token_is_valid_from_nbf_until_before_exp() {
    for (claims, refusal) in [
        (json!({"exp": 1_800_000_000}), TokenError::Expired),
        (json!({"exp": 1_800_000_000.5}), TokenError::Expired),
        (json!({"exp": 0}), TokenError::Expired),
        (json!({"exp": -1}), TokenError::Expired),
        (json!({"nbf": 1_800_000_001}), TokenError::NotYetValid),
        (json!({"nbf": 1e300}), TokenError::NotYetValid),
    ] {
        assert_eq!(verify_claims(&claims), Err(refusal), "{claims}");
    }
    assert_eq!(verify(&hs256_token(r#"{"product_id":"p"}"#)), Err(TokenError::Claim("exp")));
    assert_eq!(verify(&hs256_token(r#"{"exp":1800000001}"#)), Err(TokenError::Claim("product_id")));
}

#[test]
fn a_claim_of_the_wrong_type_is_never_taken_for_one_that_is_missing() {
    for name in ["exp", "nbf"] {
        for value in
            [json!("1800000100"), json!(null), json!([1_800_000_100]), json!(true), json!({})]
        {
            // The library already refuses some of these.
            let refusal = verify_claims(&json!({ name: value })).unwrap_err();
            assert!(
                matches!(refusal, TokenError::Claim(_) | TokenError::Malformed),
                "{name} {value}: {refusal:?}"
            );
        }
    }
    for name in ["product_id", "session_id", "user_id", "type", "permissions", "aud"] {
        for value in [
            json!(null),
            json!([]),
            json!(7),
            json!(true),
            json!({}),
            json!(["a", 7]),
            json!([null]),
            json!([["a"]]),
        ] {
            assert!(
                matches!(verify_claims(&json!({ name: value })), Err(TokenError::Claim(it)) if it == name),
                "{name} {value}"
            );
        }
    }
    for (name, value) in [
        ("product_id", json!("")),
        ("product_id", json!(["p", ""])),
        ("session_id", json!("")),
        ("session_id", json!("a\nb")),
        ("user_id", json!("")),
        ("user_id", json!(["u", ""])),
        ("user_id", json!("a\nb")),
        ("type", json!("")),
        ("permissions", json!("subscribe")),
        ("permissions", json!(["subscribe", "admin"])),
        ("permissions", json!(["Subscribe"])),
        ("permissions", json!(["*"])),
    ] {
        assert!(
            matches!(verify_claims(&json!({ name: value })), Err(TokenError::Claim(it)) if it == name),
            "{name} {value}"
        );
    }
    for twice in [
        r#"{"exp":1,"exp":1800000100,"product_id":"p"}"#,
        r#"{"exp":1800000100,"product_id":"p","session_id":"a","session_id":"b"}"#,
        r#"{"exp":1800000100,"product_id":"p","user_id":"a","user\u005fid":["b"]}"#,
        r#"{"exp":1800000100,"product_id":"p","type":"a","\u0074ype":"b"}"#,
    ] {
        assert_eq!(verify(&hs256_token(twice)), Err(TokenError::Malformed), "{twice}");
    }
}

#[test]
fn a_star_is_no_wildcard_in_claims() {
    let grant = grant_for_claims(verify_claims(&json!({"product_id": "*"})).unwrap(), [0; 32], b"");
    assert_eq!(
        grant.check(&ProductId::new("p").unwrap(), Permission::Subscribe),
        Err(Denial::Forbidden)
    );
    let grant = grant_for_claims(
        verify_claims(&json!({"session_id": "*", "user_id": "*", "type": ["*"]})).unwrap(),
        [0; 32],
        b"",
    );
    for wider in [
        Scope { sessions: sessions(&["s"]), ..Scope::EVERYTHING },
        Scope { users: users(&["u"]), ..Scope::EVERYTHING },
    ] {
        assert_eq!(grant.narrow(wider), Err(Denial::Forbidden));
    }
}

#[test]
fn the_audience_is_checked_where_one_is_configured() {
    let read = |audience, claim: Value| {
        let claims = json!({"exp": 1_800_000_100, "product_id": "p", "aud": claim}).to_string();
        TokenVerifier::new(&shared_secret_config(audience))
            .verify(hs256_token(&claims).as_bytes(), NOW)
            .err()
    };
    assert_eq!(read(Some("relay"), json!("relay")), None);
    assert_eq!(read(Some("relay"), json!(["other", "relay"])), None);
    for wrong in
        [json!("other"), json!("Relay"), json!(["other"]), json!("relay "), json!("relay,other")]
    {
        assert_eq!(read(Some("relay"), wrong.clone()), Some(TokenError::Audience), "{wrong}");
        assert_eq!(read(None, wrong), None);
    }
    assert_eq!(read(Some("relay"), json!({"relay": 1})), Some(TokenError::Claim("aud")));
    let missing = TokenVerifier::new(&shared_secret_config(Some("relay")))
        .verify(hs256_token(GOOD_CLAIMS).as_bytes(), NOW)
        .map(|_| ());
    assert_eq!(missing.err(), Some(TokenError::Audience));
}

fn der_of(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    key.as_der().unwrap().as_ref().to_vec()
}

type SignFn = Box<dyn Fn(&str) -> Vec<u8>>;

/// Returns each algorithm with two public keys, and a signing function for the second.
fn key_pairs() -> Vec<(PublicKeyAlgorithm, &'static str, [Vec<u8>; 2], SignFn)> {
    let ed = [(); 2].map(|()| Ed25519KeyPair::generate().unwrap());
    let ec = [(); 2].map(|()| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    let rsa = [(); 2].map(|()| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let ders = [
        ed.each_ref().map(|pair| der_of(pair.public_key())),
        ec.each_ref().map(|pair| der_of(pair.public_key())),
        rsa.each_ref().map(|pair| der_of(pair.public_key())),
    ];
    let ([_, ed], [_, ec], [_, rsa], [ed_ders, ec_ders, rsa_ders]) = (ed, ec, rsa, ders);
    let by_rsa = move |text: &str| {
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
        signature
    };
    vec![
        (
            PublicKeyAlgorithm::EdDsa,
            "EdDSA",
            ed_ders,
            Box::new(move |text| ed.sign(text.as_bytes()).as_ref().to_vec()),
        ),
        (
            PublicKeyAlgorithm::Es256,
            "ES256",
            ec_ders,
            Box::new(move |text| {
                ec.sign(&SystemRandom::new(), text.as_bytes()).unwrap().as_ref().to_vec()
            }),
        ),
        (PublicKeyAlgorithm::Rs256, "RS256", rsa_ders, Box::new(by_rsa)),
    ]
}

#[test]
fn signatures_with_private_keys_are_accepted_for_any_of_the_public_keys() {
    for (algorithm, name, [first, second], sign) in key_pairs() {
        let head = json!({ "alg": name, "kid": "other" }).to_string();
        let token = sign_token(&head, GOOD_CLAIMS, &sign);
        let read = |keys: &[&[u8]], token: &str| {
            TokenVerifier::new(&public_key_config(algorithm, keys)).verify(token.as_bytes(), NOW)
        };
        assert!(read(&[&second], &token).is_ok(), "{name}");
        assert!(read(&[&first, &second], &token).is_ok(), "{name}");
        assert_eq!(read(&[&first], &token), Err(TokenError::Signature), "{name}");
        let other_claims = BASE64.encode(GOOD_CLAIMS.replace("\"p\"", "\"q\""));
        let parts: Vec<_> = token.split('.').collect();
        let forged = format!("{}.{other_claims}.{}", parts[0], parts[2]);
        assert_eq!(read(&[&second], &forged), Err(TokenError::Signature), "{name}");
        let expired = sign_token(&head, r#"{"exp":1800000000,"product_id":"p"}"#, &sign);
        assert_eq!(read(&[&first, &second], &expired), Err(TokenError::Expired), "{name}");
    }
}

#[test]
fn a_public_key_is_no_secret() {
    for (algorithm, name, [key, _], _) in key_pairs() {
        let verifier = TokenVerifier::new(&public_key_config(algorithm, &[&key]));
        let base64 = STANDARD.encode(&key);
        let lines: Vec<_> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &key, base64.as_bytes(), b""] {
            for head in [json!({"alg": "HS256"}), json!({ "alg": name })] {
                let token =
                    sign_token(&head.to_string(), GOOD_CLAIMS, |text| hmac_of(secret, text));
                let refusal = verifier.verify(token.as_bytes(), NOW).unwrap_err();
                assert!(
                    matches!(refusal, TokenError::Algorithm | TokenError::Signature),
                    "{name}: {refusal:?}"
                );
            }
        }
    }
}

#[test]
fn a_minted_token_is_accepted_with_its_limits() {
    let spec = TokenSpec {
        product: ProductId::new("p").unwrap(),
        sessions: [SessionId::new("s").unwrap()].into(),
        users: [UserId::new("u").unwrap()].into(),
        kinds: BTreeSet::new(),
        ttl: Duration::from_secs(60),
    };
    let token = mint(&Secret::inline(SECRET.to_owned()), Some("relay"), &spec).unwrap();
    let (read, _) = TokenVerifier::new(&shared_secret_config(Some("relay")))
        .verify(token.as_bytes(), token::unix_now())
        .unwrap();
    assert_eq!(read.products, [ProductId::new("p").unwrap()].into());
    let scope = Scope { sessions: sessions(&["s"]), users: users(&["u"]), ..Scope::EVERYTHING };
    assert_eq!(read.scope, scope);
    assert!(read.seconds_left > 55.0 && read.seconds_left < 61.1, "{read:?}");
}

#[test]
fn a_holder_is_identified_by_the_signed_part_of_its_token_and_never_taken_for_a_key() {
    let holder = |token: &[u8]| {
        grant_for_claims(verify_claims(&json!({"exp": NOW + 60.0})).unwrap(), [0; 32], token).holder
    };
    assert_eq!(holder(b"head.claims.signature"), holder(b"head.claims.otherwise"));
    assert_ne!(holder(b"head.claims.signature"), holder(b"head.others.signature"));
    assert!(matches!(holder(b"head.claims.signature"), CredentialHolder::Token(_)));
}

#[tokio::test(start_paused = true)]
async fn streams_end_spread_over_the_last_fifth_of_the_remaining_time_with_time_for_the_closing_handshake()
 {
    let grant =
        grant_for_claims(verify_claims(&json!({"exp": NOW + 1000.0})).unwrap(), [0; 32], b"");
    tokio::time::advance(Duration::from_secs(500)).await;
    let left = |at: Instant| (at - Instant::now()).as_secs_f64();
    let begins: Vec<f64> =
        (0..2000).map(|_| left(grant.stream_expiry().unwrap().disconnect_at)).collect();
    assert!(begins.iter().all(|left| (399.9..=498.501).contains(left)));
    assert!(
        begins.iter().any(|left| *left < 410.0) && begins.iter().any(|left| *left > 490.0),
        "they are spread"
    );
    assert!((499.9..=500.0).contains(&left(grant.stream_expiry().unwrap().expires_at)));
    tokio::time::advance(Duration::from_secs(498)).await;
    let begins: Vec<f64> =
        (0..2000).map(|_| left(grant.stream_expiry().unwrap().disconnect_at)).collect();
    assert!(begins.iter().all(|left| (1.599..=1.801).contains(left)), "a tenth of two seconds");
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(grant.stream_expiry().unwrap().disconnect_at, Instant::now());
}

fn grant_with(limits: Scope, permissions: Permissions) -> Grant {
    let products = BTreeSet::from([ProductId::new("p").unwrap()]);
    grant_for_claims(
        VerifiedClaims {
            products,
            permissions,
            scope: limits,
            audience: Box::default(),
            seconds_left: 60.0,
        },
        [0; 32],
        b"",
    )
}

fn scope() -> impl Strategy<Value = Scope> {
    let session = (0..5_u8).prop_map(|n| SessionId::new(&format!("s{n}")).unwrap());
    let user = (0..3_u8).prop_map(|n| UserId::new(&format!("u{n}")).unwrap());
    let kind = prop_oneof![
        Just(Kind::Actions),
        Just(Kind::Summary),
        Just(Kind::new("a")),
        Just(Kind::new("b"))
    ];
    let sessions = option::of(btree_set(session, 1..5))
        .prop_map(|it| it.map_or(Only::Everything, |these| Only::These(these.into())));
    let users = option::of(btree_set(user, 1..3))
        .prop_map(|it| it.map_or(Only::Everything, |these| Only::These(these.into())));
    let kinds = option::of(btree_set(kind, 1..5))
        .prop_map(|it| it.map_or(Only::Everything, |these| Only::These(these.into())));
    (sessions, users, kinds).prop_map(|(sessions, users, kinds)| Scope { sessions, users, kinds })
}

/// Returns every combination of session, including none, user, including none, and kind.
fn events() -> Vec<(Option<SessionId>, Option<UserId>, Kind)> {
    let sessions =
        (0..7_u8).map(|n| (n > 0).then(|| SessionId::new(&format!("s{}", n - 1)).unwrap()));
    let users = || (0..5_u8).map(|n| (n > 0).then(|| UserId::new(&format!("u{}", n - 1)).unwrap()));
    let kinds =
        || [Kind::Actions, Kind::Summary, Kind::UsertourTrigger, Kind::new("a"), Kind::new("b")];
    let of_users = move |session: Option<SessionId>| {
        users().flat_map(move |user| kinds().map(|kind| (session.clone(), user.clone(), kind)))
    };
    sessions.flat_map(of_users).collect()
}

fn key_of((session, user, kind): &(Option<SessionId>, Option<UserId>, Kind)) -> ScopeKey<'_> {
    ScopeKey { session: session.as_ref(), user: user.as_ref(), kind }
}

fn subset_of<T: Ord>(requested: &Only<T>, limit: &Only<T>) -> bool {
    match (requested, limit) {
        (_, Only::Everything) | (Only::Everything, _) => true,
        (Only::These(requested), Only::These(limit)) => {
            requested.iter().all(|value| limit.contains(value))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    /// Checks 175 events for each of 6000 pairs, a million events: an event is seen if and only if
    /// it is granted and requested.
    #[test]
    fn an_event_is_seen_if_it_is_both_requested_and_granted(limits in scope(), requested in scope()) {
        let grant = grant_with(limits.clone(), BTreeSet::from([Permission::Subscribe]));
        let may_ask = subset_of(&requested.sessions, &limits.sessions)
            && subset_of(&requested.users, &limits.users)
            && subset_of(&requested.kinds, &limits.kinds);
        match grant.narrow(requested.clone()) {
            Err(denial) => prop_assert!(!may_ask && denial == Denial::Forbidden),
            Ok(seen) => {
                prop_assert!(may_ask);
                for event in &events() {
                    let key = key_of(event);
                    let both = limits.includes(key) && requested.includes(key);
                    prop_assert_eq!(seen.includes(key), both);
                }
                // Narrowing a scope by itself changes nothing.
                prop_assert_eq!(grant.narrow(seen.clone()), Ok(seen));
            }
        }
    }

    #[test]
    fn an_event_may_be_published_within_the_limits_only(limits in scope()) {
        let grant = grant_with(limits.clone(), BTreeSet::from([Permission::Publish]));
        for event in &events() {
            let (session, user, kind) = event;
            let has_session = match &limits.sessions {
                Only::Everything => true,
                Only::These(sessions) => session.as_ref().is_some_and(|it| sessions.contains(it)),
            };
            let has_user = match &limits.users {
                Only::Everything => true,
                Only::These(users) => user.as_ref().is_some_and(|it| users.contains(it)),
            };
            let is_within = has_session && has_user && limits.kinds.admits(kind);
            prop_assert_eq!(grant.check_publish(key_of(event)).is_ok(), is_within);
        }
    }
}
