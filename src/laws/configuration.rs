//! A configuration, and what is told of it.

use toml::de::{DeTable, DeValue};

use crate::config::{AllowAnonymous, Config, Environment};

/// A text is found wrong, or gives a configuration that reads back as what `check` prints of it;
/// and neither shows a secret.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if ["/dev/", "/proc/", "\\"].iter().any(|not_for_here| text.contains(not_for_here)) {
        return; // devices wait for somebody; and escapes hide from this law what is a secret
    }
    let strict = parse(text, AllowAnonymous::OnLoopback);
    let output = match parse(text, AllowAnonymous::Anywhere) {
        Ok(config) => {
            check_masked(&config, text);
            format!("{config:?}\n{}", config.to_masked_toml())
        }
        Err(findings) => {
            assert!(strict.is_err(), "the flag lets more in, never less");
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

/// What `check` prints is read again as the same, once there are secrets again.
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

/// Whether [`SECRET`] stands in this text only where secrets do, or may: in the query of a URL. In
/// a text that is not TOML nothing may be told, wherever it stands.
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

/// What every secret here holds, and nothing else does.
const SECRET: &str = "hush";

const MASK: &str = "********";

const SECRET_KEYS: [&str; 5] = ["token", "admin_key", "key", "secret", "previous_secret"];
