//! A directory for a durable log, which outlives the relay.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    connector::Connector,
    relay::{Relay, Setup},
};

/// Data directory of several relays, one after the other.
pub(crate) struct DataDir {
    _directory: Option<TempDir>,
    path: PathBuf,
}

impl DataDir {
    /// Returns a path at which no directory exists yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        Self { _directory: Some(directory), path }
    }

    /// Returns a directory that the caller owns and removes.
    pub(crate) fn at(path: &Path) -> Self {
        Self { _directory: None, path: path.to_owned() }
    }

    /// Starts a relay behind this connector with its log in this directory, and so few events in
    /// memory that it must read the store.
    pub(crate) fn relay(&self, connector: &Connector) -> Relay {
        self.setup(connector, "").start()
    }

    /// Returns the setup of such a relay, with further lines of `[log]`.
    pub(crate) fn setup(&self, connector: &Connector, lines: &str) -> Setup {
        let memory = if lines.contains("memory_events") { "" } else { "memory_events = 16" };
        Setup::behind(connector)
            .log(&format!("data_dir = '{}'\n{memory}\n{lines}", self.path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the database.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("relay.db")
    }

    /// Returns the names of the files in the directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(&self.path).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Returns the databases that were set aside as damaged.
    pub(crate) fn set_aside(&self) -> Vec<PathBuf> {
        let names = self.names().into_iter().filter(|name| name.starts_with("relay.db.damaged-"));
        names
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .map(|name| self.path.join(name))
            .collect()
    }
}
