//! Secrets: their sources, and a type that never prints them.
//!
//! In: `x`, `x_env` or `x_file`, from the file or overridden. Out: a [`Secret`], which prints as a
//! mask.
//!
//! May use: no other module.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{
    entry::ConfigEntry,
    environment::EnvVariable,
    findings::{ConfigLocation, quoted},
    parse_context::ParseContext,
    section::Section,
};

/// Text that is shown instead of a secret.
pub(super) const MASK: &str = "********";

/// A secret text. Prints as `********`.
///
/// Equality compares configurations. Its time depends on how much of the texts is equal, so it must
/// not check what a client sent.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Wraps a secret that was given directly, for example on a command line.
    pub(crate) fn inline(text: String) -> Self {
        Self(text)
    }

    /// Returns the text itself, which must not reach logs, errors, metrics or answers.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a secret that is given directly in an entry; an absent one is a finding.
    pub(super) fn from_entry(entry: &ConfigEntry<'_>, rule: SecretRule) -> Option<Self> {
        entry.required(|text| rule.check(text).map(|()| Self(text.to_owned())))
    }

    /// Reads a secret from a variable that is not the override of a key; unset and empty variables
    /// give [`None`].
    pub(super) fn from_variable(
        context: &ParseContext<'_>,
        name: &str,
        rule: SecretRule,
    ) -> Option<Self> {
        let checked = match context.variable(name) {
            EnvVariable::Unset | EnvVariable::Text("") => return None,
            EnvVariable::Text(text) => rule.check(text).map(|()| text.to_owned()),
            EnvVariable::NotUtf8 => Err("is not UTF-8 text".to_owned()),
        };
        let refused =
            |message| context.report(ConfigLocation::Variable(name.to_owned()), None, message);
        checked.map_err(refused).ok().map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(MASK)
    }
}

/// Requirement on a secret, by its use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SecretRule {
    /// The secret travels in an HTTP header: visible ASCII.
    Header,
    /// The secret signs with HS256: 32 bytes or more, because a shorter one can be found by trying
    /// (RFC 7518, section 3.2).
    Hmac,
}

impl SecretRule {
    fn check(self, text: &str) -> Result<(), String> {
        match self {
            _ if text == MASK => {
                Err("is the mask that stands for a secret, not a secret".to_owned())
            }
            Self::Header if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err("must be visible ASCII without spaces: it travels in an HTTP header".to_owned())
            }
            Self::Hmac if text.len() < 32 => Err("must have 32 bytes or more for HS256".to_owned()),
            Self::Header | Self::Hmac => Ok(()),
        }
    }
}

/// The three forms in which one secret can be given, of which the used ones are kept.
pub(super) struct SecretEntries<'a> {
    name: String,
    entries: Vec<(SecretForm, ConfigEntry<'a>)>,
}

impl<'a> SecretEntries<'a> {
    /// Looks up `name`, `name_env` and `name_file`. If the environment overrides one of them, all
    /// values of the file are ignored.
    pub(super) fn lookup(section: &mut Section<'a>, name: &str) -> Self {
        let forms = [SecretForm::Plain, SecretForm::Variable, SecretForm::File]
            .map(|form| (form, format!("{name}{}", form.suffix())));
        let (mut file_entries, mut override_entries) = (Vec::new(), Vec::new());
        for (form, key) in forms {
            file_entries.push((form, section.file_entry(&key)));
            override_entries.extend(section.override_entry(&key).map(|entry| (form, entry)));
        }
        for entries in [&mut file_entries, &mut override_entries] {
            entries.retain(|(_, entry)| entry.is_given());
        }
        let entries = if override_entries.is_empty() { file_entries } else { override_entries };
        Self { name: name.to_owned(), entries }
    }

    /// Returns the entry that gives the secret, if there is one.
    pub(super) fn entry(&self) -> Option<&ConfigEntry<'a>> {
        self.entries.first().map(|(_, entry)| entry)
    }

    /// Reads as [`SecretEntries::read`] does, and reports an absent secret as a finding.
    pub(super) fn read_required(
        &self,
        section: &mut Section<'_>,
        rule: SecretRule,
    ) -> Option<Secret> {
        let name = &self.name;
        if self.entries.is_empty() {
            section
                .entry(name)
                .report(format!("is required; give {name}, {name}_env or {name}_file"));
        }
        self.read(rule)
    }

    /// Returns the secret, if one is given and meets the rule.
    pub(super) fn read(&self, rule: SecretRule) -> Option<Secret> {
        let (form, entry) = self.entries.first()?;
        if let Some((_, second)) = self.entries.get(1) {
            let name = &self.name;
            second.report(format!("give only one of {name}, {name}_env and {name}_file"));
            return None;
        }
        let secret = form.read_secret(entry)?;
        let refused = |message| entry.report(message);
        rule.check(&secret.0).map_err(refused).ok()?;
        Some(secret)
    }
}

/// Sources from which a secret under a name of the operator's choice may come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SecretSources {
    /// A text, `{ env = "NAME" }` or `{ file = "path" }`.
    All,
    /// A text only: a caller of the API must not read the relay's own variables and files.
    TextOnly,
}

impl Section<'_> {
    /// Reads a secret under a key that has no further forms of its name; invalid ones are findings.
    pub(super) fn secret(&mut self, name: &str, sources: SecretSources) -> Option<Secret> {
        let entry = self.file_entry(name);
        if !entry.is_table() {
            return entry.text("text").map(|text| Secret(text.to_owned()));
        }
        if sources == SecretSources::TextOnly {
            entry.report("must be a text");
            return None;
        }
        let mut forms = self.section(name);
        let given = [(SecretForm::Variable, "env"), (SecretForm::File, "file")]
            .map(|(form, key)| (form, forms.file_entry(key)));
        forms.finish();
        let mut given = given.iter().filter(|(_, entry)| entry.is_given());
        match (given.next(), given.next()) {
            (Some((form, source)), None) => form.read_secret(source),
            _ => {
                entry.report("must be a text, { env = \"NAME\" } or { file = \"path\" }");
                None
            }
        }
    }
}

/// Form in which a secret is given.
#[derive(Clone, Copy)]
enum SecretForm {
    Plain,
    Variable,
    File,
}

impl SecretForm {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Variable => "_env",
            Self::File => "_file",
        }
    }

    fn read_secret(self, entry: &ConfigEntry<'_>) -> Option<Secret> {
        match self {
            Self::Plain => entry.text("text").map(|text| Secret(text.to_owned())),
            Self::Variable => entry.parse_with(|name| read_variable(entry.context(), name)),
            Self::File => entry.parse_with(|path| {
                entry.context().record_dependency(Path::new(path));
                read_secret_file(Path::new(path))
            }),
        }
    }
}

fn read_variable(context: &ParseContext<'_>, name: &str) -> Result<Secret, String> {
    // A text that does not look like a variable name is not repeated: it may be the secret itself,
    // typed under the wrong key.
    let looks_like_a_name =
        name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let display_name = if looks_like_a_name { quoted(name) } else { "a variable".to_owned() };
    match context.variable(name) {
        EnvVariable::Text("") => {
            Err(format!("names {display_name}, which is empty in the environment"))
        }
        EnvVariable::Text(text) => Ok(Secret(text.to_owned())),
        EnvVariable::NotUtf8 => Err(format!("names {display_name}, which is not UTF-8 text")),
        EnvVariable::Unset => {
            Err(format!("names {display_name}, which is not set in the environment"))
        }
    }
}

fn read_secret_file(path: &Path) -> Result<Secret, String> {
    /// Maximum size: far beyond any token, and a bound on what a mistaken path makes the relay
    /// read.
    const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;
    let shown = path.display();
    let mut bytes = Vec::new();
    let result = File::open(path)
        .and_then(|file| file.take(MAX_SECRET_FILE_BYTES + 1).read_to_end(&mut bytes));
    result.map_err(|error| format!("cannot read {shown}: {error}"))?;
    if bytes.len() as u64 > MAX_SECRET_FILE_BYTES {
        return Err(format!(
            "{shown} is larger than 64 KiB; name a file that holds only the secret"
        ));
    }
    // The error of the conversion is dropped, because it would show bytes of the file and their
    // position.
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("cannot read {shown}: it is not UTF-8 text"))?;
    // Editors and `echo` end a file with one line end; further line ends are part of the secret.
    let line = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err(format!("{shown} is empty"));
    }
    Ok(Secret(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::Environment;
    use std::path::PathBuf;
    use toml::de::DeTable;

    /// Returns what the document gives as `token`, or the findings.
    fn read_token(text: &str, environment: &Environment) -> Result<Option<Secret>, String> {
        let document = DeTable::parse(text).unwrap();
        let context = ParseContext::new("f", text, environment);
        let secret =
            SecretEntries::lookup(&mut Section::root(&context, document.get_ref()), "token")
                .read(SecretRule::Header);
        context.finish().map(|()| secret).map_err(|findings| findings.to_string())
    }

    fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
        variables.into_iter().collect()
    }

    /// A file with this content that the guard removes when it is dropped.
    struct TempSecretFile(PathBuf);

    impl TempSecretFile {
        fn create(name: &str, content: &[u8]) -> Self {
            let path =
                std::env::temp_dir().join(format!("relay-secret-{}-{name}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }

        fn toml(&self) -> String {
            format!("token_file = '{}'", self.0.display())
        }
    }

    impl Drop for TempSecretFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_secret_prints_as_a_mask() {
        let secret = read_token("token = 'hush'", &Environment::default()).unwrap().unwrap();
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "******** ******** Some(********)"
        );
        assert_eq!(secret.expose(), "hush");
    }

    #[test]
    fn the_empty_text_counts_as_absent() {
        assert_eq!(
            read_token("token = ''\ntoken_env = ''\ntoken_file = ''", &Environment::default()),
            Ok(None)
        );
        let secret = read_token(
            "token = ''\ntoken_env = 'T'",
            &environment([("T", "a"), ("AUTOPLAY_RELAY__TOKEN", "")]),
        );
        assert_eq!(secret.unwrap().unwrap().expose(), "a");
    }

    #[test]
    fn two_forms_at_once_are_found() {
        let found = read_token("token = 'hush'\ntoken_env = 'T'", &environment([("T", "hush")]))
            .unwrap_err();
        assert_eq!(found, "f:2: token_env: give only one of token, token_env and token_file");
    }

    #[test]
    fn an_override_of_any_form_replaces_all_forms_in_the_file() {
        let written = "token = 'a'\ntoken_env = 'UNSET'";
        let plain = read_token(written, &environment([("AUTOPLAY_RELAY__TOKEN", "b")]));
        assert_eq!(plain.unwrap().unwrap().expose(), "b");
        let named =
            read_token(written, &environment([("AUTOPLAY_RELAY__TOKEN_ENV", "T"), ("T", "c")]));
        assert_eq!(named.unwrap().unwrap().expose(), "c");
        let file = TempSecretFile::create("override", b"d");
        let filed = read_token(
            written,
            &environment([("AUTOPLAY_RELAY__TOKEN_FILE", file.0.to_str().unwrap())]),
        );
        assert_eq!(filed.unwrap().unwrap().expose(), "d");
    }

    #[test]
    fn a_named_variable_must_be_set_and_not_empty() {
        let found = read_token("\ntoken_env = 'T'", &Environment::default()).unwrap_err();
        assert_eq!(found, "f:2: token_env: names \"T\", which is not set in the environment");
        let found = read_token("token_env = 'T'", &environment([("T", "")])).unwrap_err();
        assert_eq!(found, "f:1: token_env: names \"T\", which is empty in the environment");
        assert!(
            read_token("token_env = 'T'", &Environment::with_bytes("T", b"\xff"))
                .unwrap_err()
                .contains("not UTF-8")
        );
    }

    #[test]
    fn one_line_end_is_trimmed_from_a_file() {
        for (content, expected) in [("hush\n", "hush"), ("hush\r\n", "hush"), ("hush", "hush")] {
            let file = TempSecretFile::create("trim", content.as_bytes());
            assert_eq!(
                read_token(&file.toml(), &Environment::default()).unwrap().unwrap().expose(),
                expected
            );
        }
        let file = TempSecretFile::create("twice", b"hush\n\n");
        assert!(
            read_token(&file.toml(), &Environment::default())
                .unwrap_err()
                .contains("visible ASCII")
        );
    }

    #[test]
    fn a_file_that_gives_no_secret_is_found_by_its_path() {
        let found = read_token("token_file = '/no/such'", &Environment::default()).unwrap_err();
        assert!(found.starts_with("f:1: token_file: cannot read /no/such: "), "{found}");
        // The bound falls within a character.
        let split = ["x".repeat(64 * 1024), "ü".to_owned()].concat();
        let large = [("large", &[b'x'; 70_000][..]), ("large", split.as_bytes())];
        for (name, content) in [("empty", &b"\n"[..]), ("bytes", b"\xff")].into_iter().chain(large)
        {
            let file = TempSecretFile::create(name, content);
            let found = read_token(&file.toml(), &Environment::default()).unwrap_err();
            assert!(found.contains(file.0.to_str().unwrap()), "{found}");
            assert_eq!(found.contains("is larger than 64 KiB; "), name == "large", "{found}");
        }
    }

    #[test]
    fn no_finding_repeats_a_secret() {
        let token = ["'hush hush'", "'hüsh'", "['hush']", "\"hush\\u0007\"", "{ hush = 'hush' }"];
        let mut texts: Vec<String> = token.iter().map(|value| format!("token = {value}")).collect();
        texts.extend(
            ["token_env = 'hush'", "token = 'hush'\ntoken_file = 'x'", "tokn = 'hush'"]
                .map(str::to_owned),
        );
        for text in &texts {
            let document = DeTable::parse(text).unwrap();
            let environment = Environment::default();
            let context = ParseContext::new("f", text, &environment);
            let mut root = Section::root(&context, document.get_ref());
            SecretEntries::lookup(&mut root, "token").read(SecretRule::Header);
            root.finish();
            let found = context.finish().unwrap_err().to_string();
            assert!(!found.contains("hush") && !found.contains("hüsh"), "{found}");
        }
    }

    #[test]
    fn the_mask_is_refused_as_a_secret() {
        assert!(
            read_token("token = '********'", &Environment::default()).unwrap_err().contains("mask")
        );
    }
}
