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

/// Where one relay after the other keeps its log.
pub(crate) struct DataDir {
    _directory: Option<TempDir>,
    path: PathBuf,
}

impl DataDir {
    /// A directory that is not there yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        Self { _directory: Some(directory), path }
    }

    /// One that somebody else has made, and removes.
    pub(crate) fn at(path: &Path) -> Self {
        Self { _directory: None, path: path.to_owned() }
    }

    /// A relay behind this connector that keeps its log here, and so little in memory that it must
    /// read the store.
    pub(crate) fn relay(&self, connector: &Connector) -> Relay {
        self.setup(connector, "").start()
    }

    /// The same in the making, with further lines of `[log]`.
    pub(crate) fn setup(&self, connector: &Connector, lines: &str) -> Setup {
        let memory = if lines.contains("memory_events") { "" } else { "memory_events = 16" };
        Setup::behind(connector)
            .log(&format!("data_dir = '{}'\n{memory}\n{lines}", self.path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("relay.db")
    }

    /// The names of the files in it.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(&self.path).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The files that were set aside because they were damaged.
    pub(crate) fn set_aside(&self) -> Vec<PathBuf> {
        let names = self.names().into_iter().filter(|name| name.starts_with("relay.db.damaged-"));
        names
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .map(|name| self.path.join(name))
            .collect()
    }
}
