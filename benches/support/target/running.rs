//! A measured process, from its start to its end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command},
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{
    relay_files::RelayFiles,
    spawn::{self, Complaints},
};
use crate::support::{Result, publisher::Publishing};
use tempfile::TempDir;

/// A running target. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) child: Child,
    /// Address for subscribers.
    pub(crate) address: SocketAddr,
    /// Address of its metrics, if it has any.
    pub(crate) admin: Option<SocketAddr>,
    /// How events are published to it, if it does not read an upstream.
    pub(crate) publishing: Option<Publishing>,
    complaints: Complaints,
    pub(super) relay_files: Option<RelayFiles>,
    /// The files of a target other than the relay.
    pub(super) files: Option<TempDir>,
}

impl Target {
    /// Wraps a process of which nothing else is known yet.
    pub(super) fn of(child: Child, complaints: Complaints) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            child,
            address,
            admin: None,
            publishing: None,
            complaints,
            relay_files: None,
            files: None,
        }
    }

    /// Shuts it down gracefully. Returns how long that took.
    ///
    /// # Errors
    ///
    /// If it fails to end with success.
    pub(crate) fn stop(mut self, remarks: &mut Vec<String>) -> Result<Duration> {
        let began = Instant::now();
        let signaled = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let ended = self.child.wait()?;
        if !signaled.success() || !ended.success() {
            return Err(format!("the relay did not end in order: {ended}").into());
        }
        let stopping = began.elapsed();
        remarks.extend(self.complaints());
        Ok(stopping)
    }

    /// Returns the files of its store.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let data = self
            .relay_files
            .as_ref()
            .and_then(|relay_files| relay_files.data.as_ref())
            .ok_or("the target keeps no files")?;
        fs::read_dir(data)?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Returns its process id; the process may have children.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the warnings and errors logged so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how it ended, if it did.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(status.to_string())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        spawn::end(&mut self.child);
    }
}
