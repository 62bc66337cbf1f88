//! Walking a configuration by hand: sections and entries that know where they stand.
//!
//! In: a parsed TOML tree with spans, and the environment. Out: raw values by key, an override in place of what
//! the file has, and findings for keys and variables that nobody asked for.
//! Reading goes on after a finding, so that the operator sees all of them at once.
//!
//! May use: `entry`, `environment`, `findings`, `reading`.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    entry::{Entry, Raw, kind},
    environment::Variable,
    findings::Place,
    reading::{OVERRIDE_PREFIX, Reading},
};

/// One table of the document, present or not, and the overrides of its keys.
pub(super) struct Section<'a> {
    reading: &'a Reading<'a>,
    path: String,
    override_prefix: Option<String>,
    table: Option<&'a DeTable<'a>>,
    place: Place,
    known: BTreeSet<String>,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(reading: &'a Reading<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            reading,
            path: String::new(),
            override_prefix: Some(OVERRIDE_PREFIX.to_owned()),
            table: Some(table),
            place: reading.whole_file(),
            known: BTreeSet::new(),
        }
    }

    /// The reading this section belongs to.
    pub(super) fn reading(&self) -> &'a Reading<'a> {
        self.reading
    }

    /// The value of a key: the environment's if there is one, else the file's.
    pub(super) fn entry(&mut self, name: &str) -> Entry<'a> {
        let written = self.written(name);
        self.overriding(name).unwrap_or(written)
    }

    /// The value that the file has for a key, perhaps none.
    pub(super) fn written(&mut self, name: &str) -> Entry<'a> {
        let key = self.know(name);
        match self.table.and_then(|table| table.get_key_value(name)) {
            Some((typed, value)) => {
                let place = self.reading.place(typed.span().start);
                Entry::new(self.reading, key, place, Raw::Written(value.get_ref()))
            }
            None => Entry::new(self.reading, key, self.place.clone(), Raw::Absent),
        }
    }

    /// The value that the environment has for a key, if its variable is set.
    pub(super) fn overriding(&mut self, name: &str) -> Option<Entry<'a>> {
        let key = self.know(name);
        let variable = format!("{}{}", self.override_prefix.as_ref()?, name.to_uppercase());
        let raw = match self.reading.override_named(&variable) {
            Variable::Unset => return None,
            Variable::Text(text) => Raw::Text(text),
            Variable::NotText => Raw::NotText,
        };
        Some(Entry::new(self.reading, key, Place::Variable(variable), raw))
    }

    /// Whether the file has this table, or the environment a value for one of its keys.
    pub(super) fn is_present(&self) -> bool {
        let has_overrides = |prefix: &String| self.reading.has_overrides(prefix);
        self.table.is_some() || self.override_prefix.as_ref().is_some_and(has_overrides)
    }

    /// The table under this key; one that is absent reads as empty.
    pub(super) fn section(&mut self, name: &str) -> Self {
        let key = self.know(name);
        let mut section = Section {
            reading: self.reading,
            override_prefix: self.override_prefix.as_ref().map(|prefix| format!("{prefix}{}__", name.to_uppercase())),
            path: key,
            table: None,
            place: self.place.clone(),
            known: BTreeSet::new(),
        };
        if let Some((typed, value)) = self.table.and_then(|table| table.get_key_value(name)) {
            section.place = self.reading.place(typed.span().start);
            section.table = value.get_ref().as_table();
            if section.table.is_none() {
                let message = format!("must be a table, [{}], not {}", section.path, kind(value.get_ref()));
                self.reading.report(section.place.clone(), Some(&section.path), message);
            }
        }
        section
    }

    /// The array of tables under this key, in the order of the file.
    pub(super) fn tables(&mut self, name: &str) -> Vec<Self> {
        let key = self.know(name);
        let Some((typed, value)) = self.table.and_then(|table| table.get_key_value(name)) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("must be an array of tables: write [[{key}]] before each");
            self.reading.report(self.reading.place(typed.span().start), Some(&key), message);
            return Vec::new();
        };
        let elements = array.iter().enumerate();
        elements.filter_map(|(index, element)| self.table_element(&format!("{key}[{index}]"), element)).collect()
    }

    /// Ends the section: reports every key in it that nobody asked for.
    pub(super) fn finish(self) {
        let unknown =
            self.table.into_iter().flatten().filter(|(typed, _)| !self.known.contains(typed.get_ref().as_ref()));
        for (typed, _) in unknown {
            let known = self.known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("unknown key; known here are {known}");
            let key = joined(&self.path, &typed.get_ref().escape_debug().to_string());
            self.reading.report(self.reading.place(typed.span().start), Some(&key), message);
        }
    }

    fn table_element(&self, path: &str, element: &'a Spanned<DeValue<'a>>) -> Option<Self> {
        let place = self.reading.place(element.span().start);
        let Some(table) = element.get_ref().as_table() else {
            let message = format!("must be a table, not {}", kind(element.get_ref()));
            self.reading.report(place, Some(path), message);
            return None;
        };
        let path = path.to_owned();
        // No overrides: the elements of an array have no names that a variable could carry.
        let override_prefix = None;
        Some(Section {
            reading: self.reading,
            path,
            override_prefix,
            table: Some(table),
            place,
            known: BTreeSet::new(),
        })
    }

    /// Notes that a key exists, and gives it as the operator types it.
    fn know(&mut self, name: &str) -> String {
        self.known.insert(name.to_owned());
        joined(&self.path, name)
    }
}

/// Reports every text under this key that a section before it has already.
pub(super) fn report_repeated_texts(sections: &mut [Section<'_>], name: &str) {
    let entries = sections.iter_mut().map(|section| section.entry(name));
    report_repeats(entries.filter_map(|entry| entry.given_text().map(|text| (entry, text))));
}

/// Reports every value that an entry before it has already. The value itself is not shown: it may be a secret.
pub(super) fn report_repeats<'a, T: Ord>(values: impl IntoIterator<Item = (Entry<'a>, T)>) {
    let mut first_by_value: BTreeMap<T, Entry<'a>> = BTreeMap::new();
    for (entry, value) in values {
        match first_by_value.get(&value) {
            Some(first) => entry.report(format!("is the same as {}; each needs its own", first.key())),
            None => drop(first_by_value.insert(value, entry)),
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::Environment;

    /// What reading this text finds when only `server.listen`, `auth.jwt.audience` and `upstreams[].url` are known.
    fn found(text: &str, environment: &Environment) -> String {
        let (document, errors) = DeTable::parse_recoverable(text);
        let reading = Reading::new("relay.toml", text, environment);
        reading.report_syntax(&errors);
        let mut root = Section::root(&reading, document.get_ref());
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
        reading.finish().map_or_else(|findings| findings.to_string(), |()| String::new())
    }

    #[test]
    fn known_keys_and_variables_are_no_findings() {
        let environment = [("AUTOPLAY_RELAY__AUTH__JWT__AUDIENCE", "x"), ("AUTOPLAY_RELAY_CONFIG", "x")];
        let text = "server.listen = 1\n[auth.jwt]\naudience = 'x'\n[[upstreams]]\nurl = ''\n";
        assert_eq!(found(text, &environment.into_iter().collect()), "");
    }

    #[test]
    fn an_unknown_key_is_found_at_its_line_and_full_name() {
        let text = "a = 1\n[server]\nlisten = ''\n\nlisen = ''\n[[upstreams]]\n[[upstreams]]\nurls = 1\n[auth.jwts]\n";
        let expected = "relay.toml:1: a: unknown key; known here are auth, server, upstreams\n\
                        relay.toml:5: server.lisen: unknown key; known here are listen\n\
                        relay.toml:8: upstreams[1].urls: unknown key; known here are url\n\
                        relay.toml:9: auth.jwts: unknown key; known here are jwt";
        assert_eq!(found(text, &Environment::default()), expected);
    }

    #[test]
    fn a_variable_that_names_no_key_is_found() {
        for name in ["AUTOPLAY_RELAY__SERVER__LISEN", "AUTOPLAY_RELAY__UPSTREAMS", "AUTOPLAY_RELAY__"] {
            let findings = found("", &[(name, "hidden")].into_iter().collect());
            assert!(findings.starts_with(&format!("{name}: names no key of")), "{findings}");
            assert!(!findings.contains("hidden"), "{findings}");
        }
    }

    #[test]
    fn a_table_in_the_wrong_shape_is_found() {
        let text = "server = 3\nupstreams = [\n{ url = '' },\n 'hidden' ]\n";
        let expected = "relay.toml:1: server: must be a table, [server], not a whole number\n\
                        relay.toml:4: upstreams[1]: must be a table, not text";
        assert_eq!(found(text, &Environment::default()), expected);
        let single = "[upstreams]\nurl = ''\n";
        let expected = "relay.toml:1: upstreams: must be an array of tables: write [[upstreams]] before each";
        assert_eq!(found(single, &Environment::default()), expected);
    }

    #[test]
    fn broken_toml_is_found_by_line_without_its_content() {
        let findings = found("[server]\nlisten = hidden_token\nx = \n", &Environment::default());
        assert!(findings.starts_with("relay.toml:2: not valid TOML: "), "{findings}");
        assert!(findings.contains("relay.toml:3: not valid TOML: "), "{findings}");
        assert!(!findings.contains("hidden"), "{findings}");
    }
}
