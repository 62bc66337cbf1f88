//! Headers that authenticate a delivery: the connector's, and those of Standard Webhooks.
//!
//! In: event id, timestamp and body of one attempt. Out: all headers of the request.
//!
//! ```text
//! Authorization:         Bearer <secret>
//! X-Connector-Signature: sha256=<hex>   HMAC-SHA256 of the body, keyed by the secret as written
//! webhook-signature:     v1,<base64> …  HMAC-SHA256 of id.timestamp.body, keyed by its base64
//! ```
//!
//! May use: `config`, `outbound`.

use std::fmt::Write;

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key, Tag};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue, USER_AGENT,
};

use crate::{config::Secret, outbound::client::RELAY_USER_AGENT};

/// HMAC keys of one webhook: of its secret, and of the former one during a rotation.
#[derive(Debug)]
pub(super) struct Signer {
    current: Secret,
    /// The connector's key: the bytes of the secret as written.
    connector_key: Key,
    /// Keys of Standard Webhooks, the current secret's first.
    standard_keys: Vec<Key>,
}

impl Signer {
    /// Creates a signer with `current`. `previous` only adds a second signature to the list of
    /// Standard Webhooks: the connector's own header carries one signature only.
    pub(super) fn new(current: &Secret, previous: Option<&Secret>) -> Self {
        Self {
            current: current.clone(),
            connector_key: Key::new(HMAC_SHA256, current.expose().as_bytes()),
            standard_keys: [Some(current), previous]
                .into_iter()
                .flatten()
                .map(standard_key)
                .collect(),
        }
    }

    /// Returns the headers of one attempt to deliver `body` under the event id `id`, begun at
    /// `timestamp` in Unix seconds.
    ///
    /// # Errors
    ///
    /// If the secret or the id is not a valid header value; the configuration refuses such secrets.
    pub(super) fn headers(
        &self,
        id: &str,
        timestamp: u64,
        body: &[u8],
    ) -> Result<HeaderMap, InvalidHeaderValue> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", self.current.expose()))?;
        authorization.set_sensitive(true); // not printed, and not indexed by HPACK
        Ok(HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (USER_AGENT, HeaderValue::from_static(RELAY_USER_AGENT)),
            (AUTHORIZATION, authorization),
            (CONNECTOR_SIGNATURE, HeaderValue::try_from(self.connector_signature(body))?),
            (WEBHOOK_ID, HeaderValue::from_str(id)?),
            (WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp)),
            (
                WEBHOOK_SIGNATURE,
                HeaderValue::try_from(self.standard_signatures(id, timestamp, body))?,
            ),
        ]))
    }

    fn connector_signature(&self, body: &[u8]) -> String {
        let mut signature = String::from("sha256=");
        for byte in hmac::sign(&self.connector_key, body).as_ref() {
            // `fmt::Write` for `String` never fails.
            let _ = write!(signature, "{byte:02x}");
        }
        signature
    }

    /// Signs with each key: a receiver that knows any one of the secrets finds its signature in the
    /// list, as Standard Webhooks prescribes for rotations.
    fn standard_signatures(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signed =
            |key: &Key| format!("v1,{}", STANDARD.encode(standard_tag(key, id, timestamp, body)));
        self.standard_keys.iter().map(signed).collect::<Vec<_>>().join(" ")
    }
}

/// Signs `{id}.{timestamp}.{body}` without copying the body.
fn standard_tag(key: &Key, id: &str, timestamp: u64, body: &[u8]) -> Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    context.sign()
}

/// Derives the key of Standard Webhooks: for `whsec_…`, the bytes that its base64 encodes.
///
/// For any other text the key is the text itself, also for `whsec_` without usable base64 behind
/// it: the libraries of Standard Webhooks cannot decode such a text either, so its receiver can
/// only have been given it as raw bytes. An empty key is never used: anyone could sign with it.
fn standard_key(secret: &Secret) -> Key {
    let text = secret.expose();
    let decoded = text.strip_prefix("whsec_").and_then(|rest| LENIENT_BASE64.decode(rest).ok());
    let key = decoded.filter(|key| !key.is_empty()).unwrap_or_else(|| text.as_bytes().to_vec());
    Key::new(HMAC_SHA256, &key)
}

/// Base64 as the libraries of Standard Webhooks read it: padding may be missing.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

const CONNECTOR_SIGNATURE: HeaderName = HeaderName::from_static("x-connector-signature");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const PUBLISHED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn headers(current: &str, former: Option<&str>, id: &str) -> HeaderMap {
        let former = former.map(|text| Secret::inline(text.to_owned()));
        Signer::new(&Secret::inline(current.to_owned()), former.as_ref())
            .headers(id, 1_614_265_330, BODY)
            .unwrap()
    }

    fn standard(current: &str) -> String {
        headers(current, None, "1-2")["webhook-signature"].to_str().unwrap().to_owned()
    }

    // The expected values were computed with the Python packages `standardwebhooks` and `hmac`.

    #[test]
    fn the_published_vector_of_standard_webhooks_comes_out() {
        let headers = headers(PUBLISHED, None, "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(headers["webhook-id"], "msg_p5jXN8AQM9LWM0D4loKWxJek");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
    }

    #[test]
    fn the_connectors_headers_take_the_secret_as_written() {
        let plain = headers("plain-secret", None, "1-2");
        let signature = "sha256=3769927aef24228fefebbe97e0781f76c3520d3652291a5e9ad80befe94a9e8c";
        assert_eq!(plain["x-connector-signature"], signature);
        assert_eq!(plain["authorization"], "Bearer plain-secret");
        assert_eq!(plain["content-type"], "application/json");
        assert_eq!(plain["user-agent"], concat!("autoplay-relay/", env!("CARGO_PKG_VERSION")));
        let prefixed = headers(PUBLISHED, None, "1-2");
        let signature = "sha256=80ec8a89ce3cd22133a1066caecb4d04fea7467657c8514d717ec42c38a5c94c";
        assert_eq!(prefixed["x-connector-signature"], signature);
        assert_eq!(prefixed["authorization"], format!("Bearer {PUBLISHED}").as_str());
    }

    #[test]
    fn a_secret_that_is_no_base64_signs_with_its_bytes() {
        assert_eq!(standard("plain-secret"), "v1,89a4Mtkax0hnYMEMJ6cY0f3Fdnx9xYiuP6EtZ7xSzWk=");
        assert_eq!(
            standard("whsec_not*base64!"),
            "v1,9RIv5v/hZVh6WDkqjiL9YrSO60L9K1zwXCPcn+UiNso="
        );
        assert_ne!(standard("whsec_"), standard("whsec_not*base64!"));
        let empty_key =
            STANDARD.encode(standard_tag(&Key::new(HMAC_SHA256, b""), "1-2", 1_614_265_330, BODY));
        assert_ne!(standard("whsec_"), format!("v1,{empty_key}"));
    }

    #[test]
    fn padding_does_not_matter() {
        assert_eq!(
            standard("whsec_aHVzaC1odXNoIQ=="),
            "v1,dE+bdhmgS3lqmgqb+c2pax5T9hsfw6UZAUjr4QUTqrs="
        );
        assert_eq!(standard("whsec_aHVzaC1odXNoIQ"), standard("whsec_aHVzaC1odXNoIQ=="));
    }

    #[test]
    fn a_former_secret_signs_behind_the_current_one_and_nowhere_else() {
        let rotated = headers("plain-secret", Some("whsec_aHVzaC1odXNo"), "1-2");
        let current = "v1,89a4Mtkax0hnYMEMJ6cY0f3Fdnx9xYiuP6EtZ7xSzWk=";
        let former = "v1,D2qP4nnLThC5Oxq4qnBMalVNlFUTbfUlktnehpG9RJ4=";
        assert_eq!(rotated["webhook-signature"], format!("{current} {former}").as_str());
        let alone = headers("plain-secret", None, "1-2");
        for name in ["authorization", "x-connector-signature"] {
            assert_eq!(rotated[name], alone[name]);
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let secret = Secret::inline("hush".to_owned());
        let signer = Signer::new(&secret, Some(&secret));
        let printed = format!("{signer:?} {:?}", signer.headers("1-2", 0, b"").unwrap());
        assert!(!printed.contains("hush"), "{printed}");
    }

    #[test]
    fn a_secret_or_id_that_is_invalid_in_a_header_is_an_error() {
        let signer = Signer::new(&Secret::inline("a\nb".to_owned()), None);
        assert!(signer.headers("1-2", 0, b"").is_err());
        let signer = Signer::new(&Secret::inline("a".to_owned()), None);
        assert!(signer.headers("1\n2", 0, b"").is_err());
    }
}
