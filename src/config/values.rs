//! Grammars of durations and sizes, for parsing and formatting.
//!
//! In: text of the operator. Out: [`Duration`]s and numbers of bytes, and the same as text again.
//! The admin API uses the same grammars.
//!
//! May use: no other module.

use std::time::Duration;

use super::findings::quoted;

/// Maximum duration, ten years. No time of the relay is longer, and adding it to a clock cannot
/// overflow.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Minimum duration of times that must not be zero.
pub(super) const MIN_DURATION: Duration = Duration::from_nanos(1);

/// Units of sizes, in the order in which formatting tries them: the first unit that divides a size
/// is used.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of durations, largest first, in nanoseconds.
const DURATION_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Parses a duration such as `30s`, `1h 30m` or `7d`.
///
/// # Errors
///
/// A message that says what to write instead, if the unit is missing, the text is not a duration,
/// or the duration is longer than [`MAX_DURATION`].
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    // `humantime` accepts a bare 0; here every duration needs a unit.
    let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
    match humantime::parse_duration(text) {
        Ok(duration) if has_unit && duration <= MAX_DURATION => Ok(duration),
        Ok(_) if has_unit => Err(format!("{} is longer than ten years", quoted(text))),
        _ => Err(format!(
            "{} is not a duration; write a number with a unit, e.g. 30s, 5m or 24h",
            quoted(text)
        )),
    }
}

/// Formats a duration in the grammar of [`parse_duration`]: `75s`, `5m`, `500ms`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let fitting = DURATION_UNITS
        .iter()
        .find(|(_, unit)| nanoseconds > 0 && nanoseconds.is_multiple_of(*unit));
    fitting.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", nanoseconds / unit))
}

/// Parses a size in bytes such as `1MiB`, `64KiB`, `512B` or `10MB`.
///
/// # Errors
///
/// A message that says what to write instead, if the unit is missing, the text is not a size, or
/// the size does not fit an `i64`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|next: char| !next.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start());
    let (Some((_, factor)), false) = (unit, digits.is_empty()) else {
        return Err(format!(
            "{} is not a size; write a whole number with a unit, e.g. 512B, 64KiB or 1GiB",
            quoted(text)
        ));
    };
    let bytes = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(*factor));
    // SQLite and TOML have signed integers only.
    let countable = bytes.filter(|bytes| i64::try_from(*bytes).is_ok());
    countable.ok_or_else(|| format!("{} is too large; write less than 8388608TiB", quoted(text)))
}

/// Formats a size in the grammar of [`parse_size`]: `64KiB`, `1500B`, `2MB`.
pub(crate) fn format_size(bytes: u64) -> String {
    let fitting = SIZE_UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    fitting.map_or_else(|| "0B".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let seconds = |text: &str| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("30s"), Ok(30.0));
        assert_eq!(seconds("1h 30m"), Ok(5400.0));
        assert_eq!(seconds("500ms"), Ok(0.5));
        assert_eq!(seconds("7d"), Ok(604_800.0));
        assert_eq!(seconds("0s"), Ok(0.0));
    }

    #[test]
    fn a_duration_without_a_unit_is_refused() {
        for text in ["30", "0", "", " ", "s", "-5s", "5 parsecs", "99999999999999999999s", "1s 5"] {
            assert!(parse_duration(text).unwrap_err().contains("is not a duration"), "{text}");
        }
        assert!(parse_duration("11years").unwrap_err().contains("longer than ten years"));
    }

    #[test]
    fn sizes_are_whole_numbers_with_units() {
        assert_eq!(parse_size("512B"), Ok(512));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("1 MiB"), Ok(1_048_576));
        assert_eq!(parse_size("1GiB"), Ok(1_073_741_824));
        assert_eq!(parse_size("2kB"), Ok(2_000));
        assert_eq!(parse_size("3MB"), Ok(3_000_000));
        assert_eq!(parse_size("4GB"), Ok(4_000_000_000));
    }

    #[test]
    fn a_size_without_a_unit_or_beyond_the_maximum_is_refused() {
        for text in ["512", "", "B", "1.5MiB", "-1B", "1mib", "1 M", "1é"] {
            assert!(parse_size(text).unwrap_err().contains("is not a size"), "{text}");
        }
        for text in ["9000000TiB", "9223372036854775808B", "99999999999999999999999B"] {
            assert!(parse_size(text).unwrap_err().contains("is too large"), "{text}");
        }
    }

    #[test]
    fn formatted_values_parse_to_the_same_values() {
        for text in ["0s", "75s", "30s", "5m", "23h", "7d", "500ms", "3us", "1ns"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["0B", "1MiB", "64KiB", "1GiB", "1001B", "2kB", "3MB"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
    }
}
