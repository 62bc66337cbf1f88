//! Differences between the running configuration and a new one.
//!
//! In: pairs of old and new values by key. Out: the value in force of each key, and the names of
//! the keys that differ. Values are reported only of keys that wait for a restart, none of which
//! is a secret.
//!
//! May use: no other module.

/// Differences between two configurations.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct ConfigDiff {
    /// Keys whose change applies now.
    pub(crate) applied: Vec<String>,
    /// Keys whose change waits for a restart, each with the value in force.
    pub(crate) restart_required: Vec<String>,
    /// Every key of these configurations that only a restart changes, including unchanged keys.
    pub(crate) restart_only: Vec<String>,
}

impl ConfigDiff {
    /// Takes the new value of a key, and records a change, once if several keys have one name.
    pub(super) fn take_new<T: PartialEq>(&mut self, key: &str, old: &T, new: T) -> T {
        if *old != new && self.applied.last().is_none_or(|last| last != key) {
            self.applied.push(key.to_owned());
        }
        new
    }

    /// Keeps the old value of a key that only a restart changes, and records a change.
    pub(super) fn keep_current<T: Clone + PartialEq>(
        &mut self,
        key: &str,
        old: &T,
        new: &T,
        in_force: &str,
    ) -> T {
        self.restart_only.extend(key.split(", ").map(str::to_owned));
        if old != new {
            self.restart_required.push(format!("{key} (in force: {in_force})"));
        }
        old.clone()
    }
}
