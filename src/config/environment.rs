//! The process environment as a value.
//!
//! In: the variables of the process, once, or a test's own. Out: their text by name.
//! The one place that touches the real environment, so everything else can be tried without it.
//!
//! May use: no other module.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Environment variables by name. Has no `Debug`: some of the values are secrets.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, Option<String>>);

impl Environment {
    /// The variables of this process as they are now.
    pub(crate) fn from_process() -> Self {
        Self::from_os_variables(std::env::vars_os())
    }

    /// What the variable of this name holds.
    pub(super) fn get(&self, name: &str) -> EnvVariable<'_> {
        match self.0.get(name) {
            Some(Some(text)) => EnvVariable::Text(text),
            Some(None) => EnvVariable::NotUtf8,
            None => EnvVariable::Unset,
        }
    }

    /// The names of all variables that start like this.
    pub(super) fn names_starting_with(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let starts = move |name: &&String| name.starts_with(prefix);
        self.0.keys().filter(starts).map(String::as_str)
    }

    /// Keeps a value that is no text as such: it is nobody's fault unless somebody asks for it.
    fn from_os_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let text = |(name, value): (OsString, OsString)| {
            (name.to_string_lossy().into_owned(), value.into_string().ok())
        };
        Self(variables.map(text).collect())
    }
}

impl<Name: Into<String>, Value: Into<String>> FromIterator<(Name, Value)> for Environment {
    fn from_iter<Variables: IntoIterator<Item = (Name, Value)>>(variables: Variables) -> Self {
        let owned = variables.into_iter().map(|(name, value)| (name.into(), Some(value.into())));
        Self(owned.collect())
    }
}

/// What one environment variable holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum EnvVariable<'a> {
    /// There is no such variable.
    Unset,
    /// Its text, perhaps empty.
    Text(&'a str),
    /// Bytes that are not UTF-8.
    NotUtf8,
}

#[cfg(test)]
impl Environment {
    /// One variable whose value is no text, for the tests of this room.
    pub(super) fn with_bytes(name: &str, bytes: &[u8]) -> Self {
        use std::os::unix::ffi::OsStringExt;
        Self::from_os_variables(std::iter::once((name.into(), OsString::from_vec(bytes.to_vec()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_unset_or_text_or_bytes() {
        let environment: Environment = [("SET", "x"), ("EMPTY", "")].into_iter().collect();
        assert_eq!(environment.get("SET"), EnvVariable::Text("x"));
        assert_eq!(environment.get("EMPTY"), EnvVariable::Text(""));
        assert_eq!(environment.get("OTHER"), EnvVariable::Unset);
        assert_eq!(Environment::with_bytes("RAW", b"\xff").get("RAW"), EnvVariable::NotUtf8);
    }

    #[test]
    fn the_process_environment_is_read() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(Environment::from_process().get("PATH"), EnvVariable::Text(&path));
    }
}
