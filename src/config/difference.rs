//! From one configuration to the next while the relay runs: what changes, and what waits for a restart.
//!
//! In: the configuration in force, and the one that is wanted. Out: the one that comes into force, in which every key that cannot
//! be changed is as it was; and the names of the keys that differ. No value of a key is told but of those that wait, which are
//! no secrets.
//!
//! May use: the rooms of all sections.

use std::path::PathBuf;

use super::{
    Config,
    auth::{Auth, Key},
    jwt::Jwt,
    log::{Egress, Log},
    server::Server,
    upstream::Upstream,
    values::{duration_text, size_text},
    webhook::Webhook,
};

/// The keys that differ between two configurations.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Difference {
    /// Those that come into force.
    pub(crate) changed: Vec<String>,
    /// Those that wait for a restart, each with what is in force.
    pub(crate) waiting: Vec<String>,
}

impl Config {
    /// What comes into force when `new` follows upon this while the relay runs. Every field is named here: one that is added
    /// has to be put on one of the two sides.
    pub(super) fn succeeded_by(&self, new: Self) -> (Self, Difference) {
        let mut told = Difference::default();
        let next = Self {
            server: server(&self.server, new.server, &mut told),
            upstreams: each(
                "upstreams",
                &self.upstreams,
                new.upstreams,
                |it| it.product_id.as_str(),
                upstream,
                &mut told,
            ),
            auth: auth(&self.auth, new.auth, &mut told),
            log: log(&self.log, new.log, &mut told),
            webhooks: each("webhooks", &self.webhooks, new.webhooks, |it| &it.id, webhook, &mut told),
            egress: egress(&self.egress, new.egress, &mut told),
        };
        (next, told)
    }
}

impl Difference {
    /// A key that can be changed.
    fn takes<T: PartialEq>(&mut self, key: &str, old: &T, new: T) -> T {
        if *old != new {
            self.changed.push(key.to_owned());
        }
        new
    }

    /// A key that cannot.
    fn keeps<T: Clone + PartialEq>(&mut self, key: &str, old: &T, new: &T, shown: impl Fn(&T) -> String) -> T {
        if old != new {
            self.waiting.push(format!("{key} (in force: {})", shown(old)));
        }
        old.clone()
    }
}

fn server(old: &Server, new: Server, told: &mut Difference) -> Server {
    Server {
        listen: told.keeps("server.listen", &old.listen, &new.listen, ToString::to_string),
        admin_listen: told.keeps("server.admin_listen", &old.admin_listen, &new.admin_listen, ToString::to_string),
        probe_listen: told.keeps("server.probe_listen", &old.probe_listen, &new.probe_listen, optional),
        allowed_hosts: told.takes("server.allowed_hosts", &old.allowed_hosts, new.allowed_hosts),
        trusted_proxies: told.takes("server.trusted_proxies", &old.trusted_proxies, new.trusted_proxies),
        heartbeat_interval: told.takes("server.heartbeat_interval", &old.heartbeat_interval, new.heartbeat_interval),
        write_timeout: told
            .keeps("server.write_timeout", &old.write_timeout, &new.write_timeout, |it| duration_text(*it)),
        head_timeout: told.keeps("server.head_timeout", &old.head_timeout, &new.head_timeout, |it| duration_text(*it)),
        max_publish_bytes: told.takes("server.max_publish_bytes", &old.max_publish_bytes, new.max_publish_bytes),
        max_connection_age: told.takes("server.max_connection_age", &old.max_connection_age, new.max_connection_age),
        max_connects_per_second: told.takes(
            "server.max_connects_per_second",
            &old.max_connects_per_second,
            new.max_connects_per_second,
        ),
        max_subscribers_per_key: told.takes(
            "server.max_subscribers_per_key",
            &old.max_subscribers_per_key,
            new.max_subscribers_per_key,
        ),
        max_concurrent_replays: told.keeps(
            "server.max_concurrent_replays",
            &old.max_concurrent_replays,
            &new.max_concurrent_replays,
            ToString::to_string,
        ),
        max_subscribers: told.takes("server.max_subscribers", &old.max_subscribers, new.max_subscribers),
        max_subscribers_per_ip: told.takes(
            "server.max_subscribers_per_ip",
            &old.max_subscribers_per_ip,
            new.max_subscribers_per_ip,
        ),
        drain_window: told.takes("server.drain_window", &old.drain_window, new.drain_window),
        cors_allowed_origins: told.takes(
            "server.cors_allowed_origins",
            &old.cors_allowed_origins,
            new.cors_allowed_origins,
        ),
        tls: told.keeps("server.tls_cert_file, server.tls_key_file", &old.tls, &new.tls, |tls| {
            let files = tls.as_ref().map(|tls| format!("{}, {}", tls.cert_file.display(), tls.key_file.display()));
            files.unwrap_or_else(none)
        }),
    }
}

fn auth(old: &Auth, new: Auth, told: &mut Difference) -> Auth {
    Auth {
        allow_anonymous: told.takes("auth.allow_anonymous", &old.allow_anonymous, new.allow_anonymous),
        anonymous_permissions: told.takes(
            "auth.anonymous_permissions",
            &old.anonymous_permissions,
            new.anonymous_permissions,
        ),
        admin_key: told.takes("auth.admin_key", &old.admin_key, new.admin_key),
        keys: each("auth.keys", &old.keys, new.keys, |it| &it.name, key, told),
        jwt: match (&old.jwt, new.jwt) {
            (Some(old), Some(new)) => Some(jwt(old, new, told)),
            (old, new) => told.takes("auth.jwt", old, new),
        },
    }
}

fn jwt(old: &Jwt, new: Jwt, told: &mut Difference) -> Jwt {
    Jwt {
        verification: told.takes("auth.jwt: algorithm or keys", &old.verification, new.verification),
        audience: told.takes("auth.jwt.audience", &old.audience, new.audience),
        allow_query_token: told.takes("auth.jwt.allow_query_token", &old.allow_query_token, new.allow_query_token),
        cookie_name: told.takes("auth.jwt.cookie_name", &old.cookie_name, new.cookie_name),
    }
}

/// The store is opened with these, and the rings are made with them.
fn log(old: &Log, new: Log, told: &mut Difference) -> Log {
    let Log {
        memory_events,
        memory_bytes,
        data_dir,
        retention,
        retention_bytes,
        dead_letter_retention,
        dead_letter_bytes,
    } = new;
    let bytes = |bytes: &u64| size_text(*bytes);
    let directory = |path: &Option<PathBuf>| path.as_ref().map_or_else(none, |it| it.display().to_string());
    Log {
        memory_events: told.keeps("log.memory_events", &old.memory_events, &memory_events, ToString::to_string),
        memory_bytes: told.keeps("log.memory_bytes", &old.memory_bytes, &memory_bytes, bytes),
        data_dir: told.keeps("log.data_dir", &old.data_dir, &data_dir, directory),
        retention: told.keeps("log.retention", &old.retention, &retention, |it| duration_text(*it)),
        retention_bytes: told.keeps("log.retention_bytes", &old.retention_bytes, &retention_bytes, bytes),
        dead_letter_retention: told.keeps(
            "log.dead_letter_retention",
            &old.dead_letter_retention,
            &dead_letter_retention,
            |it| duration_text(*it),
        ),
        dead_letter_bytes: told.keeps("log.dead_letter_bytes", &old.dead_letter_bytes, &dead_letter_bytes, bytes),
    }
}

fn egress(old: &Egress, new: Egress, told: &mut Difference) -> Egress {
    Egress {
        allow_networks: told.takes("egress.allow_networks", &old.allow_networks, new.allow_networks),
        ca_file: told.takes("egress.ca_file", &old.ca_file, new.ca_file),
    }
}

fn upstream(at: &str, old: &Upstream, new: Upstream, told: &mut Difference) -> Upstream {
    Upstream {
        url: told.takes(&format!("{at}.url"), &old.url, new.url),
        token: told.takes(&format!("{at}.token"), &old.token, new.token),
        heartbeat_timeout: told.takes(
            &format!("{at}.heartbeat_timeout"),
            &old.heartbeat_timeout,
            new.heartbeat_timeout,
        ),
        max_event_bytes: told.takes(&format!("{at}.max_event_bytes"), &old.max_event_bytes, new.max_event_bytes),
        product_id: new.product_id,
    }
}

fn key(at: &str, old: &Key, new: Key, told: &mut Difference) -> Key {
    told.takes(at, old, new)
}

fn webhook(at: &str, old: &Webhook, new: Webhook, told: &mut Difference) -> Webhook {
    told.takes(at, old, new)
}

/// An array of tables that are known by a name: in any order.
fn each<T>(
    array: &str,
    old: &[T],
    new: Vec<T>,
    name: impl Fn(&T) -> &str,
    one: impl Fn(&str, &T, T, &mut Difference) -> T,
    told: &mut Difference,
) -> Vec<T> {
    let gone = old.iter().filter(|old| new.iter().all(|new| name(new) != name(old)));
    let gone: Vec<String> = gone.map(|old| format!("{array}[{}] removed", name(old))).collect();
    let next = new.into_iter().map(|new| {
        let at = format!("{array}[{}]", name(&new));
        match old.iter().find(|old| name(old) == name(&new)) {
            Some(old) => one(&at, old, new, told),
            None => {
                told.changed.push(format!("{at} added"));
                new
            }
        }
    });
    let next = next.collect();
    told.changed.extend(gone);
    next
}

fn optional<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(none, ToString::to_string)
}

fn none() -> String {
    "none".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parsed;

    fn between(old: &str, new: &str) -> (Config, Difference) {
        parsed(old).succeeded_by(parsed(new))
    }

    const UPSTREAM: &str = "[[upstreams]]\nproduct_id = 'p'\nurl = 'https://c/p'\n";

    #[test]
    fn what_can_be_changed_is_as_the_new_one_has_it() {
        let old = format!("[server]\nmax_subscribers = 5\n{UPSTREAM}");
        let new = "[server]\nmax_subscribers = 6\n[[upstreams]]\nproduct_id = 'q'\nurl = 'https://c/q'\n";
        let (next, told) = between(&old, new);
        assert_eq!(next, parsed(new));
        assert_eq!(told.changed, ["server.max_subscribers", "upstreams[q] added", "upstreams[p] removed"]);
        assert!(told.waiting.is_empty());
    }

    #[test]
    fn what_waits_for_a_restart_is_as_the_old_one_has_it_and_stays_named() {
        let old = "[server]\nlisten = '127.0.0.1:1'\n[log]\nmemory_bytes = '1MiB'\n";
        let new = "[server]\nlisten = '127.0.0.1:2'\ndrain_window = '1s'\n[log]\nmemory_bytes = '2MiB'\n";
        let (next, told) = between(old, new);
        assert_eq!((next.server.listen, next.log.memory_bytes), (parsed(old).server.listen, 1 << 20));
        assert_eq!(told.changed, ["server.drain_window"]);
        assert_eq!(told.waiting, ["server.listen (in force: 127.0.0.1:1)", "log.memory_bytes (in force: 1MiB)"]);
        let (again, told) = next.succeeded_by(parsed(new));
        assert_eq!((told.waiting.len(), told.changed.len()), (2, 0));
        assert_eq!(again, next);
    }

    #[test]
    fn tables_are_known_by_their_names_and_no_value_is_told() {
        let key = |name: &str, key: &str| format!("[[auth.keys]]\nname = '{name}'\nkey = '{key}'\nproducts = ['*']\n");
        let old = format!("{}{}{UPSTREAM}token = 'hush'", key("a", "hush1"), key("b", "hush2"));
        let new = format!("{}{}{UPSTREAM}token = 'hush3'", key("b", "hush4"), key("a", "hush1"));
        let (_, told) = between(&old, &new);
        assert_eq!(told.changed, ["upstreams[p].token", "auth.keys[b]"]);
    }

    #[test]
    fn the_same_twice_is_no_difference() {
        let text = format!("[auth]\nadmin_key = 'hush'\n[auth.jwt]\nsecret = '{}'\n{UPSTREAM}", "x".repeat(32));
        assert_eq!(between(&text, &text), (parsed(&text), Difference::default()));
    }
}
