//! Keys of the configuration: one line of [`config_keys`] is all that the code says about a key.
//!
//! In: the lines of a section. Out: its struct, and how its keys are read, merged on a reload, and
//! printed by `check`. Each type of values says once how `check` prints it.
//!
//! May use: `event`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use toml::Value;

use super::{
    address::{HostAndPort, HttpUrl, Origin},
    diff::ConfigDiff,
    masked::MaskedToml,
    network::Network,
    secret::{MASK, Secret},
    section::join_path,
    values::{format_duration, format_size},
};
use crate::event::{Only, ProductId, SessionId, UserId};

/// When a changed key comes into force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ReloadRule {
    /// The reload applies it.
    AtReload,
    /// The relay keeps the old value until it is restarted.
    AtRestart,
    /// The reload applies it, and reports that the table has changed, whichever key it was.
    WithTable,
    /// The keys of the section or of the tables have rules of their own.
    ByKey,
}

/// Defines a section by its keys, or the tables of an array, each known `by` one of its keys.
///
/// Each line is `name: Type = Rule(read);`. The expression `read` sees the section, the name of the
/// key, a function for its entry, and the arguments after them. A table is left out if a `?` of one
/// of its keys finds nothing; the other keys are read all the same, so that all findings come
/// together.
macro_rules! config_keys {
    (
        $(#[$attribute:meta])*
        struct $struct:ident { $($(#[$doc:meta])* $key:ident: $type:ty = $rule:ident;)* }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, Eq, PartialEq)]
        pub(crate) struct $struct { $($(#[$doc])* pub(crate) $key: $type,)* }

        impl $crate::config::keys::ConfigKeys for $struct {
            fn merge_keys(
                &self,
                new: Self,
                section: &str,
                diff: &mut $crate::config::diff::ConfigDiff,
            ) -> Self {
                use $crate::config::keys::{ConfigKey, ConfigValue, ReloadRule};
                Self { $($key: {
                    let key = ConfigKey { section, name: stringify!($key) };
                    self.$key.merge(new.$key, key, ReloadRule::$rule, diff)
                },)* }
            }

            fn write_keys(&self, section: &str, document: &mut $crate::config::masked::MaskedToml) {
                use $crate::config::keys::{ConfigKey, ConfigValue};
                $(self.$key.write(ConfigKey { section, name: stringify!($key) }, document);)*
            }
        }
    };
    (
        $(#[$attribute:meta])*
        struct $struct:ident
        |$section:ident, $name:ident, $entry:ident $(, $argument:ident: $kind:ty)*|
        { $($(#[$doc:meta])* $key:ident: $type:ty = $rule:ident($read:expr);)* }
    ) => {
        config_keys! {
            $(#[$attribute])* struct $struct { $($(#[$doc])* $key: $type = $rule;)* }
        }

        impl $struct {
            /// Reads the keys of the section; a default replaces each invalid value.
            pub(super) fn read_keys($section: &mut Section<'_> $(, $argument: $kind)*) -> Self {
                Self { $($key: config_keys!(@read $section $name $entry, $key, $read),)* }
            }
        }
    };
    (
        $(#[$attribute:meta])*
        struct $struct:ident by $id:ident
        |$section:ident, $name:ident, $entry:ident $(, $argument:ident: $kind:ty)*|
        { $($(#[$doc:meta])* $key:ident: $type:ty = $rule:ident($read:expr);)* }
    ) => {
        config_keys! {
            $(#[$attribute])* struct $struct { $($(#[$doc])* $key: $type = $rule;)* }
        }

        impl $struct {
            fn read_keys($section: &mut Section<'_> $(, $argument: $kind)*) -> Option<Self> {
                $(#[allow(unused_mut)]
                let mut $key =
                    || Some(config_keys!(@read $section $name $entry, $key, $read));
                let $key = $key();)*
                Some(Self { $($key: $key?,)* })
            }
        }

        impl $crate::config::keys::ConfigTable for $struct {
            fn id(&self) -> &str {
                self.$id.as_str()
            }
        }
    };
    (@read $section:ident $name:ident $entry:ident, $key:ident, $read:expr) => {{
        // Few keys need more than their entry.
        #[allow(unused_variables)]
        let $name = stringify!($key);
        #[allow(unused_variables, unused_mut)]
        let mut $entry = || $section.entry($name);
        $read
    }};
}

pub(super) use config_keys;

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfigKey<'a> {
    /// The section or the table, as the operator types it.
    pub(super) section: &'a str,
    /// The key in it.
    pub(super) name: &'a str,
}

impl ConfigKey<'_> {
    /// Returns the key as the operator types it.
    fn path(self) -> String {
        join_path(self.section, self.name)
    }
}

/// A section or a table, as [`config_keys`] defines it.
pub(super) trait ConfigKeys: Clone + PartialEq {
    /// Returns the keys in force after a reload from `self` to `new`, and records the differences.
    fn merge_keys(&self, new: Self, section: &str, diff: &mut ConfigDiff) -> Self;

    /// Writes the keys in the order of the documentation.
    fn write_keys(&self, section: &str, document: &mut MaskedToml);
}

/// An element of an array of tables.
pub(super) trait ConfigTable: ConfigKeys {
    /// Returns the text that tells the table from the others of its array.
    fn id(&self) -> &str;
}

/// The value of a key.
pub(super) trait ConfigValue: Clone + PartialEq {
    /// Returns the value as `check` prints it; [`None`] prints no line.
    fn to_toml(&self) -> Option<Value>;

    /// Returns the text that stands for an absent value; [`None`] prints no line.
    fn absent_toml() -> Option<Value> {
        None
    }

    /// Returns the name of the key in a report.
    fn path(key: ConfigKey<'_>) -> String {
        key.path()
    }

    /// Returns the value in force after a reload from `self` to `new`, and records a difference.
    fn merge(
        &self,
        new: Self,
        key: ConfigKey<'_>,
        rule: ReloadRule,
        diff: &mut ConfigDiff,
    ) -> Self {
        merge_whole(self, new, key, rule, diff)
    }

    /// Writes the key and its value.
    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        if let Some(value) = self.to_toml() {
            document.line(key.name, value);
        }
    }
}

fn merge_whole<T: ConfigValue>(
    old: &T,
    new: T,
    key: ConfigKey<'_>,
    rule: ReloadRule,
    diff: &mut ConfigDiff,
) -> T {
    match rule {
        ReloadRule::AtReload | ReloadRule::ByKey => diff.take_new(&T::path(key), old, new),
        ReloadRule::WithTable => diff.take_new(key.section, old, new),
        ReloadRule::AtRestart => {
            let in_force = match old.to_toml() {
                Some(Value::String(text)) if !text.is_empty() => text,
                Some(Value::String(_)) | None => "none".to_owned(),
                Some(other) => other.to_string(),
            };
            diff.keep_current(&T::path(key), old, &new, &in_force)
        }
    }
}

impl<T: ConfigKeys> ConfigValue for T {
    fn to_toml(&self) -> Option<Value> {
        None
    }

    fn merge(&self, new: Self, key: ConfigKey<'_>, _: ReloadRule, diff: &mut ConfigDiff) -> Self {
        self.merge_keys(new, &key.path(), diff)
    }

    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        document.heading(&format!("[{}]", key.path()));
        self.write_keys(&key.path(), document);
    }
}

impl<T: ConfigValue> ConfigValue for Option<T> {
    fn to_toml(&self) -> Option<Value> {
        self.as_ref().map_or_else(T::absent_toml, T::to_toml)
    }

    fn path(key: ConfigKey<'_>) -> String {
        T::path(key)
    }

    fn merge(
        &self,
        new: Self,
        key: ConfigKey<'_>,
        rule: ReloadRule,
        diff: &mut ConfigDiff,
    ) -> Self {
        match (self, new) {
            (Some(old), Some(new)) => Some(old.merge(new, key, rule, diff)),
            (old, new) => merge_whole(old, new, key, rule, diff),
        }
    }

    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        match (self, T::absent_toml()) {
            (Some(value), _) => value.write(key, document),
            (None, Some(absent)) => document.line(key.name, absent),
            (None, None) => {}
        }
    }
}

/// Tables are matched by their ids, in any order.
impl<T: ConfigTable> ConfigValue for Vec<T> {
    fn to_toml(&self) -> Option<Value> {
        None
    }

    fn merge(&self, new: Self, key: ConfigKey<'_>, _: ReloadRule, diff: &mut ConfigDiff) -> Self {
        let array = key.path();
        let unlisted = self.iter().filter(|old| new.iter().all(|new| new.id() != old.id()));
        let removed: Vec<String> =
            unlisted.map(|old| format!("{array}[{}] removed", old.id())).collect();
        let next = new.into_iter().map(|new| {
            let table = format!("{array}[{}]", new.id());
            match self.iter().find(|old| old.id() == new.id()) {
                Some(old) => old.merge_keys(new, &table, diff),
                None => {
                    diff.applied.push(format!("{table} added"));
                    new
                }
            }
        });
        let next = next.collect();
        diff.applied.extend(removed);
        next
    }

    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        for table in self {
            document.heading(&format!("[[{}]]", key.path()));
            table.write_keys(&key.path(), document);
        }
    }
}

/// Says how values of a type are printed, and what stands for an absent value.
macro_rules! config_values {
    ($($type:ty $(, absent $absent:expr)? => |$it:ident| $text:expr;)*) => { $(
        impl ConfigValue for $type {
            fn to_toml(&self) -> Option<Value> {
                let $it = self;
                Some(Value::from($text))
            }

            $(fn absent_toml() -> Option<Value> {
                Some(Value::from($absent))
            })?
        }
    )* };
}

config_values! {
    bool => |it| *it;
    u32, absent 0 => |it| *it;
    usize, absent 0 => |it| i64::try_from(*it).unwrap_or(i64::MAX);
    u64 => |bytes| format_size(*bytes); // the only numbers of this width are sizes
    Duration, absent "0s" => |it| format_duration(*it);
    SocketAddr, absent "" => |it| it.to_string();
    String, absent "" => |it| it.as_str();
    PathBuf, absent "" => |it| it.to_string_lossy().into_owned(); // it was UTF-8 in the file
    ProductId => |it| it.as_str();
    HttpUrl => |it| it.masked();
    // An absent secret has no line, because `key = ""` would look like a secret.
    Secret => |_it| MASK;
    Vec<HostAndPort> => |list| texts(list, ToString::to_string);
    Vec<Network> => |list| texts(list, ToString::to_string);
    Vec<Origin> => |list| texts(list, |it| it.as_str().to_owned());
    Only<ProductId> => |only| only_texts(only, &["*"], |it| it.as_str());
    Only<SessionId> => |only| only_texts(only, &[], |it| it.as_str());
    Only<UserId> => |only| only_texts(only, &[], |it| it.as_str());
    Only<String> => |only| only_texts(only, &[], String::as_str);
}

fn texts<T>(list: &[T], text: impl Fn(&T) -> String) -> Vec<String> {
    list.iter().map(text).collect()
}

fn only_texts<'a, T>(
    only: &'a Only<T>,
    everything: &[&'a str],
    text: impl Fn(&'a T) -> &'a str,
) -> Vec<&'a str> {
    match only {
        Only::Everything => everything.to_vec(),
        Only::These(these) => these.iter().map(text).collect(),
    }
}
