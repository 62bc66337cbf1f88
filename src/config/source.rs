//! Where a configuration comes from, to be read as often as need be.
//!
//! In: a file, the environment, the command line. Out: what they say now, and in which files that stands.
//!
//! May use: the door of the room.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    AllowAnonymous, Config, Difference, Environment,
    findings::{Finding, Findings, Place},
};

/// A configuration file, and what counts beside it. Has no `Debug`: the environment holds secrets.
#[derive(Clone)]
pub(crate) struct Source {
    path: PathBuf,
    environment: Environment,
    anonymous: AllowAnonymous,
}

/// What was found at one look.
#[derive(Debug)]
pub(crate) struct Look {
    /// The configuration, or all that is wrong.
    pub(crate) config: Result<Config, Findings>,
    /// The file, and all that it names, whether they are as they should be or not.
    pub(crate) files: BTreeSet<PathBuf>,
}

impl Source {
    /// The file at `path`, with overrides from the environment.
    pub(crate) fn new(path: PathBuf, environment: Environment, anonymous: AllowAnonymous) -> Self {
        Self { path, environment, anonymous }
    }

    /// Reads all of it.
    pub(crate) fn read(&self) -> Look {
        let mut files = BTreeSet::new();
        let config = Config::load_noting(&self.path, &self.environment, self.anonymous, &mut files);
        Look { config, files }
    }

    /// What comes into force when `new` follows upon `standing`.
    ///
    /// # Errors
    ///
    /// When that would let strangers in, because a part of `new` waits for a restart.
    pub(crate) fn succession(&self, standing: &Config, new: Config) -> Result<(Config, Difference), Findings> {
        let (next, difference) = standing.succeeded_by(new);
        match next.exposed(self.anonymous) {
            None => Ok((next, difference)),
            Some(message) => {
                let place = Place::File(self.path.display().to_string());
                Err(Finding { place, key: None, message: message.to_owned() }.into())
            }
        }
    }
}
