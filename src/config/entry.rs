//! One value of the configuration, raw and checked.
//!
//! In: the value that the file or a variable has for a key. Out: a checked value, or a finding and
//! [`None`]. A finding names the kind of a wrong value, never its text: only the parser of a key
//! knows whether the text is harmless.
//!
//! May use: no other module.

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::{findings::ConfigLocation, parse_context::ParseContext, pem, values};

/// A key and its raw value.
#[derive(Clone)]
pub(super) struct ConfigEntry<'a> {
    context: &'a ParseContext<'a>,
    key: String,
    location: ConfigLocation,
    raw: RawConfigValue<'a>,
}

impl<'a> ConfigEntry<'a> {
    /// Creates the entry of a key at a location.
    pub(super) fn new(
        context: &'a ParseContext<'a>,
        key: String,
        location: ConfigLocation,
        raw: RawConfigValue<'a>,
    ) -> Self {
        Self { context, key, location, raw }
    }

    /// Returns the key as the operator types it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Returns whether the value is a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.raw, RawConfigValue::Toml(DeValue::Table(_)))
    }

    /// Returns the key and, if the file has it, its line.
    pub(super) fn place(&self) -> String {
        match &self.location {
            ConfigLocation::Line(_, line) => format!("{} in line {line}", self.key),
            ConfigLocation::File(_) | ConfigLocation::Variable(_) => self.key.clone(),
        }
    }

    /// Returns the context that this entry is parsed in.
    pub(super) fn context(&self) -> &'a ParseContext<'a> {
        self.context
    }

    /// Returns whether there is a value other than the empty text.
    pub(super) fn is_given(&self) -> bool {
        match self.raw {
            RawConfigValue::Absent => false,
            RawConfigValue::EnvText(text) => !text.is_empty(),
            RawConfigValue::Toml(value) => value.as_str() != Some(""),
            RawConfigValue::EnvNotUtf8 => true,
        }
    }

    /// Returns the text, unless it is absent or empty. It never reports a finding, so it may be
    /// called before another accessor.
    pub(super) fn non_empty_text(&self) -> Option<&'a str> {
        match self.raw {
            RawConfigValue::EnvText(text) => Some(text),
            RawConfigValue::Toml(value) => value.as_str(),
            RawConfigValue::Absent | RawConfigValue::EnvNotUtf8 => None,
        }
        .filter(|text| !text.is_empty())
    }

    /// Returns whether this key has no finding so far.
    pub(super) fn is_free_of_findings(&self) -> bool {
        self.context.accepts(&self.key)
    }

    /// Records a finding about this entry.
    pub(super) fn report(&self, message: impl Into<String>) {
        self.context.report(self.location.clone(), Some(&self.key), message);
    }

    /// Returns the value as text. `expected` names the expected value in a finding.
    pub(super) fn text(&self, expected: &str) -> Option<&'a str> {
        match self.raw {
            RawConfigValue::Absent => None,
            RawConfigValue::EnvText(text) => Some(text),
            RawConfigValue::Toml(DeValue::String(text)) => Some(text),
            RawConfigValue::Toml(other) => {
                self.reject(&format!("must be {expected} in quotes, not {}", toml_kind(other)))
            }
            RawConfigValue::EnvNotUtf8 => self.reject("is not UTF-8 text"),
        }
    }

    /// Returns the text as parsed by `parse`; [`None`] without a finding if the key is absent.
    pub(super) fn parse_with<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.text("text").and_then(|text| self.or_report(parse(text)))
    }

    /// Parses as [`ConfigEntry::parse_with`] does; an empty text counts as absent.
    pub(super) fn optional<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if self.is_given() { self.parse_with(parse) } else { None }
    }

    /// Parses as [`ConfigEntry::optional`] does, and reports an absent value as a finding.
    pub(super) fn required<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if self.is_given() { self.parse_with(parse) } else { self.reject("is required") }
    }

    /// Returns the value as `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.raw {
            RawConfigValue::Absent => None,
            RawConfigValue::Toml(DeValue::Boolean(value)) => Some(*value),
            RawConfigValue::EnvText("true") => Some(true),
            RawConfigValue::EnvText("false") => Some(false),
            RawConfigValue::Toml(_) | RawConfigValue::EnvText(_) | RawConfigValue::EnvNotUtf8 => {
                self.reject("must be true or false")
            }
        }
    }

    /// Returns the value as a whole number within the range, converted to the number type of the
    /// caller.
    pub(super) fn number<T: TryFrom<u64>>(&self, range: RangeInclusive<u32>) -> Option<T> {
        let number = match self.raw {
            RawConfigValue::Absent => return None,
            RawConfigValue::Toml(DeValue::Integer(integer)) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            RawConfigValue::EnvText(text) => text.parse().ok(),
            RawConfigValue::Toml(_) | RawConfigValue::EnvNotUtf8 => None,
        };
        let (min, max) = (u64::from(*range.start()), u64::from(*range.end()));
        let fitting = number
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| T::try_from(number).ok());
        fitting.or_else(|| self.reject(&format!("must be a whole number from {min} to {max}")))
    }

    /// Reads a number from 0 as [`ConfigEntry::number`] does; 0 or an absent key means no limit.
    pub(super) fn limit<T: TryFrom<u64>>(&self) -> Option<T> {
        self.number::<u64>(0..=u32::MAX)
            .filter(|limit| *limit > 0)
            .and_then(|limit| T::try_from(limit).ok())
    }

    /// Returns the value as a duration from `min` to [`values::MAX_DURATION`].
    pub(super) fn duration(&self, min: Duration) -> Option<Duration> {
        self.duration_within(min..=values::MAX_DURATION)
    }

    /// Returns the value as a duration within the range.
    pub(super) fn duration_within(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text(r#"a duration with a unit, such as "30s","#)?;
        let duration = self.or_report(values::parse_duration(text))?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let (min, max) =
            (values::format_duration(*range.start()), values::format_duration(*range.end()));
        self.reject(&format!("must be from {min} to {max}"))
    }

    /// Returns the value as a size in bytes within the range.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(r#"a size with a unit, such as "64KiB","#)?;
        let bytes = self.or_report(values::parse_size(text))?;
        if range.contains(&bytes) {
            return Some(bytes);
        }
        let (min, max) = (values::format_size(*range.start()), values::format_size(*range.end()));
        self.reject(&format!("must be from {min} to {max}"))
    }

    /// Returns the elements of a list, each as an entry of its own: an array of the file, or the
    /// text of a variable split at commas.
    pub(super) fn list_items(&self) -> Option<Vec<Self>> {
        let item = |index, location, raw| {
            Self::new(self.context, format!("{}[{index}]", self.key), location, raw)
        };
        match self.raw {
            RawConfigValue::Absent => None,
            RawConfigValue::EnvText(text) if text.trim().is_empty() => Some(Vec::new()),
            RawConfigValue::EnvText(text) => {
                let parts = text.split(',').map(str::trim).enumerate();
                Some(
                    parts
                        .map(|(index, part)| {
                            item(index, self.location.clone(), RawConfigValue::EnvText(part))
                        })
                        .collect(),
                )
            }
            RawConfigValue::Toml(DeValue::Array(array)) => {
                let location = |start| self.context.location_at(start);
                let values = array.iter().enumerate();
                let item_at = |(index, value): (usize, &'a toml::Spanned<DeValue<'a>>)| {
                    item(index, location(value.span().start), RawConfigValue::Toml(value.get_ref()))
                };
                Some(values.map(item_at).collect())
            }
            RawConfigValue::Toml(other) => {
                self.reject(&format!("must be a list in square brackets, not {}", toml_kind(other)))
            }
            RawConfigValue::EnvNotUtf8 => self.reject("is not UTF-8 text"),
        }
    }

    /// Returns the elements of a list, each parsed by `parse`. An invalid element is reported and
    /// left out.
    pub(super) fn parse_list<T>(
        &self,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let items = self.list_items()?;
        Some(items.iter().filter_map(|item| item.parse_with(&parse)).collect())
    }

    /// Returns the path of a file of certificates or keys that can be read; the empty text counts
    /// as absent.
    pub(super) fn readable_path(&self) -> Option<PathBuf> {
        self.optional(|text| {
            let path = Path::new(text);
            self.context.record_dependency(path);
            let opened = File::open(path).and_then(|file| file.metadata());
            match opened {
                Ok(metadata) if metadata.is_dir() => {
                    Err(format!("{} is a directory, not a file", path.display()))
                }
                Ok(metadata) => pem::check_size(metadata.len(), path).map(|()| path.to_owned()),
                Err(error) => Err(format!("cannot read {}: {error}", path.display())),
            }
        })
    }

    /// Returns the value of a result, or reports its message.
    fn or_report<T>(&self, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.report(message)).ok()
    }

    fn reject<T>(&self, message: &str) -> Option<T> {
        self.report(message);
        None
    }
}

/// Value of a key before it is checked.
#[derive(Clone, Copy)]
pub(super) enum RawConfigValue<'a> {
    /// The key is absent.
    Absent,
    /// A value of the file.
    Toml(&'a DeValue<'a>),
    /// The text of a variable.
    EnvText(&'a str),
    /// Bytes of a variable that are not UTF-8.
    EnvNotUtf8,
}

/// Returns the name of a TOML value's kind in findings.
pub(super) fn toml_kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{environment::Environment, section::Section};
    use toml::de::DeTable;

    /// Returns the result of `read` for the key `x`, and the findings.
    fn read_entry<T>(text: &str, read: impl Fn(&ConfigEntry<'_>) -> T) -> (T, String) {
        read_entry_with(text, &Environment::default(), read)
    }

    fn read_entry_with<T>(
        text: &str,
        environment: &Environment,
        read: impl Fn(&ConfigEntry<'_>) -> T,
    ) -> (T, String) {
        let document = DeTable::parse(text).unwrap();
        let context = ParseContext::new("f", text, environment);
        let value = read(&Section::root(&context, document.get_ref()).entry("x"));
        (value, context.finish().map_or_else(|findings| findings.to_string(), |()| String::new()))
    }

    fn read_override<T>(value: &str, read: impl Fn(&ConfigEntry<'_>) -> T) -> (T, String) {
        read_entry_with("x = 'file'", &[("AUTOPLAY_RELAY__X", value)].into_iter().collect(), read)
    }

    #[test]
    fn a_wrong_kind_is_named_without_its_value() {
        assert_eq!(
            read_entry("x = 5", |x| x.text("a name").map(str::to_owned)),
            (None, "f:1: x: must be a name in quotes, not a whole number".into())
        );
        assert_eq!(
            read_entry("x = 'a'", |x| x.boolean()),
            (None, "f:1: x: must be true or false".into())
        );
        assert_eq!(
            read_entry("x = 'a'", |x| x.list_items().is_some()).1,
            "f:1: x: must be a list in square brackets, not text"
        );
        let (none, found) = read_entry("x = 30", |x| x.duration(Duration::ZERO));
        assert_eq!((none, found.contains(r#"such as "30s""#)), (None, true), "{found}");
    }

    #[test]
    fn a_number_out_of_its_range_or_with_a_sign_or_fraction_is_found() {
        let message = "f:1: x: must be a whole number from 1 to 255";
        for text in ["x = 0", "x = 256", "x = -1", "x = 1.0", "x = '1'", "x = 99999999999999999999"]
        {
            assert_eq!(
                read_entry(text, |x| x.number::<u8>(1..=255)),
                (None, message.to_owned()),
                "{text}"
            );
        }
        assert_eq!(read_entry("x = 0xff", |x| x.number::<u8>(1..=255)), (Some(255), String::new()));
        assert_eq!(read_entry("x = 1_0", |x| x.number::<u8>(1..=255)), (Some(10), String::new()));
    }

    #[test]
    fn zero_means_no_limit() {
        assert_eq!(read_entry("x = 0", |x| x.limit::<u32>()), (None, String::new()));
        assert_eq!(read_entry("x = 7", |x| x.limit::<u32>()), (Some(7), String::new()));
    }

    #[test]
    fn a_variable_overrides_the_value_of_the_file() {
        assert_eq!(read_override("true", |x| x.boolean()), (Some(true), String::new()));
        assert_eq!(read_override("12", |x| x.number::<u32>(0..=20)), (Some(12), String::new()));
        assert_eq!(
            read_override("yes", |x| x.boolean()).1,
            "AUTOPLAY_RELAY__X: x: must be true or false"
        );
    }

    #[test]
    fn a_variables_list_is_separated_by_commas_and_empty_is_no_element() {
        let parse = |text: &str| Ok(text.to_owned());
        assert_eq!(
            read_override("a, b", |x| x.parse_list(parse)).0,
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(read_override("", |x| x.parse_list(parse)).0, Some(Vec::new()));
    }

    #[test]
    fn a_bad_element_is_found_at_its_own_line() {
        let text = "x = [\n'1',\n2,\n'z']";
        let (values, found) = read_entry(text, |x| {
            x.parse_list(|text| text.parse::<u8>().map_err(|error| error.to_string()))
        });
        assert_eq!(values, Some(vec![1]));
        assert_eq!(
            found,
            "f:3: x[1]: must be text in quotes, not a whole number\nf:4: x[2]: invalid digit found in string"
        );
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_found() {
        let environment = Environment::with_bytes("AUTOPLAY_RELAY__X", b"\xff");
        let (none, found) =
            read_entry_with("", &environment, |x| x.text("text").map(str::to_owned));
        assert_eq!((none, found.as_str()), (None, "AUTOPLAY_RELAY__X: x: is not UTF-8 text"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_found_by_its_path() {
        let (none, found) = read_entry("x = '/no/such/file'", |x| x.readable_path());
        assert_eq!(none, None);
        assert!(found.starts_with("f:1: x: cannot read /no/such/file: "), "{found}");
        assert_eq!(
            read_entry("x = '/'", |x| x.readable_path()).1,
            "f:1: x: / is a directory, not a file"
        );
        assert_eq!(read_entry("x = ''", |x| x.readable_path()), (None, String::new()));
    }
}
