//! `[[upstreams]]`, the connectors or other relays that events come from, and `[[products]]`, which
//! live by publishing.
//!
//! In: both arrays of tables. Out: an [`UpstreamConfig`] or a [`ProductConfig`] for each product.
//!
//! May use: `event`.

use std::time::Duration;

use super::{
    address::HttpUrl,
    keys::config_keys,
    secret::{Secret, SecretEntries, SecretRule},
    section::{Section, report_duplicate_texts},
    server::EVENT_BYTES_RANGE,
    values,
};
use crate::event::ProductId;

config_keys! {
    /// One upstream connection.
    struct UpstreamConfig by product_id |section, key, entry| {
        /// The product whose events come from there.
        product_id: ProductId = AtReload(entry().required(parse_product_id)?);
        /// URL of the stream.
        url: HttpUrl = AtReload(entry().required(HttpUrl::parse)?);
        /// Credential that the relay sends.
        token: Option<Secret> =
            AtReload(SecretEntries::lookup(section, key).read(SecretRule::Header));
        /// Silence after which the connection counts as dead.
        heartbeat_timeout: Duration =
            AtReload(entry().duration(values::MIN_DURATION).unwrap_or(DEFAULT_HEARTBEAT_TIMEOUT));
        /// Maximum size of a payload, in bytes.
        max_event_bytes: u64 =
            AtReload(entry().size(EVENT_BYTES_RANGE).unwrap_or(DEFAULT_MAX_EVENT_BYTES));
    }
}

config_keys! {
    /// A product without an upstream.
    struct ProductConfig by product_id |section, key, entry| {
        /// The product, whose events are published.
        product_id: ProductId = AtReload(entry().required(parse_product_id)?);
    }
}

/// A product that the relay serves, and where its events come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServedProduct<'a> {
    /// The product.
    pub(crate) id: &'a ProductId,
    /// Its upstream; without one it lives by publishing.
    pub(crate) upstream: Option<&'a UpstreamConfig>,
}

/// Two and a half heartbeat intervals of the connector: one heartbeat may be late, two missing ones
/// mean a dead connection.
const DEFAULT_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(75);
/// Far beyond a batch of actions, and 256 such events still fit into memory while a burst is read.
const DEFAULT_MAX_EVENT_BYTES: u64 = 1 << 20;

impl UpstreamConfig {
    /// Creates an upstream with the defaults for all other fields.
    pub(super) fn new(product_id: ProductId, url: HttpUrl, token: Option<Secret>) -> Self {
        let (heartbeat_timeout, max_event_bytes) =
            (DEFAULT_HEARTBEAT_TIMEOUT, DEFAULT_MAX_EVENT_BYTES);
        Self { product_id, url, token, heartbeat_timeout, max_event_bytes }
    }
}

/// Reads all tables of both arrays. There may be none, because products can be registered later.
pub(super) fn read_products(root: &mut Section<'_>) -> (Vec<UpstreamConfig>, Vec<ProductConfig>) {
    let mut sections = root.tables("upstreams");
    let upstreams = sections.iter_mut().filter_map(UpstreamConfig::read_keys).collect();
    let mut without_upstream = root.tables("products");
    let products = without_upstream.iter_mut().filter_map(ProductConfig::read_keys).collect();
    sections.append(&mut without_upstream);
    report_duplicate_texts(&mut sections, "product_id");
    sections.into_iter().for_each(Section::finish);
    (upstreams, products)
}

/// Parses a product id.
pub(super) fn parse_product_id(text: &str) -> Result<ProductId, String> {
    ProductId::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{findings, parsed};

    #[test]
    fn product_and_url_are_required() {
        let expected = "relay.toml:2: upstreams[0].product_id: is required\nrelay.toml:2: upstreams[0].url: is required";
        assert_eq!(findings("\n[[upstreams]]\n"), expected);
    }

    #[test]
    fn two_upstreams_of_one_product_are_found() {
        let text = "[[upstreams]]\nproduct_id = 'a'\nurl = 'http://h/a'\n[[upstreams]]\nproduct_id = 'a'\nurl = 'http://h/b'";
        let expected = "relay.toml:5: upstreams[1].product_id: is the same as upstreams[0].product_id in line 2; each needs its own";
        assert_eq!(findings(text), expected);
    }

    #[test]
    fn a_product_with_an_upstream_cannot_be_one_without() {
        let text = "[[products]]\nproduct_id = 'a'\n[[products]]\nproduct_id = 'b'\n[[upstreams]]\nurl = 'http://h/b'\nproduct_id = 'b'";
        let expected = "relay.toml:4: products[1].product_id: is the same as upstreams[0].product_id in line 7; each needs its own";
        assert_eq!(findings(text), expected);
        assert!(
            findings("[[products]]\nproduct_id = 'a'\nurl = 'x'")
                .contains("products[0].url: unknown key")
        );
        assert!(
            findings("[[products]]").contains("relay.toml:1: products[0].product_id: is required")
        );
    }

    #[test]
    fn a_token_may_be_absent_but_not_unfit_for_a_header() {
        let text = "[[upstreams]]\nproduct_id = 'a'\nurl = 'http://h/a'\n";
        assert_eq!(parsed(text).upstreams[0].token, None);
        let found = findings(&format!("{text}token = 'hush hush'"));
        assert!(
            found.starts_with("relay.toml:4: upstreams[0].token: must be visible ASCII"),
            "{found}"
        );
    }

    #[test]
    fn timeouts_and_sizes_have_bounds() {
        let text = "[[upstreams]]\nproduct_id = 'a'\nurl = 'http://h/a'\nheartbeat_timeout = '0s'\nmax_event_bytes = '65MiB'";
        let found = findings(text);
        assert!(
            found.contains(
                "relay.toml:4: upstreams[0].heartbeat_timeout: must be from 1ns to 3650d"
            ),
            "{found}"
        );
        assert!(
            found
                .contains("relay.toml:5: upstreams[0].max_event_bytes: must be from 1KiB to 64MiB"),
            "{found}"
        );
    }

    #[test]
    fn a_url_with_user_information_is_found_without_being_shown() {
        let found = findings("[[upstreams]]\nproduct_id = ''\nurl = 'http://u:hush@h/'");
        assert!(found.contains("upstreams[0].url: must be a URL without a user name"), "{found}");
        assert!(
            found.contains("upstreams[0].product_id: is required") && !found.contains("hush"),
            "{found}"
        );
    }
}
