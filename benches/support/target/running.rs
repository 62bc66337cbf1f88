//! A process that is measured, from its start to its end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command},
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{
    home::Home,
    spawn::{self, Complaints},
};
use crate::support::{Result, publisher::Publishing};
use tempfile::TempDir;

/// A running one. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) child: Child,
    /// Where subscribers go.
    pub(crate) address: SocketAddr,
    /// Where metrics are, if it has any.
    pub(crate) admin: Option<SocketAddr>,
    /// How events come to it, if it does not fetch them.
    pub(crate) publishing: Option<Publishing>,
    complaints: Complaints,
    pub(super) home: Option<Home>,
    /// The files of one that is no relay.
    pub(super) files: Option<TempDir>,
}

impl Target {
    /// A process, with nothing known of it yet.
    pub(super) fn of(child: Child, complaints: Complaints) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self { child, address, admin: None, publishing: None, complaints, home: None, files: None }
    }

    /// Ends it in order. Returns how long that took.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub(crate) fn stop(mut self, remarks: &mut Vec<String>) -> Result<Duration> {
        let began = Instant::now();
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let ended = self.child.wait()?;
        if !told.success() || !ended.success() {
            return Err(format!("the relay did not end in order: {ended}").into());
        }
        let stopping = began.elapsed();
        remarks.extend(self.complaints());
        Ok(stopping)
    }

    /// The files that it keeps.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let data = self
            .home
            .as_ref()
            .and_then(|home| home.data.as_ref())
            .ok_or("the target keeps no files")?;
        fs::read_dir(data)?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Its process. There may be others below it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Warnings and errors it has logged so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, if it did.
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
