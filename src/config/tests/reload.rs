//! Reloads: which changes apply, which wait for a restart, and what is reported of them.

use super::*;

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
    assert_eq!((next.server.listen, next.log.memory_bytes), (parsed(old).server.listen, 1 << 20));
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

#[test]
fn a_report_has_the_value_in_force_as_the_file_writes_it_and_one_name_for_what_belongs_together() {
    let jwt = |secret: &str| format!("[auth.jwt]\nsecret = '{}'\n", secret.repeat(32));
    let webhook = "[[webhooks]]\nid = 'w'\nproduct_id = 'p'\nurl = 'https://h'\nsecret = 's'\n";
    let old = format!("{}{UPSTREAM}{webhook}", jwt("x"));
    let changed = "[server]\nprobe_listen = '127.0.0.1:7'\nhead_timeout = '1s'\n\
                   max_concurrent_replays = 1\n[log]\ndata_dir = '/data'\n";
    let new = format!("{changed}{}{UPSTREAM}{webhook}timeout = '1s'\nmax_retries = 1", jwt("y"));
    let (_, diff) = diff_between(&old, &new);
    assert_eq!(diff.applied, ["auth.jwt: algorithm or keys", "webhooks[w]"]);
    let in_force = [
        "server.probe_listen (in force: none)",
        "server.head_timeout (in force: 10s)",
        "server.max_concurrent_replays (in force: 64)",
        "log.data_dir (in force: none)",
    ];
    assert_eq!(diff.restart_required, in_force);
    assert_eq!(diff_between(UPSTREAM, &format!("{}{UPSTREAM}", jwt("x"))).1.applied, ["auth.jwt"]);
}
