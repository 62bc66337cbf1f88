//! `[auth]`: credentials and their permissions.
//!
//! In: the section with its keys and its `[auth.jwt]`. Out: [`AuthConfig`].
//!
//! May use: `event`.

use std::collections::BTreeSet;

use toml::Value;

use super::{
    entry::ConfigEntry,
    findings::quoted,
    jwt::JwtConfig,
    keys::{ConfigValue, config_keys},
    secret::{Secret, SecretEntries, SecretRule},
    section::{Section, report_duplicate_texts, report_duplicates},
    upstream::parse_product_id,
};
use crate::event::{Only, ProductId};

config_keys! {
    /// Credentials and what they grant.
    struct AuthConfig |section, key, entry, default_anonymous: bool| {
        /// Whether clients without a credential are admitted.
        allow_anonymous: bool = AtReload(entry().boolean().unwrap_or(default_anonymous));
        /// Permissions of clients without a credential.
        anonymous_permissions: Permissions = AtReload(read_permissions(&entry()));
        /// The key of the admin API.
        admin_key: Option<Secret> =
            AtReload(SecretEntries::lookup(section, key).read(SecretRule::Header));
        /// Static keys for back-end agents.
        keys: Vec<StaticKeyConfig> = ByKey(StaticKeyConfig::read_all(section.tables(key)));
        /// Scoped tokens, if they are accepted.
        jwt: Option<JwtConfig> = ByKey(JwtConfig::read(section.section(key)));
    }
}

config_keys! {
    /// A static key.
    struct StaticKeyConfig by name |section, key, entry, secret: Option<Secret>| {
        /// Name of the key in logs and lists.
        name: String = WithTable(entry().required(|text| Ok(text.to_owned()))?);
        /// The text that the client sends.
        key: Secret = WithTable(secret?);
        /// The products that the key grants.
        products: Only<ProductId> = WithTable(read_products(&entry())?);
        /// Permissions on these products.
        permissions: Permissions = WithTable(read_permissions(&entry()));
        /// Maximum events that the key publishes in a second; [`None`] = no limit.
        max_publishes_per_second: Option<u32> = WithTable(entry().limit());
    }
}

/// Permission of a client.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Permission {
    /// Read events.
    Subscribe,
    /// Add events.
    Publish,
}

/// Permissions of a client; never empty in a configuration.
pub(crate) type Permissions = BTreeSet<Permission>;

impl Permission {
    /// Returns the name in the configuration and in claims.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
        }
    }

    /// Returns the permission of this name.
    ///
    /// # Errors
    ///
    /// A message that says what to write instead, for any other name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "subscribe" => Ok(Self::Subscribe),
            "publish" => Ok(Self::Publish),
            _ => Err(format!("{} is not a permission; write subscribe or publish", quoted(text))),
        }
    }
}

impl StaticKeyConfig {
    fn read_all(mut sections: Vec<Section<'_>>) -> Vec<Self> {
        let (mut secrets, mut keys) = (Vec::new(), Vec::new());
        for section in &mut sections {
            let entries = SecretEntries::lookup(section, "key");
            let secret = entries.read_required(section, SecretRule::Header);
            // One key under two names is refused: requests could not be attributed to one of the
            // names, and neither name could be revoked alone.
            secrets.extend(
                entries
                    .entry()
                    .cloned()
                    .zip(secret.as_ref().map(|secret| secret.expose().to_owned())),
            );
            keys.extend(Self::read_keys(section, secret));
        }
        report_duplicate_texts(&mut sections, "name");
        report_duplicates(secrets);
        sections.into_iter().for_each(Section::finish);
        keys
    }
}

impl ConfigValue for Permissions {
    fn to_toml(&self) -> Option<Value> {
        Some(self.iter().map(|permission| permission.name()).collect::<Vec<_>>().into())
    }
}

/// Reads a list of products; `*` alone means all products.
fn read_products(entry: &ConfigEntry<'_>) -> Option<Only<ProductId>> {
    let names = entry
        .parse_list(|text| if text == "*" { Ok(None) } else { parse_product_id(text).map(Some) })
        .unwrap_or_default();
    if !entry.is_free_of_findings() {
        return None;
    }
    let named: BTreeSet<ProductId> = names.iter().flatten().cloned().collect();
    let lists_all = names.iter().any(Option::is_none);
    match (lists_all, named.is_empty()) {
        (true, true) => Some(Only::Everything),
        (false, false) => Some(Only::These(named.into())),
        (true, false) => {
            entry.report("\"*\" stands for all products; write it alone");
            None
        }
        (false, true) => {
            entry.report("must list one product or more, or \"*\" for all");
            None
        }
    }
}

/// Reads a list of permissions; an absent list permits subscribing.
fn read_permissions(entry: &ConfigEntry<'_>) -> Permissions {
    let default = BTreeSet::from([Permission::Subscribe]);
    let Some(listed) = entry.parse_list(Permission::parse) else {
        return default;
    };
    if listed.is_empty() && entry.is_free_of_findings() {
        entry.report("must list subscribe, publish or both");
    }
    listed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{findings, parsed};

    fn with_key(lines: &str) -> String {
        format!("[[auth.keys]]\nname = 'a'\nkey = 'hush'\n{lines}")
    }

    #[test]
    fn a_key_opens_the_listed_products_or_all() {
        let products = |list: &str| {
            parsed(&with_key(&format!("products = {list}"))).auth.keys.remove(0).products
        };
        assert_eq!(products("['*']"), Only::Everything);
        let both = ["a", "b"].map(|name| ProductId::new(name).unwrap());
        assert_eq!(products("['b', 'a', 'b']"), Only::These(both.into()));
    }

    #[test]
    fn a_key_without_products_or_with_more_than_the_star_is_found() {
        assert!(
            findings(&with_key("products = []"))
                .contains("auth.keys[0].products: must list one product")
        );
        assert!(findings(&with_key("")).contains("auth.keys[0].products: must list one product"));
        assert!(
            findings(&with_key("products = ['*', 'a']"))
                .contains("auth.keys[0].products: \"*\" stands for all")
        );
        assert!(
            findings(&with_key("products = ['']"))
                .contains("auth.keys[0].products[0]: must not be empty")
        );
        assert!(
            findings(&with_key("products = ['a', 1]"))
                .contains("auth.keys[0].products[1]: must be text")
        );
    }

    #[test]
    fn a_key_may_subscribe_unless_its_permissions_say_otherwise() {
        let permissions = |line: &str| {
            parsed(&with_key(&format!("products = ['*']\n{line}"))).auth.keys.remove(0).permissions
        };
        assert_eq!(permissions(""), BTreeSet::from([Permission::Subscribe]));
        assert_eq!(permissions("permissions = ['publish']"), BTreeSet::from([Permission::Publish]));
    }

    #[test]
    fn unknown_permissions_and_an_empty_list_are_found() {
        let found = findings(&with_key("products = ['*']\npermissions = ['subscribe', 'admin']"));
        let expected = "relay.toml:5: auth.keys[0].permissions[1]: \"admin\" is not a permission; write subscribe or publish";
        assert_eq!(found, expected);
        assert!(
            findings("[auth]\nanonymous_permissions = []")
                .contains("auth.anonymous_permissions: must list")
        );
    }

    #[test]
    fn keys_have_a_name_and_a_key_of_their_own() {
        let text = "auth.keys = [\n{ name = 'a', key = 'hush', products = ['*'] },\n{ name = 'a', key = 'hush', products = ['*'] }]";
        let expected = "relay.toml:3: auth.keys[1].name: is the same as auth.keys[0].name in line 2; each needs its own\n\
                        relay.toml:3: auth.keys[1].key: is the same as auth.keys[0].key in line 2; each needs its own";
        assert_eq!(findings(text), expected);
        let expected = "relay.toml:1: auth.keys[0].key: is required; give key, key_env or key_file\n\
                        relay.toml:1: auth.keys[0].name: is required";
        assert_eq!(findings("[[auth.keys]]\nproducts = ['*']"), expected);
    }
}
