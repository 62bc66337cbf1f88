//! The API applies the rules of the file field by field, and shows no secret.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::{address::HttpUrl, webhook::WebhookHeaders},
    event::{ProductId, SessionId, UserId},
};

fn minimal() -> Value {
    json!({ "id": "crm", "product_id": "p", "url": "https://h/e?key=hush", "secret": "hush" })
}

/// Returns the minimal body with one field added or replaced.
fn with(field: &str, value: Value) -> Value {
    let mut body = minimal();
    body[field] = value;
    body
}

fn read(body: &Value, existing: Option<&WebhookConfig>) -> Result<WebhookConfig, Vec<FieldError>> {
    WebhookConfig::from_json(body.to_string().as_bytes(), existing)
}

fn minimal_webhook() -> WebhookConfig {
    read(&minimal(), None).unwrap()
}

/// Returns the fields with errors.
fn refused_fields(body: &Value, existing: Option<&WebhookConfig>) -> Vec<String> {
    let errors = read(body, existing).unwrap_err();
    assert!(errors.iter().all(|error| !error.message.contains("hush")), "{errors:?}");
    errors.into_iter().map(|error| error.field).collect()
}

#[test]
fn required_fields_and_defaults_of_the_file_apply_here_too() {
    assert_eq!(refused_fields(&json!({}), None), ["id", "product_id", "url", "secret"]);
    let webhook = minimal_webhook();
    assert_eq!(webhook.types, Only::These(["actions".to_owned()].into()));
    assert_eq!(webhook.session_ids, Only::Everything);
    assert_eq!(webhook.user_ids, Only::Everything);
    assert_eq!((webhook.timeout, webhook.max_retries), (Duration::from_secs(10), 8));
}

#[test]
fn every_field_has_its_own_error_and_all_are_reported_at_once() {
    for (field, value) in [
        ("id", json!("a b")),
        ("id", json!(".")),
        ("id", json!(7)),
        ("product_id", json!("")),
        ("product_id", json!("a\u{7}")),
        ("url", json!("ftp://hush/")),
        ("url", json!("http://u:hush@h/")),
        ("url", json!(["http://hush/"])),
        ("secret", json!("hush hush")),
        ("secret", json!("")),
        ("secret", json!(MASK)),
        ("secret", json!({ "hush": "hush" })),
        ("types", json!("actions")),
        ("types", json!({})),
        ("types[1]", json!(["actions", ""])),
        ("types[1]", json!(["actions", 1])),
        ("types[1]", json!(["actions", null])),
        ("types[1]", json!(["actions", [["hush"]]])),
        ("session_ids[0]", json!(["a\nb"])),
        ("user_ids[1]", json!(["a", ""])),
        ("timeout", json!(10)),
        ("timeout", json!("10")),
        ("timeout", json!("601s")),
        ("timeout", json!(null)),
        ("max_retries", json!(101)),
        ("max_retries", json!(-1)),
        ("max_retries", json!(1.5)),
        ("max_retries", json!("8")),
        ("max_retries", json!(18_446_744_073_709_551_615_u64)),
        ("max_retries", json!(1e300)),
        ("initial_backoff", json!(true)),
        ("max_backoff", json!("1s")),
        ("max_in_flight", json!(0)),
    ] {
        let key = field.split('[').next().unwrap();
        assert_eq!(refused_fields(&with(key, value.clone()), None), [field], "{value}");
    }
    let body =
        json!({ "id": "a b", "url": "hush", "types": [1], "max_retries": null, "more": [{}] });
    let mut fields = refused_fields(&body, None);
    fields.sort();
    assert_eq!(fields, ["id", "max_retries", "more", "product_id", "secret", "types[0]", "url"]);
}

#[test]
fn variables_and_files_of_the_relay_cannot_be_named() {
    for field in ["secret_env", "secret_file", "url_env", "source", "state"] {
        let fields = refused_fields(&with(field, json!("/etc/hostname")), None);
        assert_eq!(fields, [field]);
    }
    let mut body = with("secret_env", json!("PATH"));
    body.as_object_mut().unwrap().remove("secret");
    assert_eq!(refused_fields(&body, None), ["secret", "secret_env"]);
    assert_eq!(refused_fields(&body, Some(&minimal_webhook())), ["secret_env"]);
}

#[test]
fn a_body_that_is_not_an_object_has_one_error_without_a_field() {
    for body in [
        "",
        "hush",
        "[]",
        "\"hush\"",
        "7",
        "null",
        "{\"id\":\"hush\"",
        "{} {}",
        "{\"id\":\"\u{1}\"}",
    ] {
        let errors = WebhookConfig::from_json(body.as_bytes(), None).unwrap_err();
        assert_eq!(errors.len(), 1, "{body}: {errors:?}");
        assert_eq!(errors[0].field, "", "{body}");
        assert!(!errors[0].message.contains("hush"), "{errors:?}");
    }
    assert_eq!(WebhookConfig::from_json(b"\xff", None).unwrap_err()[0].field, "");
    let deep = [b"{\"x\":".as_slice(), &[b'['; 100_000]].concat();
    assert_eq!(WebhookConfig::from_json(&deep, None).unwrap_err()[0].field, "");
}

#[test]
fn a_field_given_twice_is_an_error() {
    let body = minimal().to_string().replace("\"id\"", "\"id\":\"other\",\"id\"");
    assert_eq!(
        WebhookConfig::from_json(body.as_bytes(), None).unwrap_err(),
        [FieldError::new("id", "is given twice")]
    );
}

#[test]
fn a_change_keeps_id_product_and_secret_and_replaces_the_rest() {
    let existing = read(&with("max_retries", json!(3)), None).unwrap();
    for secret in [None, Some(MASK), Some("")] {
        let mut body = json!({ "url": "https://other/", "types": ["summary"] });
        if let Some(secret) = secret {
            body["secret"] = secret.into();
        }
        let changed = read(&body, Some(&existing)).unwrap();
        let expected = WebhookConfig {
            url: HttpUrl::parse("https://other/").unwrap(),
            types: Only::These(["summary".to_owned()].into()),
            max_retries: 8,
            ..existing.clone()
        };
        assert_eq!(changed, expected, "{secret:?}");
    }
    let changed = read(&with("secret", json!("new")), Some(&existing)).unwrap();
    assert_eq!(changed.secret.expose(), "new");
    assert_eq!(refused_fields(&json!({}), Some(&existing)), ["url"]);
    assert_eq!(refused_fields(&with("id", json!("other")), Some(&existing)), ["id"]);
    assert_eq!(refused_fields(&with("product_id", json!(null)), Some(&existing)), ["product_id"]);
    assert_eq!(refused_fields(&with("more", json!(1)), Some(&existing)), ["more"]);
    assert_eq!(refused_fields(&with("secret", json!(7)), Some(&existing)), ["secret"]);
}

#[test]
fn an_answer_has_the_documented_fields_and_can_be_sent_back() {
    let existing = read(&with("session_ids", json!(["b", "a"])), None).unwrap();
    let mut answer = serde_json::to_value(existing.to_json()).unwrap();
    assert_eq!(
        answer,
        json!({ "id": "crm", "product_id": "p", "url": "https://h/e?key=hush", "types": ["actions"],
            "session_ids": ["a", "b"], "user_ids": [], "headers": {},
            "timeout": "10s", "max_retries": 8, "initial_backoff": "2s", "max_backoff": "5m", "max_in_flight": 16,
            "secret": MASK })
    );
    for anything in [json!(null), json!({ "any": "thing" }), json!("text")] {
        for field in READ_ONLY_FIELDS {
            answer[field] = anything.clone();
        }
        assert_eq!(read(&answer, Some(&existing)).unwrap(), existing);
    }
}

#[test]
fn a_webhook_that_an_earlier_relay_stored_is_of_all_users() {
    let stored = r#"{"id":"crm","product_id":"p","url":"https://h/e","types":["actions"],
        "session_ids":["a"],"timeout":"10s","max_retries":8,"initial_backoff":"2s",
        "max_backoff":"5m","max_in_flight":16,"secret":"sesame"}"#;
    let webhook = WebhookConfig::from_stored(stored).unwrap();
    let sessions = Only::These([SessionId::new("a").unwrap()].into());
    assert_eq!((webhook.session_ids, webhook.user_ids), (sessions, Only::Everything));
}

#[test]
fn a_secret_is_in_the_store_and_nowhere_else() {
    let webhook = read(&with("secret", json!("sesame")), None).unwrap();
    assert!(!format!("{webhook:?}").contains("sesame"));
    assert!(!serde_json::to_string(&webhook.to_json()).unwrap().contains("sesame"));
    assert!(webhook.to_stored().contains("sesame"));
}

#[test]
fn headers_are_texts_that_are_stored_and_shown_as_masks() {
    let given = json!({"X-Gateway-Key": "open sesame", "X-Tenant": "a"});
    let webhook = read(&with("headers", given), None).unwrap();
    assert_eq!(webhook.headers.to_fields().len(), 2);
    assert!(!format!("{webhook:?}").contains("sesame"));
    let shown = serde_json::to_value(webhook.to_json()).unwrap();
    assert_eq!(shown["headers"], json!({"X-Gateway-Key": MASK, "X-Tenant": MASK}));
    assert_eq!(WebhookConfig::from_stored(&webhook.to_stored()).as_ref(), Ok(&webhook));
    // What was shown is no value, and a change removes what it does not repeat.
    let fields = ["headers.X-Gateway-Key", "headers.X-Tenant"];
    assert_eq!(refused_fields(&shown, Some(&webhook)), fields);
    let changed = read(&json!({"url": "https://h/e"}), Some(&webhook)).unwrap();
    assert_eq!(changed.headers, WebhookHeaders::default());
}

#[test]
fn headers_cannot_name_variables_or_files_of_the_relay() {
    for value in [
        json!({"env": "HOME"}),
        json!({"file": "/etc/passwd"}),
        json!({}),
        json!(7),
        json!(null),
        json!(["a"]),
        json!("a\nb"),
    ] {
        let refused = refused_fields(&with("headers", json!({"X-A": value})), None);
        assert_eq!(refused, ["headers.X-A"], "{value}");
    }
    let named = read(&with("headers", json!({"X-A": {"env": "HOME"}})), None).unwrap_err();
    assert_eq!(named[0].message, "must be a text");
    let refused = |headers: Value| refused_fields(&with("headers", headers), None);
    assert_eq!(refused(json!({"Host": "h"})), ["headers.Host"]);
    assert_eq!(refused(json!({"x-a": "1", "X-A": "2"})).len(), 1, "no name twice");
    assert_eq!(refused(json!("X-A: 1")), ["headers"]);
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("X-{n}"), json!("v"))).collect();
    assert_eq!(refused(many.into()), ["headers"]);
}

fn only_of<T: Ord>(values: Vec<T>) -> Only<T> {
    if values.is_empty() { Only::Everything } else { Only::These(values.into_iter().collect()) }
}

prop_compose! {
    fn webhooks()(
        id in "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}",
        product in "[^\\pC]{1,40}",
        url in "https?://[a-z0-9]{1,9}(:[1-9][0-9]{0,3})?/[!$-;=?-Z_a-z~]{0,20}",
        secret in "[!-~]{9,40}",
        types in prop::collection::vec("\\PC{1,9}|.{1,9}", 0..3),
        sessions in prop::collection::vec("[^\r\n\0]{1,9}", 0..3),
        users in prop::collection::vec("[^\r\n\0]{1,9}", 0..3),
        times in prop::array::uniform3(1_u64..600_000_000_000),
        max_retries in 0_u32..=100,
        max_in_flight in 1_usize..=1024,
    ) -> WebhookConfig {
        let [timeout, one, other] = times.map(Duration::from_nanos);
        WebhookConfig {
            id,
            product_id: ProductId::new(&product).unwrap(),
            url: HttpUrl::parse(&url).unwrap(),
            secret: Secret::inline(secret),
            types: only_of(types),
            session_ids: only_of(sessions.iter().map(|session| SessionId::new(session).unwrap()).collect()),
            user_ids: only_of(users.iter().map(|user| UserId::new(user).unwrap()).collect()),
            headers: WebhookHeaders::default(),
            timeout,
            max_retries,
            initial_backoff: one.min(other),
            max_backoff: one.max(other),
            max_in_flight,
        }
    }
}

proptest! {
    #[test]
    fn a_stored_webhook_reads_back_the_same(webhook in webhooks()) {
        prop_assert_eq!(WebhookConfig::from_stored(&webhook.to_stored()), Ok(webhook.clone()));
        // A change with the fields of an answer also gives the same webhook.
        let answer = serde_json::to_vec(&webhook.to_json()).unwrap();
        prop_assert_eq!(WebhookConfig::from_json(&answer, Some(&webhook)), Ok(webhook));
    }

    #[test]
    fn no_body_makes_it_panic(body in "\\PC*", value in "[\\PC\0-\u{1f}]{0,30}") {
        let _ = WebhookConfig::from_json(body.as_bytes(), None);
        for field in ["id", "url", "types", "timeout", &value] {
            let mut body = with(field, json!(value));
            let _ = read(&body, None);
            body[field] = json!([value]);
            let _ = read(&body, Some(&minimal_webhook()));
        }
    }
}
