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
    /// Takes the new value of a key, and records a change.
    pub(super) fn take_new<T: PartialEq>(&mut self, key: &str, old: &T, new: T) -> T {
        if *old != new {
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
        display: impl Fn(&T) -> String,
    ) -> T {
        self.restart_only.extend(key.split(", ").map(str::to_owned));
        if old != new {
            self.restart_required.push(format!("{key} (in force: {})", display(old)));
        }
        old.clone()
    }
}

/// Merges an array of tables. Tables are matched by name, in any order.
pub(super) fn merge_tables<T>(
    array: &str,
    old: &[T],
    new: Vec<T>,
    name: impl Fn(&T) -> &str,
    merge: impl Fn(&str, &T, T, &mut ConfigDiff) -> T,
    diff: &mut ConfigDiff,
) -> Vec<T> {
    let unlisted = old.iter().filter(|old| new.iter().all(|new| name(new) != name(old)));
    let removed: Vec<String> =
        unlisted.map(|old| format!("{array}[{}] removed", name(old))).collect();
    let next = new.into_iter().map(|new| {
        let at = format!("{array}[{}]", name(&new));
        match old.iter().find(|old| name(old) == name(&new)) {
            Some(old) => merge(&at, old, new, diff),
            None => {
                diff.applied.push(format!("{at} added"));
                new
            }
        }
    });
    let next = next.collect();
    diff.applied.extend(removed);
    next
}
