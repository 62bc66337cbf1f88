//! `[log]` and `[egress]`: how many events are kept, and which addresses the relay may connect to.
//!
//! In: the sections. Out: [`LogConfig`] and [`EgressConfig`].
//!
//! May use: no other module.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{keys::config_keys, network::Network, section::Section, values};

config_keys! {
    /// Bounds on the events that are kept for subscribers that resume. The store is opened and the
    /// rings are created with these values, so all of them wait for a restart.
    struct LogConfig |section, key, entry| {
        /// Maximum events of one product in memory.
        // Several minutes of a busy product: longer than a deploy of its agents takes.
        memory_events: usize =
            AtRestart(entry().number(MIN_MEMORY_EVENTS..=u32::MAX).unwrap_or(65_536));
        /// Maximum bytes of one product in memory.
        // A kibibyte per event at the number above, which is the size of `actions` events.
        memory_bytes: u64 = AtRestart(entry().size(MEMORY_BYTES_RANGE).unwrap_or(64 << 20));
        /// Directory of the store; [`None`] = memory only.
        data_dir: Option<PathBuf> = AtRestart(entry().optional(|text| Ok(PathBuf::from(text))));
        /// Time for which the store keeps an event.
        // An agent's outage overnight is found in the morning.
        retention: Duration = AtRestart(
            entry().duration(values::MIN_DURATION).unwrap_or(Duration::from_secs(24 * 60 * 60))
        );
        /// Maximum size of the store, in bytes.
        // Fits on the smallest volume that clouds offer, next to everything else on it.
        retention_bytes: u64 = AtRestart(entry().size(STORE_BYTES_RANGE).unwrap_or(1 << 30));
        /// Time for which dead letters are kept.
        // A receiver that is down over a weekend and a holiday can still get everything.
        dead_letter_retention: Duration = AtRestart(
            entry().duration(values::MIN_DURATION).unwrap_or(Duration::from_secs(7 * 24 * 60 * 60))
        );
        /// Maximum size of all dead letters, in bytes.
        // A quarter of the store: dead letters are the exception.
        dead_letter_bytes: u64 = AtRestart(entry().size(STORE_BYTES_RANGE).unwrap_or(256 << 20));
    }
}

config_keys! {
    /// Addresses that connections opened by the relay may reach.
    struct EgressConfig |section, key, entry| {
        /// Networks that webhooks may reach although they are not public.
        allow_networks: Vec<Network> =
            AtReload(entry().parse_list(Network::parse).unwrap_or_default());
        /// PEM file of additional roots for https.
        ca_file: Option<PathBuf> = AtReload(entry().readable_path());
    }
}

/// A shorter ring would evict entries that are being sent.
const MIN_MEMORY_EVENTS: u32 = 16;
/// The same minimum, in bytes, and the maximum of a count in SQLite.
const MEMORY_BYTES_RANGE: RangeInclusive<u64> = 64 << 10..=i64::MAX as u64;
/// As much as a count in SQLite can be.
const STORE_BYTES_RANGE: RangeInclusive<u64> = 1..=i64::MAX as u64;

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
