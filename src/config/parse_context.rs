//! One reading of one configuration: what its parts share.
//!
//! In: the text's name and lines, and the environment. Out: places, variables, and in the end all
//! findings.
//!
//! May use: no other module.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{
    environment::{EnvVariable, Environment},
    findings::{ConfigLocation, Finding, Findings},
};

/// What all variables that override a key start with; two underscores stand between the words of a
/// key.
pub(super) const OVERRIDE_PREFIX: &str = "AUTOPLAY_RELAY__";

/// One reading of one configuration: where its text came from, and what was found so far.
pub(super) struct ParseContext<'a> {
    file: &'a str,
    line_starts: Vec<usize>,
    environment: &'a Environment,
    findings: RefCell<Vec<Finding>>,
    known_variables: RefCell<BTreeSet<String>>,
    dependencies: RefCell<BTreeSet<PathBuf>>,
}

impl<'a> ParseContext<'a> {
    /// Starts reading `text`, which findings will call `file`.
    pub(super) fn new(file: &'a str, text: &str, environment: &'a Environment) -> Self {
        let after_line_ends =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_line_ends).collect();
        let (findings, known_variables, dependencies) = Default::default();
        Self { file, line_starts, environment, findings, known_variables, dependencies }
    }

    /// Notes that the configuration is also what is in this file.
    pub(super) fn record_dependency(&self, file: &Path) {
        self.dependencies.borrow_mut().insert(file.to_owned());
    }

    /// The files that it relies on, as far as it has been read.
    pub(super) fn dependencies(&self) -> BTreeSet<PathBuf> {
        self.dependencies.borrow().clone()
    }

    /// The file as a whole.
    pub(super) fn file_location(&self) -> ConfigLocation {
        ConfigLocation::File(self.file.to_owned())
    }

    /// What the variable that overrides a key holds; from now on it is known to have one.
    pub(super) fn lookup_override(&self, name: &str) -> EnvVariable<'a> {
        self.known_variables.borrow_mut().insert(name.to_owned());
        self.environment.get(name)
    }

    /// Whether any variable of this prefix holds something.
    pub(super) fn has_overrides(&self, prefix: &str) -> bool {
        self.environment
            .names_starting_with(prefix)
            .any(|name| self.variable(name) != EnvVariable::Text(""))
    }

    /// What a variable outside the overrides holds, such as one that an `…_env` key names.
    pub(super) fn variable(&self, name: &str) -> EnvVariable<'a> {
        self.environment.get(name)
    }

    /// Keeps one finding.
    pub(super) fn report(
        &self,
        location: ConfigLocation,
        key: Option<&str>,
        message: impl Into<String>,
    ) {
        let finding = Finding { location, key: key.map(str::to_owned), message: message.into() };
        self.findings.borrow_mut().push(finding);
    }

    /// Whether nothing was found at this key, so that rules about two keys don't repeat what one of
    /// them is told.
    pub(super) fn accepts(&self, key: &str) -> bool {
        let about_key =
            |finding: &Finding| finding.key.as_deref().is_some_and(|other| other.starts_with(key));
        !self.findings.borrow().iter().any(about_key)
    }

    /// The place that starts at this byte of the text.
    pub(super) fn location_at(&self, byte: usize) -> ConfigLocation {
        ConfigLocation::Line(
            self.file.to_owned(),
            self.line_starts.partition_point(|start| *start <= byte),
        )
    }

    /// Reports a document that is not TOML, the first mistake of each line: the others mostly
    /// follow from it.
    pub(super) fn report_syntax_errors(&self, errors: &[toml::de::Error]) {
        let mut reported = BTreeSet::new();
        for error in errors {
            let location = error
                .span()
                .map_or_else(|| self.file_location(), |span| self.location_at(span.start));
            if reported.insert(location.clone()) {
                // The parser's message alone: its display would print the line, which may hold a
                // secret.
                self.report(
                    location,
                    None,
                    format!("not valid TOML: {}", error.message().replace('\n', ", ")),
                );
            }
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// Everything found, variables that override nothing included.
    pub(super) fn finish(self) -> Result<(), Findings> {
        let known = self.known_variables.borrow();
        let unknown = self
            .environment
            .names_starting_with(OVERRIDE_PREFIX)
            .filter(|name| !known.contains(*name));
        for name in unknown {
            let message = "names no key of [server], [auth], [auth.jwt], [log] or [egress] \
                           (arrays of tables come from the file alone)";
            self.report(ConfigLocation::Variable(name.to_owned()), None, message);
        }
        self.findings().map_or(Ok(()), Err)
    }

    /// All that was found, in order; none if nothing was.
    pub(super) fn findings(&self) -> Option<Findings> {
        Findings::sorted(self.findings.borrow().clone())
    }
}
