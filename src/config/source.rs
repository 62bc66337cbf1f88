//! Where a configuration comes from, to be read as often as need be.
//!
//! In: a file, the environment, the command line. Out: what they say now, and in which files that
//! stands.
//!
//! May use: no other module.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    AllowAnonymous, Config, ConfigDiff, Environment,
    findings::{ConfigLocation, Finding, Findings},
};

/// A configuration file, and what counts beside it. Has no `Debug`: the environment holds secrets.
#[derive(Clone)]
pub(crate) struct ConfigSource {
    path: PathBuf,
    environment: Environment,
    anonymous: AllowAnonymous,
}

/// What was found at one look.
#[derive(Debug)]
pub(crate) struct ConfigSnapshot {
    /// The configuration, or all that is wrong.
    pub(crate) config: Result<Config, Findings>,
    /// The file, and all that it names, whether they are as they should be or not.
    pub(crate) dependencies: BTreeSet<PathBuf>,
}

impl ConfigSource {
    /// The file at `path`, with overrides from the environment.
    pub(crate) fn new(path: PathBuf, environment: Environment, anonymous: AllowAnonymous) -> Self {
        Self { path, environment, anonymous }
    }

    /// Reads all of it.
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

    /// What comes into force when `new` follows upon `standing`.
    ///
    /// # Errors
    ///
    /// When that would let strangers in, because a part of `new` waits for a restart.
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
