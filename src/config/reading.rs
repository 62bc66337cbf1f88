//! One reading of one configuration: what its parts share.
//!
//! In: the text's name and lines, and the environment. Out: places, variables, and in the end all findings.
//!
//! May use: `environment`, `findings`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{
    environment::{Environment, Variable},
    findings::{Finding, Findings, Place},
};

/// What all variables that override a key start with; two underscores stand between the words of a key.
pub(super) const OVERRIDE_PREFIX: &str = "AUTOPLAY_RELAY__";

/// One reading of one configuration: where its text came from, and what was found so far.
pub(super) struct Reading<'a> {
    file: &'a str,
    line_starts: Vec<usize>,
    environment: &'a Environment,
    found: RefCell<Vec<Finding>>,
    known_variables: RefCell<BTreeSet<String>>,
    files: RefCell<BTreeSet<PathBuf>>,
}

impl<'a> Reading<'a> {
    /// Starts reading `text`, which findings will call `file`.
    pub(super) fn new(file: &'a str, text: &str, environment: &'a Environment) -> Self {
        let after_line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_line_ends).collect();
        let (found, known_variables, files) = Default::default();
        Self { file, line_starts, environment, found, known_variables, files }
    }

    /// Notes that the configuration is also what is in this file.
    pub(super) fn relies_on(&self, file: &Path) {
        self.files.borrow_mut().insert(file.to_owned());
    }

    /// The files that it relies on, as far as it has been read.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        self.files.borrow().clone()
    }

    /// The file as a whole.
    pub(super) fn whole_file(&self) -> Place {
        Place::File(self.file.to_owned())
    }

    /// What the variable that overrides a key holds; from now on it is known to have one.
    pub(super) fn override_named(&self, name: &str) -> Variable<'a> {
        self.known_variables.borrow_mut().insert(name.to_owned());
        self.environment.get(name)
    }

    /// Whether any variable of this prefix holds something.
    pub(super) fn has_overrides(&self, prefix: &str) -> bool {
        self.environment.names_starting_with(prefix).any(|name| self.variable(name) != Variable::Text(""))
    }

    /// What a variable outside the overrides holds, such as one that an `…_env` key names.
    pub(super) fn variable(&self, name: &str) -> Variable<'a> {
        self.environment.get(name)
    }

    /// Keeps one finding.
    pub(super) fn report(&self, place: Place, key: Option<&str>, message: impl Into<String>) {
        let finding = Finding { place, key: key.map(str::to_owned), message: message.into() };
        self.found.borrow_mut().push(finding);
    }

    /// Whether nothing was found at this key, so that rules about two keys don't repeat what one of them is told.
    pub(super) fn accepts(&self, key: &str) -> bool {
        let about_key = |finding: &Finding| finding.key.as_deref().is_some_and(|other| other.starts_with(key));
        !self.found.borrow().iter().any(about_key)
    }

    /// The place that starts at this byte of the text.
    pub(super) fn place(&self, byte: usize) -> Place {
        Place::Line(self.file.to_owned(), self.line_starts.partition_point(|start| *start <= byte))
    }

    /// Reports a document that is not TOML, the first mistake of each line: the others mostly follow from it.
    pub(super) fn report_syntax(&self, errors: &[toml::de::Error]) {
        let mut told = BTreeSet::new();
        for error in errors {
            let place = error.span().map_or_else(|| self.whole_file(), |span| self.place(span.start));
            if told.insert(place.clone()) {
                // The parser's message alone: its display would print the line, which may hold a secret.
                self.report(place, None, format!("not valid TOML: {}", error.message().replace('\n', ", ")));
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
        let unknown = self.environment.names_starting_with(OVERRIDE_PREFIX).filter(|name| !known.contains(*name));
        for name in unknown {
            let message = "names no key of [server], [auth], [auth.jwt], [log] or [egress] \
                           (arrays of tables come from the file alone)";
            self.report(Place::Variable(name.to_owned()), None, message);
        }
        self.found_so_far().map_or(Ok(()), Err)
    }

    /// All that was found, in order; none if nothing was.
    pub(super) fn found_so_far(&self) -> Option<Findings> {
        Findings::of(self.found.borrow().clone())
    }
}
