//! The forms of the connector's registration, and what each of them means.
//!

use super::*;
use crate::event::Only;

fn read(body: &Value) -> Result<RegistrationRequest, Vec<FieldError>> {
    RegistrationRequest::read(body.to_string().as_bytes())
}

/// Returns the webhook that this body makes.
fn pushed(body: &Value) -> WebhookConfig {
    match read(body).unwrap().mode {
        RegistrationMode::Push(webhook) => *webhook,
        RegistrationMode::Stream => panic!("{body} asks for push"),
    }
}

fn push() -> Value {
    json!({ "product_id": "prod_abc", "contact_email": "a@b.c", "webhook_secret": "of-the-source",
        "integration_type": "event_stream",
        "integration_config": { "mode": "push", "url": "https://h/e", "secret": "hush" } })
}

/// Returns a body as `post_register_product_cli` of the SDK sends it.
fn from_the_sdk(
    integration_type: &str,
    integration_config: &Value,
    forward_url: &str,
    forward_secret: &str,
) -> Value {
    json!({ "product_id": "prod_abc", "contact_email": "a@b.c", "webhook_secret": "of-the-source",
        "integration_type": integration_type, "integration_config": integration_config,
        "forward_url": forward_url, "forward_secret": forward_secret, "force_reregister": false })
}

#[test]
fn push_makes_a_webhook_with_the_name_of_its_product() {
    let webhook = pushed(&push());
    assert_eq!((webhook.id.as_str(), webhook.product_id.as_str()), ("prod_abc", "prod_abc"));
    assert_eq!(
        (webhook.url.to_string().as_str(), webhook.secret.expose()),
        ("https://h/e", "hush")
    );
    assert_eq!(webhook.types, Only::These(["actions".to_owned()].into()));
    assert_eq!((webhook.max_retries, webhook.max_in_flight), (8, 16));
}

#[test]
fn the_older_form_means_the_same() {
    let config = json!({ "url": "https://h/e", "secret": "hush" });
    let sent = from_the_sdk("webhook", &config, "https://h/e", "hush");
    assert_eq!(pushed(&sent), pushed(&push()));
    let without_config = from_the_sdk("webhook", &json!({}), "https://h/e", "hush");
    assert_eq!(pushed(&without_config), pushed(&push()));
}

#[test]
fn the_source_secret_signs_where_there_is_no_other() {
    let mut body = push();
    body["integration_config"]["secret"] = "".into();
    assert_eq!(pushed(&body).secret.expose(), "of-the-source");
    body["forward_secret"] = "forwarded".into();
    assert_eq!(pushed(&body).secret.expose(), "forwarded");
}

#[test]
fn streaming_needs_nothing_but_a_product() {
    let body = from_the_sdk("event_stream", &json!({ "mode": "sse" }), "", "");
    let registration = read(&body).unwrap();
    assert_eq!((registration.mode, registration.is_forced), (RegistrationMode::Stream, false));
    let body = json!({
        "product_id": "any product!",
        "integration_type": "event_stream",
        "force_reregister": true,
        "integration_config": { "mode": "sse" },
    });
    assert!(read(&body).unwrap().is_forced);
}

#[test]
fn errors_name_the_fields_that_the_caller_used() {
    let with = |path: &str, value: Value| {
        let mut body = push();
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    let mut forced = push();
    forced["force_reregister"] = "yes".into();
    let without_secrets =
        json!({ "product_id": "p", "integration_type": "webhook", "forward_url": "https://h/" });
    for (body, fields) in [
        (json!([]), &[""][..]),
        (json!({}), &["product_id"]),
        (with("/product_id", json!("")), &["product_id"]),
        (with("/product_id", json!(7)), &["product_id"]),
        (with("/product_id", json!("no id!")), &["product_id"]),
        (with("/integration_type", json!("other")), &["integration_type"]),
        (with("/integration_type", Value::Null), &["integration_type"]),
        (with("/integration_config", json!([])), &["integration_config"]),
        (with("/integration_config", Value::Null), &["integration_config.mode"]),
        (with("/integration_config/mode", json!("pull")), &["integration_config.mode"]),
        (with("/integration_config/url", json!("ftp://hush")), &["integration_config.url"]),
        (with("/integration_config/url", Value::Null), &["integration_config.url"]),
        (with("/integration_config/url", json!(["hush"])), &["integration_config.url"]),
        (with("/integration_config/secret", json!("hush hush")), &["integration_config.secret"]),
        (from_the_sdk("webhook", &json!({}), "", ""), &["forward_url"]),
        (
            from_the_sdk("webhook", &json!({}), "hush", "hush hush"),
            &["forward_secret", "forward_url"],
        ),
        (without_secrets, &["integration_config.secret"]),
        (forced, &["force_reregister"]),
    ] {
        let errors = read(&body).unwrap_err();
        assert!(
            errors.iter().map(|error| error.field.as_str()).eq(fields.iter().copied()),
            "{body}: {errors:?}"
        );
        assert!(!format!("{errors:?}").contains("hush"), "{errors:?}");
    }
}

#[test]
fn an_answer_names_what_was_made_and_no_secret() {
    let RegistrationRequest { product, mode, .. } = read(&push()).unwrap();
    let answer = mode.to_json(&product);
    assert_eq!((&answer["mode"], &answer["webhook_id"]), (&json!("push"), &json!("prod_abc")));
    assert!(
        !answer.to_string().contains("hush") && !answer.to_string().contains("of-the-source"),
        "{answer}"
    );
    assert_eq!(RegistrationMode::Stream.to_json(&product)["mode"], "sse");
}

#[test]
fn only_a_webhook_of_the_api_and_of_the_same_product_is_a_registration() {
    use crate::webhook::WebhookStatus;
    use crate::webhook_delivery::EndpointState;
    let (state, until, problem, oldest_pending) = (EndpointState::Active, None, None, None);
    let facts = WebhookStatus { state, until, problem, pending: 0, oldest_pending, dead: 0 };
    let webhook = Arc::new(pushed(&push()));
    let view = |source| {
        Some(WebhookSummary { webhook: Arc::clone(&webhook), source, status: facts.clone() })
    };
    let (own, other) = (webhook.product_id.clone(), ProductId::new("other").unwrap());
    assert_eq!(ExistingWebhook::of(None, &own), ExistingWebhook::None);
    assert_eq!(ExistingWebhook::of(view(WebhookSource::Api), &own), ExistingWebhook::Registered);
    assert_eq!(ExistingWebhook::of(view(WebhookSource::File), &own), ExistingWebhook::FromConfig);
    assert_eq!(
        ExistingWebhook::of(view(WebhookSource::Api), &other),
        ExistingWebhook::OtherProduct
    );
}
