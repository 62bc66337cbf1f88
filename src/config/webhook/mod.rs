//! `[[webhooks]]`: receivers that events are pushed to.
//!
//! In: the array of tables. Out: [`WebhookConfig`]s, in which an empty list of types, sessions
//! or users has become "everything". `json` reads webhooks of the admin API by the same rules.
//!
//! May use: `event`.

mod headers;
mod json;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use self::headers::WebhookHeaders;
pub(crate) use self::json::{FieldError, WebhookJson};

use super::{
    address::HttpUrl,
    entry::ConfigEntry,
    findings::quoted,
    keys::config_keys,
    secret::{Secret, SecretEntries, SecretRule, SecretSources},
    section::{Section, report_duplicate_texts},
    upstream::parse_product_id,
    values,
};
use crate::event::{Only, ProductId, SessionId, UserId};

config_keys! {
    /// A receiver, the events that it gets, and how often delivery is attempted.
    struct WebhookConfig by id
    |section, key, entry, read_secret: impl FnOnce(&mut Section<'_>, &str) -> Option<Secret>, header_sources: SecretSources| {
        /// Name in logs, metrics and the admin API.
        id: String = WithTable(entry().required(parse_webhook_id)?);
        /// Product whose events are delivered.
        product_id: ProductId = WithTable(entry().required(parse_product_id)?);
        /// URL that events are posted to.
        url: HttpUrl = WithTable(entry().required(HttpUrl::parse)?);
        /// Secret that signs deliveries.
        secret: Secret = WithTable(read_secret(section, key)?);
        /// Types of the delivered events.
        types: Only<String> =
            WithTable(read_filter(&entry(), parse_event_type).unwrap_or_else(default_types));
        /// Sessions of the delivered events.
        session_ids: Only<SessionId> =
            WithTable(read_filter(&entry(), parse_session_id).unwrap_or(Only::Everything));
        /// Users of the delivered events.
        user_ids: Only<UserId> =
            WithTable(read_filter(&entry(), parse_user_id).unwrap_or(Only::Everything));
        /// Further headers of each request.
        headers: WebhookHeaders =
            WithTable(WebhookHeaders::read(section.section(key), header_sources));
        /// Maximum duration of one attempt as a whole.
        // The time-out of the connector.
        timeout: Duration =
            WithTable(entry().duration_within(TIMEOUT_RANGE).unwrap_or(Duration::from_secs(10)));
        /// Maximum attempts after the first.
        // With the delays below, some twenty minutes in all: longer than the deployment of a
        // receiver.
        max_retries: u32 = WithTable(entry().number(0..=MAX_WEBHOOK_RETRIES).unwrap_or(8));
        /// Delay before the first retry; it doubles from there.
        initial_backoff: Duration =
            WithTable(entry().duration(values::MIN_DURATION).unwrap_or(DEFAULT_INITIAL_BACKOFF));
        /// Maximum delay before a retry.
        max_backoff: Duration =
            WithTable(read_max_backoff(&entry(), &section.entry("initial_backoff")));
        /// Maximum concurrent attempts.
        // A receiver that answers in 50 ms gets 300 events a second, and a hanging receiver costs
        // little.
        max_in_flight: usize = WithTable(entry().number(1..=MAX_IN_FLIGHT_ATTEMPTS).unwrap_or(16));
    }
}

/// A restarted process answers again by then.
const DEFAULT_INITIAL_BACKOFF: Duration = Duration::from_secs(2);
/// The end of an outage is noticed within this time.
const DEFAULT_MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// A receiver that needs longer should answer 202 and process the event afterwards.
const TIMEOUT_RANGE: RangeInclusive<Duration> = values::MIN_DURATION..=Duration::from_secs(10 * 60);
/// With the maximum delays, longer than any retention.
const MAX_WEBHOOK_RETRIES: u32 = 100;
/// Bound on the sockets of one webhook, because subscribers need sockets too.
const MAX_IN_FLIGHT_ATTEMPTS: u32 = 1024;
/// The id is used in URLs, labels and file names.
const MAX_WEBHOOK_ID_BYTES: usize = 64;

impl WebhookConfig {
    /// Reads all tables. Each must name one of the configured products.
    pub(super) fn read_all(root: &mut Section<'_>, products: &BTreeSet<&ProductId>) -> Vec<Self> {
        let mut sections = root.tables("webhooks");
        // The secret also travels as a bearer token, as it does from the connector.
        let read_secret = |section: &mut Section<'_>, key: &str| {
            SecretEntries::lookup(section, key).read_required(section, SecretRule::Header)
        };
        let webhooks = sections
            .iter_mut()
            .filter_map(|section| Self::read_keys(section, read_secret, SecretSources::All))
            .collect();
        report_duplicate_texts(&mut sections, "id");
        // A product with a finding of its own may be the missing one.
        if ["upstreams", "products"].iter().all(|key| root.context().accepts(key)) {
            sections.iter_mut().for_each(|section| check_product(section, products));
        }
        sections.into_iter().for_each(Section::finish);
        webhooks
    }
}

fn check_product(section: &mut Section<'_>, products: &BTreeSet<&ProductId>) {
    let product = section.entry("product_id");
    let is_known = |text| products.iter().any(|product| product.as_str() == text);
    if product.is_free_of_findings() && product.non_empty_text().is_some_and(|text| !is_known(text))
    {
        product.report("is in neither [[upstreams]] nor [[products]]; add it to one of them");
    }
}

/// Reads the maximum delay, after the initial one, which must not exceed it.
fn read_max_backoff(entry: &ConfigEntry<'_>, initial: &ConfigEntry<'_>) -> Duration {
    let cap = entry.duration(values::MIN_DURATION).unwrap_or(DEFAULT_MAX_BACKOFF);
    let first = initial.non_empty_text().and_then(|text| values::parse_duration(text).ok());
    let first = first.unwrap_or(DEFAULT_INITIAL_BACKOFF);
    if first > cap && initial.is_free_of_findings() && entry.is_free_of_findings() {
        let (first, cap) = (values::format_duration(first), values::format_duration(cap));
        entry.report(format!("is {cap}, but must be at least initial_backoff, {first}"));
    }
    cap
}

/// Returns a list as a filter, if there is a list; an empty list filters nothing.
fn read_filter<T: Ord>(
    entry: &ConfigEntry<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Only<T>> {
    let listed: BTreeSet<T> = entry.parse_list(parse)?.into_iter().collect();
    Some(if listed.is_empty() { Only::Everything } else { Only::These(listed.into()) })
}

/// Returns the types that the connector pushes.
fn default_types() -> Only<String> {
    Only::These(["actions".to_owned()].into())
}

fn parse_webhook_id(text: &str) -> Result<String, String> {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if text.len() > MAX_WEBHOOK_ID_BYTES || !text.bytes().all(is_id_byte) {
        return Err(format!(
            "{} is not an id; use up to {MAX_WEBHOOK_ID_BYTES} letters, digits, _, . and -",
            quoted(text)
        ));
    }
    // Clients remove such a segment from the path of a URL (RFC 3986, section 5.2.4).
    if matches!(text, "." | "..") {
        return Err("must not be . or .., because it is part of URLs".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_event_type(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn parse_session_id(text: &str) -> Result<SessionId, String> {
    SessionId::new(text).map_err(|error| error.to_string())
}

fn parse_user_id(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, tests};

    const UPSTREAM: &str = "[[upstreams]]\nproduct_id = 'p'\nurl = 'https://c/stream/p'\n";

    fn parsed(text: &str) -> Config {
        tests::parsed(&format!("{text}\n{UPSTREAM}"))
    }

    fn findings(text: &str) -> String {
        tests::findings(&format!("{text}\n{UPSTREAM}"))
    }

    const MINIMAL: &str =
        "[[webhooks]]\nid = 'crm'\nproduct_id = 'p'\nurl = 'https://h/e'\nsecret = 'hush'\n";

    #[test]
    fn keys_without_a_default_are_required() {
        let found = findings("[[webhooks]]");
        for key in ["id", "product_id", "url", "secret"] {
            assert!(
                found.contains(&format!("relay.toml:1: webhooks[0].{key}: is required")),
                "{found}"
            );
        }
        assert_eq!(found.lines().count(), 4, "{found}");
    }

    #[test]
    fn the_documented_defaults_hold_and_empty_lists_limit_nothing() {
        let webhook = parsed(&format!("{MINIMAL}types = []")).webhooks.remove(0);
        assert_eq!((webhook.types, webhook.session_ids), (Only::Everything, Only::Everything));
        assert_eq!(webhook.user_ids, Only::Everything);
        let webhook = parsed(MINIMAL).webhooks.remove(0);
        assert_eq!((webhook.types, webhook.session_ids), (default_types(), Only::Everything));
        assert_eq!((webhook.timeout, webhook.max_retries), (Duration::from_secs(10), 8));
        let backoff = (webhook.initial_backoff, webhook.max_backoff);
        assert_eq!(backoff, (Duration::from_secs(2), Duration::from_secs(300)));
        assert_eq!(webhook.max_in_flight, 16);
    }

    #[test]
    fn a_header_is_a_text_a_variable_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-file\n").unwrap();
        let headers = format!(
            "headers = {{ X-A = 'a b', X-B = {{ env = 'GATEWAY' }}, X-C = {{ file = '{}' }} }}",
            file.path().display()
        );
        let environment = [("GATEWAY", "from-env")].into_iter().collect();
        let text = format!("{MINIMAL}{headers}\n{UPSTREAM}");
        let config = tests::parsed_with(&text, &environment);
        let fields = config.webhooks[0].headers.to_fields();
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("x-a", "a b"), ("x-b", "from-env"), ("x-c", "from-file")]);
        let printed = config.to_masked_toml();
        assert!(printed.contains(r#"X-A = "********""#), "{printed}");
        assert!(!printed.contains("from-") && !printed.contains("a b"), "{printed}");
        for bad in [
            "{ X-A = { env = 'ABSENT' } }",
            "{ X-A = { env = 'A', file = 'b' } }",
            "{ X-A = { } }",
            "{ X-A = { path = 'b' } }",
            "{ X-A = 1 }",
            "{ X-A = 'a', x-a = 'b' }",
            "{ Host = 'a' }",
            "'X-A: a'",
        ] {
            let found = findings(&format!("{MINIMAL}headers = {bad}"));
            assert!(found.contains("relay.toml:6: webhooks[0].headers"), "{bad}: {found}");
        }
    }

    #[test]
    fn every_bound_is_kept() {
        let bad = [
            "types = ['']",
            "session_ids = ['']",
            "user_ids = ['']",
            "timeout = '0s'",
            "timeout = '601s'",
            "max_retries = 101",
            "initial_backoff = '0s'",
            "max_backoff = '0s'",
            "max_backoff = '1s'",
            "initial_backoff = '6m'",
            "max_in_flight = 0",
            "max_in_flight = 1025",
        ];
        for line in bad {
            let found = findings(&format!("{MINIMAL}{line}"));
            assert_eq!(found.lines().count(), 1, "{line}: {found}");
            assert!(found.contains("webhooks[0]."), "{line}: {found}");
        }
        let edge = "timeout = '10m'\nmax_retries = 100\nmax_backoff = '2s'\nmax_in_flight = 1024";
        assert_eq!(parsed(&format!("{MINIMAL}{edge}")).webhooks[0].max_in_flight, 1024);
    }

    #[test]
    fn a_product_without_an_upstream_is_found() {
        let found = findings(&MINIMAL.replace("'p'", "'q'"));
        assert_eq!(
            found,
            "relay.toml:3: webhooks[0].product_id: is in neither [[upstreams]] nor [[products]]; add it to one of them"
        );
    }

    #[test]
    fn an_id_is_short_plain_and_unique() {
        let with_id = |id: &str| MINIMAL.replace("crm", id);
        assert_eq!(parsed(&with_id("A-z_0.9")).webhooks[0].id, "A-z_0.9");
        for id in ["a b", "é", "a/b", ".", "..", &"x".repeat(65)] {
            assert!(findings(&with_id(id)).contains("webhooks[0].id: "), "{id}");
        }
        let found = findings(&format!("{MINIMAL}{MINIMAL}"));
        assert_eq!(
            found,
            "relay.toml:7: webhooks[1].id: is the same as webhooks[0].id in line 2; each needs its own"
        );
    }
}
