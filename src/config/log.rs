//! `[log]` and `[egress]`: how many events are kept, and which addresses the relay may connect to.
//!
//! In: the sections. Out: [`LogConfig`] and [`EgressConfig`].
//!
//! May use: no other module.

use std::path::PathBuf;
use std::time::Duration;

use super::{network::Network, section::Section, values};

/// Bounds on the events that are kept for subscribers that resume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LogConfig {
    /// Maximum events of one product in memory.
    pub(crate) memory_events: usize,
    /// Maximum bytes of one product in memory.
    pub(crate) memory_bytes: u64,
    /// Directory of the store; [`None`] = memory only.
    pub(crate) data_dir: Option<PathBuf>,
    /// Time for which the store keeps an event.
    pub(crate) retention: Duration,
    /// Maximum size of the store, in bytes.
    pub(crate) retention_bytes: u64,
    /// Time for which dead letters are kept.
    pub(crate) dead_letter_retention: Duration,
    /// Maximum size of all dead letters, in bytes.
    pub(crate) dead_letter_bytes: u64,
}

/// Addresses that connections opened by the relay may reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EgressConfig {
    /// Networks that webhooks may reach although they are not public.
    pub(crate) allow_networks: Vec<Network>,
    /// PEM file of additional roots for https.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Several minutes of a busy product: longer than a deploy of its agents takes.
const DEFAULT_MEMORY_EVENTS: usize = 65_536;
/// A kibibyte per event at the number above, which is the size of `actions` events.
const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;
/// An agent's outage overnight is found in the morning.
const DEFAULT_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Fits on the smallest volume that clouds offer, next to everything else on it.
const DEFAULT_RETENTION_BYTES: u64 = 1 << 30;
/// A receiver that is down over a weekend and a holiday can still get everything.
const DEFAULT_DEAD_LETTER_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A quarter of the store: dead letters are the exception.
const DEFAULT_DEAD_LETTER_BYTES: u64 = 256 << 20;
/// A shorter ring would evict entries that are being sent.
const MIN_MEMORY_EVENTS: u32 = 16;
/// The same minimum, in bytes.
const MIN_MEMORY_BYTES: u64 = 64 << 10;
/// Maximum of a count in SQLite.
const MAX_STORE_BYTES: u64 = i64::MAX as u64;

impl LogConfig {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let log = Self {
            memory_events: section
                .entry("memory_events")
                .number(MIN_MEMORY_EVENTS..=u32::MAX)
                .unwrap_or(DEFAULT_MEMORY_EVENTS),
            memory_bytes: read_size(
                &mut section,
                "memory_bytes",
                MIN_MEMORY_BYTES,
                DEFAULT_MEMORY_BYTES,
            ),
            data_dir: section.entry("data_dir").optional(|text| Ok(PathBuf::from(text))),
            retention: section
                .entry("retention")
                .duration(values::MIN_DURATION)
                .unwrap_or(DEFAULT_RETENTION),
            retention_bytes: read_size(&mut section, "retention_bytes", 1, DEFAULT_RETENTION_BYTES),
            dead_letter_retention: section
                .entry("dead_letter_retention")
                .duration(values::MIN_DURATION)
                .unwrap_or(DEFAULT_DEAD_LETTER_RETENTION),
            dead_letter_bytes: read_size(
                &mut section,
                "dead_letter_bytes",
                1,
                DEFAULT_DEAD_LETTER_BYTES,
            ),
        };
        section.finish();
        log
    }
}

impl EgressConfig {
    /// Reads the section.
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let egress = Self {
            allow_networks: section
                .entry("allow_networks")
                .parse_list(Network::parse)
                .unwrap_or_default(),
            ca_file: section.entry("ca_file").readable_path(),
        };
        section.finish();
        egress
    }
}

fn read_size(section: &mut Section<'_>, name: &str, min: u64, default: u64) -> u64 {
    section.entry(name).size(min..=MAX_STORE_BYTES).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{findings, parsed, parsed_with};
    use std::path::Path;

    #[test]
    fn every_key_of_the_section_is_checked() {
        let text = "[log]\nmemory_events = 15\nmemory_bytes = '63KiB'\ndata_dir = 1\nretention = '0s'\nretention_bytes = '0B'\n\
                    dead_letter_retention = '1'\ndead_letter_bytes = '1'\nx = 1\n[egress]\nallow_networks = ['x']\nca_file = '/no/ca'";
        let found = findings(text);
        let keys: Vec<&str> = found.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        let expected = [
            "log.memory_events",
            "log.memory_bytes",
            "log.data_dir",
            "log.retention",
            "log.retention_bytes",
            "log.dead_letter_retention",
            "log.dead_letter_bytes",
            "log.x",
            "egress.allow_networks[0]",
            "egress.ca_file",
        ];
        assert_eq!(keys, expected, "{found}");
    }

    #[test]
    fn a_file_of_roots_has_a_bound() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("[egress]\nca_file = '{}'", file.path().display());
        file.as_file().set_len(1 << 20).unwrap();
        assert_eq!(parsed(&text).egress.ca_file.as_deref(), Some(file.path()));
        file.as_file().set_len((1 << 20) + 1).unwrap();
        let expected = format!("egress.ca_file: {} is larger than 1 MiB; ", file.path().display());
        assert!(findings(&text).contains(&expected), "{}", findings(&text));
    }

    #[test]
    fn an_empty_data_dir_is_memory_only() {
        assert_eq!(parsed("[log]\ndata_dir = ''").log.data_dir, None);
        assert_eq!(
            parsed("[log]\ndata_dir = '/data'").log.data_dir.as_deref(),
            Some(Path::new("/data"))
        );
    }

    #[test]
    fn the_environment_overrides_both_sections() {
        let environment = [
            ("AUTOPLAY_RELAY__LOG__MEMORY_EVENTS", "16"),
            ("AUTOPLAY_RELAY__LOG__DATA_DIR", ""),
            ("AUTOPLAY_RELAY__EGRESS__ALLOW_NETWORKS", "10.0.0.0/8, ::1"),
        ];
        let config = parsed_with(
            "[log]\ndata_dir = '/data'\nmemory_events = 20",
            &environment.into_iter().collect(),
        );
        assert_eq!((config.log.memory_events, config.log.data_dir), (16, None));
        let networks: Vec<String> =
            config.egress.allow_networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    }
}
