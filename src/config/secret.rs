//! Secrets: where they come from, and that they are never printed.
//!
//! In: `x`, `x_env` or `x_file`, from the file or overridden. Out: a [`Secret`] that prints as a mask.
//!
//! May use: `entry`, `environment`, `findings`, `reader`, `reading`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{
    entry::Entry,
    environment::Variable,
    findings::{Place, quoted},
    reader::Section,
    reading::Reading,
};

/// What stands for a secret wherever it would be shown.
pub(super) const MASK: &str = "********";

/// Text that nobody may see. Prints as `********`.
///
/// Equality is for telling one configuration from the next; it takes longer the more is alike, so it is no check of
/// what a client sent.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(String);

impl Secret {
    /// A secret that was given as such, on a command line.
    pub(crate) fn inline(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Not for logs, errors, metrics or answers.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// A secret that stands there as it is; none is a finding.
    pub(super) fn from_entry(entry: &Entry<'_>, rule: Rule) -> Option<Self> {
        entry.required(|text| rule.check(text).map(|()| Self(text.to_owned())))
    }

    /// A secret from a variable that is not the override of a key; unset and empty are none.
    pub(super) fn from_variable(reading: &Reading<'_>, name: &str, rule: Rule) -> Option<Self> {
        let checked = match reading.variable(name) {
            Variable::Unset | Variable::Text("") => return None,
            Variable::Text(text) => rule.check(text).map(|()| text.to_owned()),
            Variable::NotText => Err("is not UTF-8 text".to_owned()),
        };
        let refused = |message| reading.report(Place::Variable(name.to_owned()), None, message);
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

/// What a secret must be fit for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Rule {
    /// To stand in an HTTP header: visible ASCII.
    Header,
    /// To sign with HS256: 32 bytes or more, since a shorter one can be found by trying (RFC 7518, section 3.2).
    Hmac,
}

impl Rule {
    fn check(self, text: &str) -> Result<(), String> {
        match self {
            _ if text == MASK => Err("is the mask that stands for a secret, not a secret".to_owned()),
            Self::Header if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err("must be visible ASCII without spaces: it travels in an HTTP header".to_owned())
            }
            Self::Hmac if text.len() < 32 => Err("must have 32 bytes or more for HS256".to_owned()),
            Self::Header | Self::Hmac => Ok(()),
        }
    }
}

/// The three ways to give one secret, of which those in use are kept.
pub(super) struct SecretEntries<'a> {
    name: String,
    given: Vec<(Form, Entry<'a>)>,
}

impl<'a> SecretEntries<'a> {
    /// Looks for `name`, `name_env` and `name_file`; if the environment overrides one, what the file has is forgotten.
    pub(super) fn of(section: &mut Section<'a>, name: &str) -> Self {
        let forms = [Form::Plain, Form::Variable, Form::File].map(|form| (form, format!("{name}{}", form.suffix())));
        let (mut written, mut overriding) = (Vec::new(), Vec::new());
        for (form, key) in forms {
            written.push((form, section.written(&key)));
            overriding.extend(section.overriding(&key).map(|entry| (form, entry)));
        }
        for entries in [&mut written, &mut overriding] {
            entries.retain(|(_, entry)| entry.is_given());
        }
        let given = if overriding.is_empty() { written } else { overriding };
        Self { name: name.to_owned(), given }
    }

    /// The entry that gives the secret, if there is one.
    pub(super) fn entry(&self) -> Option<&Entry<'a>> {
        self.given.first().map(|(_, entry)| entry)
    }

    /// As [`SecretEntries::read`], where none is a finding.
    pub(super) fn required(&self, section: &mut Section<'_>, rule: Rule) -> Option<Secret> {
        let name = &self.name;
        if self.given.is_empty() {
            section.entry(name).report(format!("is required, as it is or as {name}_env or {name}_file"));
        }
        self.read(rule)
    }

    /// The secret, if one is given and fit for its use.
    pub(super) fn read(&self, rule: Rule) -> Option<Secret> {
        let (form, entry) = self.given.first()?;
        if let Some((_, second)) = self.given.get(1) {
            let name = &self.name;
            second.report(format!("give only one of {name}, {name}_env and {name}_file"));
            return None;
        }
        let secret = form.secret(entry)?;
        let refused = |message| entry.report(message);
        rule.check(&secret.0).map_err(refused).ok()?;
        Some(secret)
    }
}

/// How a secret is given.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    Variable,
    File,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Variable => "_env",
            Self::File => "_file",
        }
    }

    fn secret(self, entry: &Entry<'_>) -> Option<Secret> {
        match self {
            Self::Plain => entry.text("text").map(|text| Secret(text.to_owned())),
            Self::Variable => entry.parsed(|name| from_named_variable(entry.reading(), name)),
            Self::File => entry.parsed(|path| {
                entry.reading().relies_on(Path::new(path));
                from_file(Path::new(path))
            }),
        }
    }
}

fn from_named_variable(reading: &Reading<'_>, name: &str) -> Result<Secret, String> {
    // What doesn't look like a name is not repeated: it may be the secret itself, typed under the wrong key.
    let looks_like_a_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let shown = if looks_like_a_name { quoted(name) } else { "a variable".to_owned() };
    match reading.variable(name) {
        Variable::Text("") => Err(format!("names {shown}, which is empty in the environment")),
        Variable::Text(text) => Ok(Secret(text.to_owned())),
        Variable::NotText => Err(format!("names {shown}, which is not UTF-8 text")),
        Variable::Unset => Err(format!("names {shown}, which is not set in the environment")),
    }
}

fn from_file(path: &Path) -> Result<Secret, String> {
    /// Far beyond any token, and a bound on what a mistaken path can make us read.
    const LARGEST_FILE: u64 = 64 * 1024;
    let shown = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read {shown}: {error}"))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!("{shown} is larger than 64 KiB; name a file of the secret alone"));
    }
    // Its bytes are not said, and so neither is where they are no text.
    let text = String::from_utf8(bytes).map_err(|_| format!("cannot read {shown}: it is not UTF-8 text"))?;
    // Editors and `echo` end a file with one line end; more than that is the operator's own.
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
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

    /// What the document gives as `token`, or what was found.
    fn token(text: &str, environment: &Environment) -> Result<Option<Secret>, String> {
        let document = DeTable::parse(text).unwrap();
        let reading = Reading::new("f", text, environment);
        let secret = SecretEntries::of(&mut Section::root(&reading, document.get_ref()), "token").read(Rule::Header);
        reading.finish().map(|()| secret).map_err(|findings| findings.to_string())
    }

    fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
        variables.into_iter().collect()
    }

    /// A file with this content that is gone when the guard is.
    struct Scratch(PathBuf);

    impl Scratch {
        fn holding(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("relay-secret-{}-{name}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }

        fn toml(&self) -> String {
            format!("token_file = '{}'", self.0.display())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_secret_prints_as_a_mask() {
        let secret = token("token = 'hush'", &Environment::default()).unwrap().unwrap();
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "******** ******** Some(********)");
        assert_eq!(secret.expose(), "hush");
    }

    #[test]
    fn the_empty_text_counts_as_not_given() {
        assert_eq!(token("token = ''\ntoken_env = ''\ntoken_file = ''", &Environment::default()), Ok(None));
        let secret = token("token = ''\ntoken_env = 'T'", &environment([("T", "a"), ("AUTOPLAY_RELAY__TOKEN", "")]));
        assert_eq!(secret.unwrap().unwrap().expose(), "a");
    }

    #[test]
    fn two_ways_at_once_are_found() {
        let found = token("token = 'hush'\ntoken_env = 'T'", &environment([("T", "hush")])).unwrap_err();
        assert_eq!(found, "f:2: token_env: give only one of token, token_env and token_file");
    }

    #[test]
    fn an_override_of_any_form_replaces_whatever_the_file_has() {
        let written = "token = 'a'\ntoken_env = 'UNSET'";
        let plain = token(written, &environment([("AUTOPLAY_RELAY__TOKEN", "b")]));
        assert_eq!(plain.unwrap().unwrap().expose(), "b");
        let named = token(written, &environment([("AUTOPLAY_RELAY__TOKEN_ENV", "T"), ("T", "c")]));
        assert_eq!(named.unwrap().unwrap().expose(), "c");
        let file = Scratch::holding("override", b"d");
        let filed = token(written, &environment([("AUTOPLAY_RELAY__TOKEN_FILE", file.0.to_str().unwrap())]));
        assert_eq!(filed.unwrap().unwrap().expose(), "d");
    }

    #[test]
    fn a_named_variable_must_be_set_and_not_empty() {
        let found = token("\ntoken_env = 'T'", &Environment::default()).unwrap_err();
        assert_eq!(found, "f:2: token_env: names \"T\", which is not set in the environment");
        let found = token("token_env = 'T'", &environment([("T", "")])).unwrap_err();
        assert_eq!(found, "f:1: token_env: names \"T\", which is empty in the environment");
        assert!(token("token_env = 'T'", &Environment::with_bytes("T", b"\xff")).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn one_line_end_is_trimmed_from_a_file() {
        for (content, expected) in [("hush\n", "hush"), ("hush\r\n", "hush"), ("hush", "hush")] {
            let file = Scratch::holding("trim", content.as_bytes());
            assert_eq!(token(&file.toml(), &Environment::default()).unwrap().unwrap().expose(), expected);
        }
        let file = Scratch::holding("twice", b"hush\n\n");
        assert!(token(&file.toml(), &Environment::default()).unwrap_err().contains("visible ASCII"));
    }

    #[test]
    fn a_file_that_gives_no_secret_is_found_by_its_path() {
        let found = token("token_file = '/no/such'", &Environment::default()).unwrap_err();
        assert!(found.starts_with("f:1: token_file: cannot read /no/such: "), "{found}");
        let split = ["x".repeat(64 * 1024), "ü".to_owned()].concat(); // the bound lies within a character
        let large = [("large", &[b'x'; 70_000][..]), ("large", split.as_bytes())];
        for (name, content) in [("empty", &b"\n"[..]), ("bytes", b"\xff")].into_iter().chain(large) {
            let file = Scratch::holding(name, content);
            let found = token(&file.toml(), &Environment::default()).unwrap_err();
            assert!(found.contains(file.0.to_str().unwrap()), "{found}");
            assert_eq!(found.contains("is larger than 64 KiB; "), name == "large", "{found}");
        }
    }

    #[test]
    fn no_finding_repeats_a_secret() {
        let token = ["'hush hush'", "'hüsh'", "['hush']", "\"hush\\u0007\"", "{ hush = 'hush' }"];
        let mut texts: Vec<String> = token.iter().map(|value| format!("token = {value}")).collect();
        texts.extend(["token_env = 'hush'", "token = 'hush'\ntoken_file = 'x'", "tokn = 'hush'"].map(str::to_owned));
        for text in &texts {
            let document = DeTable::parse(text).unwrap();
            let environment = Environment::default();
            let reading = Reading::new("f", text, &environment);
            let mut root = Section::root(&reading, document.get_ref());
            SecretEntries::of(&mut root, "token").read(Rule::Header);
            root.finish();
            let found = reading.finish().unwrap_err().to_string();
            assert!(!found.contains("hush") && !found.contains("hüsh"), "{found}");
        }
    }

    #[test]
    fn the_mask_is_no_secret() {
        assert!(token("token = '********'", &Environment::default()).unwrap_err().contains("mask"));
    }
}
