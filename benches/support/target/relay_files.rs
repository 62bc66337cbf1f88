//! The files of a relay: its configuration and its store.

use std::{fs, net::SocketAddr, path::PathBuf};

use tempfile::TempDir;

use crate::support::{Result, payload::PRODUCT, tls};

/// The files that a relay reads at its start and at its restart.
#[derive(Debug)]
pub(super) struct RelayFiles {
    config: TempDir,
    /// `None` for a log in memory.
    pub(super) data: Option<TempDir>,
    /// Further tables of its configuration.
    tables: String,
    /// Maximum of events in memory, if not the default.
    memory_events: Option<usize>,
    /// Interval of heartbeats, if not the default.
    heartbeat_interval: Option<&'static str>,
    /// Whether it serves TLS.
    is_secure: bool,
}

impl RelayFiles {
    pub(super) fn new(upstream: SocketAddr, data: Option<TempDir>, tables: &str) -> Result<Self> {
        Self { data, tables: tables.to_owned(), ..Self::plain()? }.write(upstream)
    }

    /// Returns the files of a relay with TLS.
    pub(super) fn secure(upstream: SocketAddr) -> Result<Self> {
        tls::issue()?;
        Self { is_secure: true, ..Self::plain()? }.write(upstream)
    }

    /// Returns the files of a relay with a small log.
    pub(super) fn with_small_log(upstream: SocketAddr, memory_events: usize) -> Result<Self> {
        Self { memory_events: Some(memory_events), ..Self::plain()? }.write(upstream)
    }

    /// Returns the files of a relay that sends no heartbeat while it is measured.
    pub(super) fn without_heartbeats(upstream: SocketAddr) -> Result<Self> {
        Self { heartbeat_interval: Some("1h"), ..Self::plain()? }.write(upstream)
    }

    fn plain() -> Result<Self> {
        let config = tempfile::tempdir()?;
        Ok(Self {
            config,
            data: None,
            tables: String::new(),
            memory_events: None,
            heartbeat_interval: None,
            is_secure: false,
        })
    }

    fn write(self, upstream: SocketAddr) -> Result<Self> {
        fs::write(self.config(), self.configuration(upstream))?;
        Ok(self)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.config.path().join("relay.toml")
    }

    /// Returns the defaults, except for what a bench on loopback needs.
    fn configuration(&self, upstream: SocketAddr) -> String {
        let data_dir =
            self.data.as_ref().map_or_else(String::new, |data| data.path().display().to_string());
        let tables = &self.tables;
        let memory = self
            .memory_events
            .map_or_else(String::new, |events| format!("memory_events = {events}"));
        let heartbeats = self
            .heartbeat_interval
            .map_or_else(String::new, |interval| format!("heartbeat_interval = \"{interval}\""));
        let files = [("tls_cert_file", tls::certificate()), ("tls_key_file", tls::key())];
        let files = files.iter().map(|(key, file)| format!("{key} = '{}'\n", file.display()));
        let secure = if self.is_secure { files.collect() } else { String::new() };
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
max_connects_per_second = 0
write_timeout = "10m"
{heartbeats}
{secure}

[log]
data_dir = "{data_dir}"
retention_bytes = "64GiB"
{memory}

[[upstreams]]
product_id = "{PRODUCT}"
url = "http://{upstream}/stream/{PRODUCT}"
token = "not-a-secret"

[auth]
allow_anonymous = true

{tables}
"#
        )
    }
}

/// Creates a directory for a store on a real disk, which the directory for temporary files may not
/// be on.
pub(super) fn data_dir() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-data-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}
