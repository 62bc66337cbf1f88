//! The process environment as a value.
//!
//! In: the variables of the process, read once, or those of a test. Out: their text by name. Only
//! this module touches the real environment, so all other code can be tested without it.
//!
//! May use: no other module.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Environment variables by name. It has no `Debug` because some of the values are secrets.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, Option<String>>);

impl Environment {
    /// Returns the current variables of this process.
    pub(crate) fn from_process() -> Self {
        Self::from_os_variables(std::env::vars_os())
    }

    /// Returns the value of the variable of this name.
    pub(super) fn get(&self, name: &str) -> EnvVariable<'_> {
        match self.0.get(name) {
            Some(Some(text)) => EnvVariable::Text(text),
            Some(None) => EnvVariable::NotUtf8,
            None => EnvVariable::Unset,
        }
    }

    /// Returns the names of all variables with this prefix.
    pub(super) fn names_starting_with(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let starts = move |name: &&String| name.starts_with(prefix);
        self.0.keys().filter(starts).map(String::as_str)
    }

    /// Collects variables. A value that is not UTF-8 is kept as such: it is an error only if the
    /// configuration uses that variable.
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

/// Value of one environment variable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum EnvVariable<'a> {
    /// The variable is not set.
    Unset,
    /// The text, possibly empty.
    Text(&'a str),
    /// Bytes that are not UTF-8.
    NotUtf8,
}

#[cfg(test)]
impl Environment {
    /// Returns an environment of one variable whose value is not UTF-8, for tests of `config`.
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
