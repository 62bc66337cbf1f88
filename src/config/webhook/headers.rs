//! Further headers of a webhook's requests, for gateways in front of the receiver.
//!
//! In: a table of names, each with a text, a variable or a file. Out: checked [`WebhookHeaders`].
//! The values are secrets.
//!
//! May use: no other module.

use std::collections::{BTreeMap, BTreeSet};

use hyper::header::{HeaderName, HeaderValue};
use toml::Value;

use crate::config::{
    findings::quoted,
    keys::ConfigValue,
    secret::{MASK, Secret, SecretSources},
    section::Section,
};

/// Headers that each request carries beside those of the contract.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct WebhookHeaders(Vec<(String, Secret)>);

impl WebhookHeaders {
    /// Reads the table.
    pub(super) fn read(mut section: Section<'_>, sources: SecretSources) -> Self {
        let mut headers = Vec::new();
        let mut seen = BTreeSet::new();
        let names = section.typed_keys();
        if names.len() > MAX_HEADERS {
            section.report(format!("has {} headers; {MAX_HEADERS} at most", names.len()));
        }
        for name in names {
            let value = section.secret(&name, sources);
            let entry = section.file_entry(&name);
            if let Err(message) = check_name(&name) {
                entry.report(message);
            } else if !seen.insert(name.to_ascii_lowercase()) {
                entry.report("is given twice; the case of its letters does not count");
            } else if let Some(value) = value {
                match check_value(value.expose()) {
                    Ok(()) => headers.push((name, value)),
                    Err(message) => entry.report(message),
                }
            }
        }
        section.finish();
        Self(headers)
    }

    /// Returns the headers as a request has them. The values are marked as sensitive: they are not
    /// printed, and not indexed by HPACK.
    pub(crate) fn to_fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let fields = self.0.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(value.expose()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        fields.collect()
    }

    /// Returns the names, each with what `show` makes of its value.
    pub(super) fn to_map<'a>(
        &'a self,
        show: impl Fn(&'a Secret) -> &'a str,
    ) -> BTreeMap<&'a str, &'a str> {
        self.0.iter().map(|(name, value)| (name.as_str(), show(value))).collect()
    }
}

impl ConfigValue for WebhookHeaders {
    fn to_toml(&self) -> Option<Value> {
        let masked = self.0.iter().map(|(name, _)| (name.clone(), Value::from(MASK)));
        Some(Value::Table(masked.collect()))
    }
}

/// Checks that a header's name can be used, and is none that the relay or HTTP sets.
fn check_name(name: &str) -> Result<(), String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("{} is not a header's name", quoted(name)));
    }
    let lower = name.to_ascii_lowercase();
    let is_reserved = RESERVED_NAMES.contains(&lower.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
    if is_reserved { Err("is set by the relay or by HTTP itself".to_owned()) } else { Ok(()) }
}

fn check_value(text: &str) -> Result<(), String> {
    match text {
        MASK => Err("is the mask that stands for a secret, not a secret".to_owned()),
        _ if text.len() > MAX_VALUE_BYTES => Err("must have 4 KiB at most".to_owned()),
        _ if !text.bytes().all(|byte| byte.is_ascii_graphic() || b" \t".contains(&byte)) => {
            Err("must be visible ASCII, blanks and tabs".to_owned())
        }
        _ => Ok(()),
    }
}

/// More than any gateway asks for, and far below the limits of common servers.
const MAX_HEADERS: usize = 32;

/// Bytes of one value: common servers take 8 KiB for all of them.
const MAX_VALUE_BYTES: usize = 4096;

/// Names, in lower case, that the relay or HTTP itself sets.
const RESERVED_NAMES: [&str; 10] = [
    "host",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "authorization",
    "user-agent",
];

/// Beginnings, in lower case, of such names.
const RESERVED_PREFIXES: [&str; 6] =
    ["content-", "proxy-", "accept-encoding", "x-connector-", "x-autoplay-", "webhook-"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_relay_or_http_sets_are_refused_in_any_case() {
        for name in [
            "Host",
            "HOST",
            "content-type",
            "Content-X",
            "Transfer-Encoding",
            "connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Expect",
            "Proxy-Authorization",
            "AUTHORIZATION",
            "User-Agent",
            "Accept-Encoding",
            "X-Connector-Signature",
            "x-autoplay-redelivery",
            "Webhook-Id",
            "",
            "a b",
            "a:",
            "ä",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["X-Gateway-Key", "X-Tenant", "Accept", "Cookie", "x-connecto", "hosts"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_value_is_visible_ascii_blanks_and_tabs_of_4_kib_at_most() {
        for value in ["", "a b\tc", "~!", &"x".repeat(4096)] {
            assert_eq!(check_value(value), Ok(()), "{value}");
        }
        for value in ["a\nb", "a\r", "\0", "é", "\u{7f}", MASK, &"x".repeat(4097)] {
            assert!(check_value(value).is_err(), "{value:?}");
        }
    }
}
