//! Source of a configuration, which can be read repeatedly.
//!
//! In: a file, the environment, the command line. Out: the current configuration, and the files
//! that it depends on.
//!
//! May use: no other module.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    AllowAnonymous, Config, ConfigDiff, Environment,
    findings::{ConfigLocation, Finding, Findings},
};

/// A configuration file with the environment and the flag that also count. It has no `Debug`
/// because the environment holds secrets.
#[derive(Clone)]
pub(crate) struct ConfigSource {
    path: PathBuf,
    environment: Environment,
    anonymous: AllowAnonymous,
}

/// Result of one read.
#[derive(Debug)]
pub(crate) struct ConfigSnapshot {
    /// The configuration, or all findings.
    pub(crate) config: Result<Config, Findings>,
    /// The file and all files that it names, including missing and invalid ones.
    pub(crate) dependencies: BTreeSet<PathBuf>,
}

impl ConfigSource {
    /// Creates the source of the file at `path`, with overrides from the environment.
    pub(crate) fn new(path: PathBuf, environment: Environment, anonymous: AllowAnonymous) -> Self {
        Self { path, environment, anonymous }
    }

    /// Reads the file, and the files that it names.
    pub(crate) fn read(&self) -> ConfigSnapshot {
        let mut dependencies = BTreeSet::new();
        let config = Config::load_tracking_files(
            &self.path,
            &self.environment,
            self.anonymous,
            &mut dependencies,
        );
        ConfigSnapshot { config, dependencies }
    }

    /// Returns the configuration in force after a reload from `running` to `new`, and the
    /// differences.
    ///
    /// # Errors
    ///
    /// A finding if the result would admit strangers, because a part of `new` waits for a restart.
    pub(crate) fn plan_reload(
        &self,
        running: &Config,
        new: Config,
    ) -> Result<(Config, ConfigDiff), Findings> {
        let (next, diff) = running.merge_reload(new);
        match next.exposure_error(self.anonymous) {
            None => Ok((next, diff)),
            Some(message) => {
                let location = ConfigLocation::File(self.path.display().to_string());
                Err(Finding { location, key: None, message: message.to_owned() }.into())
            }
        }
    }
}
