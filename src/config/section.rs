//! Sections of a configuration: tables that know their location and their known keys.
//!
//! In: a parsed TOML tree with spans, and the environment. Out: raw values by key, with overrides
//! in place of the values of the file, and findings for unknown keys and variables. Parsing
//! continues after a finding, so that the operator sees all findings at once.
//!
//! May use: no other module.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    entry::{ConfigEntry, RawConfigValue, toml_kind},
    environment::EnvVariable,
    findings::ConfigLocation,
    parse_context::{OVERRIDE_PREFIX, ParseContext},
};

/// One table of the document, which may be absent, and the overrides of its keys.
pub(super) struct Section<'a> {
    context: &'a ParseContext<'a>,
    path: String,
    override_prefix: Option<String>,
    table: Option<&'a DeTable<'a>>,
    location: ConfigLocation,
    known_keys: BTreeSet<String>,
}

impl<'a> Section<'a> {
    /// Returns the section of the whole document.
    pub(super) fn root(context: &'a ParseContext<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            context,
            path: String::new(),
            override_prefix: Some(OVERRIDE_PREFIX.to_owned()),
            table: Some(table),
            location: context.file_location(),
            known_keys: BTreeSet::new(),
        }
    }

    /// Returns the context that this section is parsed in.
    pub(super) fn context(&self) -> &'a ParseContext<'a> {
        self.context
    }

    /// Returns the value of a key: the override of the environment if there is one, otherwise the
    /// value of the file.
    pub(super) fn entry(&mut self, name: &str) -> ConfigEntry<'a> {
        let from_file = self.file_entry(name);
        self.override_entry(name).unwrap_or(from_file)
    }

    /// Returns the value that the file has for a key, which may be absent.
    pub(super) fn file_entry(&mut self, name: &str) -> ConfigEntry<'a> {
        let key = self.register_key(name);
        match self.table.and_then(|table| table.get_key_value(name)) {
            Some((typed, value)) => {
                let location = self.context.location_at(typed.span().start);
                ConfigEntry::new(self.context, key, location, RawConfigValue::Toml(value.get_ref()))
            }
            None => {
                ConfigEntry::new(self.context, key, self.location.clone(), RawConfigValue::Absent)
            }
        }
    }

    /// Returns the value that the environment has for a key, if its variable is set.
    pub(super) fn override_entry(&mut self, name: &str) -> Option<ConfigEntry<'a>> {
        let key = self.register_key(name);
        let variable = format!("{}{}", self.override_prefix.as_ref()?, name.to_uppercase());
        let raw = match self.context.lookup_override(&variable) {
            EnvVariable::Unset => return None,
            EnvVariable::Text(text) => RawConfigValue::EnvText(text),
            EnvVariable::NotUtf8 => RawConfigValue::EnvNotUtf8,
        };
        Some(ConfigEntry::new(self.context, key, ConfigLocation::Variable(variable), raw))
    }

    /// Returns whether the file has this table, or the environment has a value for one of its keys.
    pub(super) fn is_present(&self) -> bool {
        let has_overrides = |prefix: &String| self.context.has_overrides(prefix);
        self.table.is_some() || self.override_prefix.as_ref().is_some_and(has_overrides)
    }

    /// Returns the table under this key; an absent table is read as an empty one.
    pub(super) fn section(&mut self, name: &str) -> Self {
        let key = self.register_key(name);
        let mut section = Section {
            context: self.context,
            override_prefix: self
                .override_prefix
                .as_ref()
                .map(|prefix| format!("{prefix}{}__", name.to_uppercase())),
            path: key,
            table: None,
            location: self.location.clone(),
            known_keys: BTreeSet::new(),
        };
        if let Some((typed, value)) = self.table.and_then(|table| table.get_key_value(name)) {
            section.location = self.context.location_at(typed.span().start);
            section.table = value.get_ref().as_table();
            if section.table.is_none() {
                let message = format!(
                    "must be a table, [{}], not {}",
                    section.path,
                    toml_kind(value.get_ref())
                );
                self.context.report(section.location.clone(), Some(&section.path), message);
            }
        }
        section
    }

    /// Returns the keys that the table has, in their order, for tables whose keys are names.
    pub(super) fn typed_keys(&self) -> Vec<String> {
        let keys = self.table.into_iter().flatten();
        keys.map(|(typed, _)| typed.get_ref().to_string()).collect()
    }

    /// Reports a finding about the table as a whole.
    pub(super) fn report(&self, message: String) {
        self.context.report(self.location.clone(), Some(&self.path), message);
    }

    /// Returns the array of tables under this key, in the order of the file.
    pub(super) fn tables(&mut self, name: &str) -> Vec<Self> {
        let key = self.register_key(name);
        let Some((typed, value)) = self.table.and_then(|table| table.get_key_value(name)) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("must be an array of tables: write [[{key}]] before each");
            self.context.report(self.context.location_at(typed.span().start), Some(&key), message);
            return Vec::new();
        };
        let elements = array.iter().enumerate();
        elements
            .filter_map(|(index, element)| self.table_element(&format!("{key}[{index}]"), element))
            .collect()
    }

    /// Ends the section, and reports every key in it that was never looked up.
    pub(super) fn finish(self) {
        let unknown = self
            .table
            .into_iter()
            .flatten()
            .filter(|(typed, _)| !self.known_keys.contains(typed.get_ref().as_ref()));
        for (typed, _) in unknown {
            let known = self.known_keys.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("unknown key; the known keys here are {known}");
            let key = join_path(&self.path, &typed.get_ref().escape_debug().to_string());
            self.context.report(self.context.location_at(typed.span().start), Some(&key), message);
        }
    }

    fn table_element(&self, path: &str, element: &'a Spanned<DeValue<'a>>) -> Option<Self> {
        let location = self.context.location_at(element.span().start);
        let Some(table) = element.get_ref().as_table() else {
            let message = format!("must be a table, not {}", toml_kind(element.get_ref()));
            self.context.report(location, Some(path), message);
            return None;
        };
        let path = path.to_owned();
        // There are no overrides, because elements of an array have no names that a variable could
        // carry.
        let override_prefix = None;
        Some(Section {
            context: self.context,
            path,
            override_prefix,
            table: Some(table),
            location,
            known_keys: BTreeSet::new(),
        })
    }

    /// Registers a key as known, and returns it as the operator types it.
    fn register_key(&mut self, name: &str) -> String {
        self.known_keys.insert(name.to_owned());
        join_path(&self.path, name)
    }
}

/// Reports every text under this key that an earlier section has already.
pub(super) fn report_duplicate_texts(sections: &mut [Section<'_>], name: &str) {
    let entries = sections.iter_mut().map(|section| section.entry(name));
    report_duplicates(entries.filter_map(|entry| entry.non_empty_text().map(|text| (entry, text))));
}

/// Reports every value that an earlier entry has already. The value is not shown, because it may be
/// a secret.
pub(super) fn report_duplicates<'a, T: Ord>(
    values: impl IntoIterator<Item = (ConfigEntry<'a>, T)>,
) {
    let mut first_by_value: BTreeMap<T, ConfigEntry<'a>> = BTreeMap::new();
    for (entry, value) in values {
        match first_by_value.get(&value) {
            Some(first) => {
                entry.report(format!("is the same as {}; each needs its own", first.place()));
            }
            None => drop(first_by_value.insert(value, entry)),
        }
    }
}

/// Returns the key of a table as the operator types it; the document itself has no path.
pub(super) fn join_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::Environment;

    /// Returns the findings for this text when only `server.listen`, `auth.jwt.audience` and
    /// `upstreams[].url` are known.
    fn findings_for(text: &str, environment: &Environment) -> String {
        let (document, errors) = DeTable::parse_recoverable(text);
        let context = ParseContext::new("relay.toml", text, environment);
        context.report_syntax_errors(&errors);
        let mut root = Section::root(&context, document.get_ref());
        let mut server = root.section("server");
        server.entry("listen");
        server.finish();
        let mut auth = root.section("auth");
        let mut jwt = auth.section("jwt");
        jwt.entry("audience");
        jwt.finish();
        auth.finish();
        for mut upstream in root.tables("upstreams") {
            upstream.entry("url");
            upstream.finish();
        }
        root.finish();
        context.finish().map_or_else(|findings| findings.to_string(), |()| String::new())
    }

    #[test]
    fn known_keys_and_variables_have_no_findings() {
        let environment =
            [("AUTOPLAY_RELAY__AUTH__JWT__AUDIENCE", "x"), ("AUTOPLAY_RELAY_CONFIG", "x")];
        let text = "server.listen = 1\n[auth.jwt]\naudience = 'x'\n[[upstreams]]\nurl = ''\n";
        assert_eq!(findings_for(text, &environment.into_iter().collect()), "");
    }

    #[test]
    fn an_unknown_key_is_found_at_its_line_and_full_name() {
        let text = "a = 1\n[server]\nlisten = ''\n\nlisen = ''\n[[upstreams]]\n[[upstreams]]\nurls = 1\n[auth.jwts]\n";
        let expected = "relay.toml:1: a: unknown key; the known keys here are auth, server, upstreams\n\
                        relay.toml:5: server.lisen: unknown key; the known keys here are listen\n\
                        relay.toml:8: upstreams[1].urls: unknown key; the known keys here are url\n\
                        relay.toml:9: auth.jwts: unknown key; the known keys here are jwt";
        assert_eq!(findings_for(text, &Environment::default()), expected);
    }

    #[test]
    fn a_variable_that_names_no_key_is_found() {
        for name in
            ["AUTOPLAY_RELAY__SERVER__LISEN", "AUTOPLAY_RELAY__UPSTREAMS", "AUTOPLAY_RELAY__"]
        {
            let findings = findings_for("", &[(name, "hidden")].into_iter().collect());
            assert!(findings.starts_with(&format!("{name}: names no key of")), "{findings}");
            assert!(!findings.contains("hidden"), "{findings}");
        }
    }

    #[test]
    fn a_table_in_the_wrong_shape_is_found() {
        let text = "server = 3\nupstreams = [\n{ url = '' },\n 'hidden' ]\n";
        let expected = "relay.toml:1: server: must be a table, [server], not a whole number\n\
                        relay.toml:4: upstreams[1]: must be a table, not text";
        assert_eq!(findings_for(text, &Environment::default()), expected);
        let single = "[upstreams]\nurl = ''\n";
        let expected =
            "relay.toml:1: upstreams: must be an array of tables: write [[upstreams]] before each";
        assert_eq!(findings_for(single, &Environment::default()), expected);
    }

    #[test]
    fn broken_toml_is_found_by_line_without_its_content() {
        let findings =
            findings_for("[server]\nlisten = hidden_token\nx = \n", &Environment::default());
        assert!(findings.starts_with("relay.toml:2: not valid TOML: "), "{findings}");
        assert!(findings.contains("relay.toml:3: not valid TOML: "), "{findings}");
        assert!(!findings.contains("hidden"), "{findings}");
    }
}
