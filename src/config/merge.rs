//! Merging of a new configuration into the running one: which changes apply, and which wait for a
//! restart.
//!
//! In: the configuration in force, and the new one. Out: the next configuration in force, which
//! keeps the old value of every key that only a restart changes; and the differences.
//!
//! May use: no other module.

use std::path::PathBuf;

use super::{
    Config,
    auth::{AuthConfig, StaticKeyConfig},
    diff::{ConfigDiff, merge_tables},
    jwt::JwtConfig,
    log::{EgressConfig, LogConfig},
    server::ServerConfig,
    upstream::UpstreamConfig,
    values::{format_duration, format_size},
    webhook::WebhookConfig,
};

impl Config {
    /// Returns the keys, in the order of the file's tables, whose change waits for a restart.
    pub(crate) fn restart_only_keys(&self) -> Vec<String> {
        self.merge_reload(self.clone()).1.restart_only
    }

    /// Merges `new` into this running configuration. The `merge_` functions name every field, so a
    /// new field does not compile until it is assigned to one of the two sides.
    pub(super) fn merge_reload(&self, new: Self) -> (Self, ConfigDiff) {
        let mut diff = ConfigDiff::default();
        let next = Self {
            server: merge_server(&self.server, new.server, &mut diff),
            upstreams: merge_tables(
                "upstreams",
                &self.upstreams,
                new.upstreams,
                |it| it.product_id.as_str(),
                merge_upstream,
                &mut diff,
            ),
            auth: merge_auth(&self.auth, new.auth, &mut diff),
            log: merge_log(&self.log, new.log, &mut diff),
            webhooks: merge_tables(
                "webhooks",
                &self.webhooks,
                new.webhooks,
                |it| &it.id,
                merge_webhook,
                &mut diff,
            ),
            egress: merge_egress(&self.egress, new.egress, &mut diff),
        };
        (next, diff)
    }
}

fn merge_server(old: &ServerConfig, new: ServerConfig, diff: &mut ConfigDiff) -> ServerConfig {
    ServerConfig {
        listen: diff.keep_current("server.listen", &old.listen, &new.listen, ToString::to_string),
        admin_listen: diff.keep_current(
            "server.admin_listen",
            &old.admin_listen,
            &new.admin_listen,
            ToString::to_string,
        ),
        probe_listen: diff.keep_current(
            "server.probe_listen",
            &old.probe_listen,
            &new.probe_listen,
            optional_text,
        ),
        allowed_hosts: diff.take_new("server.allowed_hosts", &old.allowed_hosts, new.allowed_hosts),
        trusted_proxies: diff.take_new(
            "server.trusted_proxies",
            &old.trusted_proxies,
            new.trusted_proxies,
        ),
        heartbeat_interval: diff.take_new(
            "server.heartbeat_interval",
            &old.heartbeat_interval,
            new.heartbeat_interval,
        ),
        write_timeout: diff.keep_current(
            "server.write_timeout",
            &old.write_timeout,
            &new.write_timeout,
            |it| format_duration(*it),
        ),
        head_timeout: diff.keep_current(
            "server.head_timeout",
            &old.head_timeout,
            &new.head_timeout,
            |it| format_duration(*it),
        ),
        max_publish_bytes: diff.take_new(
            "server.max_publish_bytes",
            &old.max_publish_bytes,
            new.max_publish_bytes,
        ),
        max_connection_age: diff.take_new(
            "server.max_connection_age",
            &old.max_connection_age,
            new.max_connection_age,
        ),
        max_connects_per_second: diff.take_new(
            "server.max_connects_per_second",
            &old.max_connects_per_second,
            new.max_connects_per_second,
        ),
        max_subscribers_per_key: diff.take_new(
            "server.max_subscribers_per_key",
            &old.max_subscribers_per_key,
            new.max_subscribers_per_key,
        ),
        max_concurrent_replays: diff.keep_current(
            "server.max_concurrent_replays",
            &old.max_concurrent_replays,
            &new.max_concurrent_replays,
            ToString::to_string,
        ),
        max_subscribers: diff.take_new(
            "server.max_subscribers",
            &old.max_subscribers,
            new.max_subscribers,
        ),
        max_subscribers_per_ip: diff.take_new(
            "server.max_subscribers_per_ip",
            &old.max_subscribers_per_ip,
            new.max_subscribers_per_ip,
        ),
        drain_window: diff.take_new("server.drain_window", &old.drain_window, new.drain_window),
        cors_allowed_origins: diff.take_new(
            "server.cors_allowed_origins",
            &old.cors_allowed_origins,
            new.cors_allowed_origins,
        ),
        tls: diff.keep_current(
            "server.tls_cert_file, server.tls_key_file",
            &old.tls,
            &new.tls,
            |tls| {
                let files = tls
                    .as_ref()
                    .map(|tls| format!("{}, {}", tls.cert_file.display(), tls.key_file.display()));
                files.unwrap_or_else(none_text)
            },
        ),
    }
}

fn merge_auth(old: &AuthConfig, new: AuthConfig, diff: &mut ConfigDiff) -> AuthConfig {
    AuthConfig {
        allow_anonymous: diff.take_new(
            "auth.allow_anonymous",
            &old.allow_anonymous,
            new.allow_anonymous,
        ),
        anonymous_permissions: diff.take_new(
            "auth.anonymous_permissions",
            &old.anonymous_permissions,
            new.anonymous_permissions,
        ),
        admin_key: diff.take_new("auth.admin_key", &old.admin_key, new.admin_key),
        keys: merge_tables("auth.keys", &old.keys, new.keys, |it| &it.name, merge_key, diff),
        jwt: match (&old.jwt, new.jwt) {
            (Some(old), Some(new)) => Some(merge_jwt(old, new, diff)),
            (old, new) => diff.take_new("auth.jwt", old, new),
        },
    }
}

fn merge_jwt(old: &JwtConfig, new: JwtConfig, diff: &mut ConfigDiff) -> JwtConfig {
    JwtConfig {
        verification: diff.take_new(
            "auth.jwt: algorithm or keys",
            &old.verification,
            new.verification,
        ),
        audience: diff.take_new("auth.jwt.audience", &old.audience, new.audience),
        allow_query_token: diff.take_new(
            "auth.jwt.allow_query_token",
            &old.allow_query_token,
            new.allow_query_token,
        ),
        cookie_name: diff.take_new("auth.jwt.cookie_name", &old.cookie_name, new.cookie_name),
    }
}

/// Merges the section. The store is opened and the rings are created with these values, so all of
/// them wait for a restart.
fn merge_log(old: &LogConfig, new: LogConfig, diff: &mut ConfigDiff) -> LogConfig {
    let LogConfig {
        memory_events,
        memory_bytes,
        data_dir,
        retention,
        retention_bytes,
        dead_letter_retention,
        dead_letter_bytes,
    } = new;
    let bytes = |bytes: &u64| format_size(*bytes);
    let directory = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(none_text, |it| it.display().to_string())
    };
    LogConfig {
        memory_events: diff.keep_current(
            "log.memory_events",
            &old.memory_events,
            &memory_events,
            ToString::to_string,
        ),
        memory_bytes: diff.keep_current(
            "log.memory_bytes",
            &old.memory_bytes,
            &memory_bytes,
            bytes,
        ),
        data_dir: diff.keep_current("log.data_dir", &old.data_dir, &data_dir, directory),
        retention: diff
            .keep_current("log.retention", &old.retention, &retention, |it| format_duration(*it)),
        retention_bytes: diff.keep_current(
            "log.retention_bytes",
            &old.retention_bytes,
            &retention_bytes,
            bytes,
        ),
        dead_letter_retention: diff.keep_current(
            "log.dead_letter_retention",
            &old.dead_letter_retention,
            &dead_letter_retention,
            |it| format_duration(*it),
        ),
        dead_letter_bytes: diff.keep_current(
            "log.dead_letter_bytes",
            &old.dead_letter_bytes,
            &dead_letter_bytes,
            bytes,
        ),
    }
}

fn merge_egress(old: &EgressConfig, new: EgressConfig, diff: &mut ConfigDiff) -> EgressConfig {
    EgressConfig {
        allow_networks: diff.take_new(
            "egress.allow_networks",
            &old.allow_networks,
            new.allow_networks,
        ),
        ca_file: diff.take_new("egress.ca_file", &old.ca_file, new.ca_file),
    }
}

fn merge_upstream(
    at: &str,
    old: &UpstreamConfig,
    new: UpstreamConfig,
    diff: &mut ConfigDiff,
) -> UpstreamConfig {
    UpstreamConfig {
        url: diff.take_new(&format!("{at}.url"), &old.url, new.url),
        token: diff.take_new(&format!("{at}.token"), &old.token, new.token),
        heartbeat_timeout: diff.take_new(
            &format!("{at}.heartbeat_timeout"),
            &old.heartbeat_timeout,
            new.heartbeat_timeout,
        ),
        max_event_bytes: diff.take_new(
            &format!("{at}.max_event_bytes"),
            &old.max_event_bytes,
            new.max_event_bytes,
        ),
        product_id: new.product_id,
    }
}

fn merge_key(
    at: &str,
    old: &StaticKeyConfig,
    new: StaticKeyConfig,
    diff: &mut ConfigDiff,
) -> StaticKeyConfig {
    diff.take_new(at, old, new)
}

fn merge_webhook(
    at: &str,
    old: &WebhookConfig,
    new: WebhookConfig,
    diff: &mut ConfigDiff,
) -> WebhookConfig {
    diff.take_new(at, old, new)
}

fn optional_text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(none_text, ToString::to_string)
}

fn none_text() -> String {
    "none".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parsed;

    fn diff_between(old: &str, new: &str) -> (Config, ConfigDiff) {
        parsed(old).merge_reload(parsed(new))
    }

    const UPSTREAM: &str = "[[upstreams]]\nproduct_id = 'p'\nurl = 'https://c/p'\n";

    #[test]
    fn changeable_keys_take_their_new_values() {
        let old = format!("[server]\nmax_subscribers = 5\n{UPSTREAM}");
        let new =
            "[server]\nmax_subscribers = 6\n[[upstreams]]\nproduct_id = 'q'\nurl = 'https://c/q'\n";
        let (next, diff) = diff_between(&old, new);
        assert_eq!(next, parsed(new));
        assert_eq!(
            diff.applied,
            ["server.max_subscribers", "upstreams[q] added", "upstreams[p] removed"]
        );
        assert!(diff.restart_required.is_empty());
    }

    #[test]
    fn keys_that_wait_for_a_restart_keep_their_old_values_and_are_reported_each_time() {
        let old = "[server]\nlisten = '127.0.0.1:1'\n[log]\nmemory_bytes = '1MiB'\n";
        let new =
            "[server]\nlisten = '127.0.0.1:2'\ndrain_window = '1s'\n[log]\nmemory_bytes = '2MiB'\n";
        let (next, diff) = diff_between(old, new);
        assert_eq!(
            (next.server.listen, next.log.memory_bytes),
            (parsed(old).server.listen, 1 << 20)
        );
        assert_eq!(diff.applied, ["server.drain_window"]);
        assert_eq!(
            diff.restart_required,
            ["server.listen (in force: 127.0.0.1:1)", "log.memory_bytes (in force: 1MiB)"]
        );
        let (again, diff) = next.merge_reload(parsed(new));
        assert_eq!((diff.restart_required.len(), diff.applied.len()), (2, 0));
        assert_eq!(again, next);
    }

    #[test]
    fn tables_are_matched_by_name_and_no_value_is_reported() {
        let key = |name: &str, key: &str| {
            format!("[[auth.keys]]\nname = '{name}'\nkey = '{key}'\nproducts = ['*']\n")
        };
        let old = format!("{}{}{UPSTREAM}token = 'hush'", key("a", "hush1"), key("b", "hush2"));
        let new = format!("{}{}{UPSTREAM}token = 'hush3'", key("b", "hush4"), key("a", "hush1"));
        let (_, diff) = diff_between(&old, &new);
        assert_eq!(diff.applied, ["upstreams[p].token", "auth.keys[b]"]);
    }

    #[test]
    fn equal_configurations_have_no_difference() {
        let text = format!(
            "[auth]\nadmin_key = 'hush'\n[auth.jwt]\nsecret = '{}'\n{UPSTREAM}",
            "x".repeat(32)
        );
        let (config, diff) = diff_between(&text, &text);
        assert_eq!(config, parsed(&text));
        assert_eq!((diff.applied, diff.restart_required), (Vec::new(), Vec::new()));
    }

    #[test]
    fn the_restart_only_keys_are_the_keys_that_a_reload_keeps() {
        let keys = parsed(UPSTREAM).restart_only_keys();
        for key in ["server.listen", "server.tls_key_file", "log.data_dir", "log.retention"] {
            assert!(keys.iter().any(|it| it == key), "{key} in {keys:?}");
        }
        assert!(!keys.iter().any(|it| it == "server.max_subscribers"), "{keys:?}");
    }
}
