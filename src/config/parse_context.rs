//! The shared state of parsing one configuration.
//!
//! In: the name and lines of the text, and the environment. Out: locations, variables, and finally
//! all findings.
//!
//! May use: no other module.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{
    environment::{EnvVariable, Environment},
    findings::{ConfigLocation, Finding, Findings},
};

/// Prefix of all variables that override a key; two underscores separate the parts of a key.
pub(super) const OVERRIDE_PREFIX: &str = "AUTOPLAY_RELAY__";

/// State of parsing one configuration: the origin of its text, and the findings so far.
pub(super) struct ParseContext<'a> {
    file: &'a str,
    line_starts: Vec<usize>,
    environment: &'a Environment,
    findings: RefCell<Vec<Finding>>,
    known_variables: RefCell<BTreeSet<String>>,
    dependencies: RefCell<BTreeSet<PathBuf>>,
}

impl<'a> ParseContext<'a> {
    /// Starts parsing `text`, which findings call `file`.
    pub(super) fn new(file: &'a str, text: &str, environment: &'a Environment) -> Self {
        let after_line_ends =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_line_ends).collect();
        let (findings, known_variables, dependencies) = Default::default();
        Self { file, line_starts, environment, findings, known_variables, dependencies }
    }

    /// Records that the configuration depends on the contents of this file.
    pub(super) fn record_dependency(&self, file: &Path) {
        self.dependencies.borrow_mut().insert(file.to_owned());
    }

    /// Returns the recorded files.
    pub(super) fn dependencies(&self) -> BTreeSet<PathBuf> {
        self.dependencies.borrow().clone()
    }

    /// Returns the location of the file as a whole.
    pub(super) fn file_location(&self) -> ConfigLocation {
        ConfigLocation::File(self.file.to_owned())
    }

    /// Returns the value of the variable that overrides a key, and registers the variable as known.
    pub(super) fn lookup_override(&self, name: &str) -> EnvVariable<'a> {
        self.known_variables.borrow_mut().insert(name.to_owned());
        self.environment.get(name)
    }

    /// Returns whether any variable with this prefix has a non-empty value.
    pub(super) fn has_overrides(&self, prefix: &str) -> bool {
        self.environment
            .names_starting_with(prefix)
            .any(|name| self.variable(name) != EnvVariable::Text(""))
    }

    /// Returns the value of a variable that is no override, such as one that an `…_env` key names.
    pub(super) fn variable(&self, name: &str) -> EnvVariable<'a> {
        self.environment.get(name)
    }

    /// Records a finding.
    pub(super) fn report(
        &self,
        location: ConfigLocation,
        key: Option<&str>,
        message: impl Into<String>,
    ) {
        let finding = Finding { location, key: key.map(str::to_owned), message: message.into() };
        self.findings.borrow_mut().push(finding);
    }

    /// Returns whether there is no finding about this key or a key that begins with it, so that
    /// rules about two keys do not repeat a finding about one of them.
    pub(super) fn accepts(&self, key: &str) -> bool {
        let about_key =
            |finding: &Finding| finding.key.as_deref().is_some_and(|other| other.starts_with(key));
        !self.findings.borrow().iter().any(about_key)
    }

    /// Returns the location of this byte of the text.
    pub(super) fn location_at(&self, byte: usize) -> ConfigLocation {
        ConfigLocation::Line(
            self.file.to_owned(),
            self.line_starts.partition_point(|start| *start <= byte),
        )
    }

    /// Reports syntax errors, only the first of each line: the others mostly follow from it.
    pub(super) fn report_syntax_errors(&self, errors: &[toml::de::Error]) {
        let mut reported = BTreeSet::new();
        for error in errors {
            let location = error
                .span()
                .map_or_else(|| self.file_location(), |span| self.location_at(span.start));
            if reported.insert(location.clone()) {
                // Only the parser's message: its display would print the line, which may hold a
                // secret.
                self.report(
                    location,
                    None,
                    format!("not valid TOML: {}", error.message().replace('\n', ", ")),
                );
            }
        }
    }

    /// Ends parsing.
    ///
    /// # Errors
    ///
    /// All findings, including unknown override variables.
    pub(super) fn finish(self) -> Result<(), Findings> {
        let known = self.known_variables.borrow();
        let unknown = self
            .environment
            .names_starting_with(OVERRIDE_PREFIX)
            .filter(|name| !known.contains(*name));
        for name in unknown {
            let message = "names no key of [server], [auth], [auth.jwt], [log] or [egress] \
                           (variables cannot set arrays of tables)";
            self.report(ConfigLocation::Variable(name.to_owned()), None, message);
        }
        self.findings().map_or(Ok(()), Err)
    }

    /// Returns all findings in order; [`None`] if there are no findings.
    pub(super) fn findings(&self) -> Option<Findings> {
        Findings::sorted(self.findings.borrow().clone())
    }
}
