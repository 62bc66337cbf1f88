//! Findings: everything that is wrong with a configuration, reported at once.
//!
//! In: findings by location and key, in any order. Out: one line each, in the order of the file. A
//! finding never holds the value of a secret; the code that reports it is responsible for that.
//!
//! May use: no other module.

use std::fmt;

/// All errors of one configuration, displayed one per line; never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// Sorts findings by location; returns [`None`] if there are no findings.
    pub(super) fn sorted(mut found: Vec<Finding>) -> Option<Self> {
        found.sort_by(|one, other| one.location.cmp(&other.location));
        (!found.is_empty()).then_some(Self(found))
    }

    /// Returns each finding as its key, empty if no single key is at fault, and its message.
    pub(super) fn into_fields(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter().map(|finding| (finding.key.unwrap_or_default(), finding.message))
    }
}

impl From<Finding> for Findings {
    fn from(finding: Finding) -> Self {
        Self(vec![finding])
    }
}

impl std::error::Error for Findings {}

impl fmt::Display for Findings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(out, "{separator}{finding}")?;
        }
        Ok(())
    }
}

/// One thing to change: `relay.toml:12: server.listen: "foo" is not an address; …`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    /// Location that the operator has to look at.
    pub(super) location: ConfigLocation,
    /// Key as it is typed, such as `upstreams[0].url`; [`None`] if no single key is at fault.
    pub(super) key: Option<String>,
    /// The fault, and what to write instead: lower case, one line, no full stop, no secret.
    pub(super) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(out, "{}: {key}: {}", self.location, self.message),
            None => write!(out, "{}: {}", self.location, self.message),
        }
    }
}

/// Location of a value. Findings are reported in the order of this type.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ConfigLocation {
    /// The file as a whole.
    File(String),
    /// One line of the file, counted from 1.
    Line(String, usize),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for ConfigLocation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => out.write_str(file),
            Self::Line(file, line) => write!(out, "{file}:{line}"),
            Self::Variable(name) => out.write_str(name),
        }
    }
}

/// Returns the operator's text in quotes: escaped to one line, and cut where it stops being
/// recognisable.
pub(super) fn quoted(text: &str) -> String {
    /// Maximum number of characters: longer than any sensible address, duration or name, and short
    /// enough for one line of a terminal.
    const MAX_QUOTED_CHARS: usize = 80;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding_at(location: ConfigLocation, message: &str) -> Finding {
        Finding { location, key: None, message: message.to_owned() }
    }

    #[test]
    fn findings_are_reported_in_the_order_of_the_file_with_variables_last() {
        let line = |number| ConfigLocation::Line("a.toml".to_owned(), number);
        let found = vec![
            finding_at(ConfigLocation::Variable("A".to_owned()), "last"),
            finding_at(line(10), "third"),
            finding_at(line(9), "second"),
            finding_at(ConfigLocation::File("a.toml".to_owned()), "first"),
        ];
        let text = Findings::sorted(found).unwrap().to_string();
        assert_eq!(text, "a.toml: first\na.toml:9: second\na.toml:10: third\nA: last");
    }

    #[test]
    fn an_empty_list_has_no_findings() {
        assert_eq!(Findings::sorted(Vec::new()), None);
    }

    #[test]
    fn a_quote_stays_on_one_line_and_is_cut() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"é".repeat(81)), format!("\"{}\"…", "é".repeat(80)));
    }
}
