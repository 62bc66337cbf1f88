//! Laws of configurations and their findings.

use toml::de::{DeTable, DeValue};

use crate::config::{AllowAnonymous, Config, Environment};

/// Checks that a text has findings, or gives a configuration that reads back from the output of
/// `check`; and that neither shows a secret.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if ["/dev/", "/proc/", "\\"].iter().any(|excluded| text.contains(excluded)) {
        return; // reading a device may block, and escapes hide a secret from this law
    }
    let strict = parse(text, AllowAnonymous::OnLoopback);
    let output = match parse(text, AllowAnonymous::Anywhere) {
        Ok(config) => {
            check_masked(&config, text);
            format!("{config:?}\n{}", config.to_masked_toml())
        }
        Err(findings) => {
            assert!(strict.is_err(), "the flag accepts more, never less");
            assert!(!findings.is_empty());
            findings
        }
    };
    if secrets_only_in_secret_keys(text) {
        assert!(!output.contains(SECRET), "{output}");
        assert!(strict.err().is_none_or(|findings| !findings.contains(SECRET)));
    }
}

fn parse(text: &str, anonymous: AllowAnonymous) -> Result<Config, String> {
    let environment: Environment = [
        ("UPSTREAM_TOKEN", "hush-upstream"),
        ("ADMIN_KEY", "hush-admin"),
        ("JWT_SECRET", "hush-jwt-hush-jwt-hush-jwt-hush-jwt"),
        ("WEBHOOK_SECRET", "hush-crm"),
    ]
    .into_iter()
    .collect();
    Config::parse(text, "relay.toml", &environment, anonymous)
        .map_err(|findings| findings.to_string())
}

/// Checks that the output of `check` reads back as the same, once the masks are replaced by
/// secrets.
fn check_masked(config: &Config, text: &str) {
    let masked = config.to_masked_toml();
    if text.contains(MASK) {
        return;
    }
    let mut pieces = masked.split(MASK);
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for (number, piece) in pieces.enumerate() {
        filled += &format!("a-secret-that-is-long-enough-for-hs256-{number}{piece}");
    }
    let reparsed = parse(&filled, AllowAnonymous::Anywhere)
        .unwrap_or_else(|found| panic!("{found}\n{filled}"));
    assert_eq!(reparsed.to_masked_toml(), masked);
}

/// Returns whether every [`SECRET`] in this text is the value of a secret key, or in the query of a
/// URL. In a text that is not TOML, no finding may show any part of the text, so every
/// occurrence counts.
fn secrets_only_in_secret_keys(text: &str) -> bool {
    let (document, errors) = DeTable::parse_recoverable(text);
    !errors.is_empty() || text.matches(SECRET).count() == count_secrets_in_table(document.get_ref())
}

fn count_secrets_in_table(table: &DeTable<'_>) -> usize {
    let count_in_entry = |key: &str, value: &DeValue<'_>| match value {
        DeValue::String(text) if SECRET_KEYS.contains(&key) => text.matches(SECRET).count(),
        DeValue::String(url) if key == "url" => {
            url.split_once('?').map_or(0, |(_, query)| query.matches(SECRET).count())
        }
        DeValue::Table(table) => count_secrets_in_table(table),
        DeValue::Array(values) => values
            .iter()
            .filter_map(|value| value.get_ref().as_table())
            .map(count_secrets_in_table)
            .sum(),
        _ => 0,
    };
    table.iter().map(|(key, value)| count_in_entry(key.get_ref(), value.get_ref())).sum()
}

/// Text that every secret here has, and no other value.
const SECRET: &str = "hush";

const MASK: &str = "********";

const SECRET_KEYS: [&str; 5] = ["token", "admin_key", "key", "secret", "previous_secret"];
