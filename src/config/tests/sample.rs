//! The documented sample: the values that it gives, its masked form, overrides of its keys, and its
//! beginnings.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    config::{address::HttpUrl, certificate, jwt::JwtVerification},
    event::Only,
};

/// The block of section 2 of the interface, word for word.
const SAMPLE: &str = r##"
[server]
listen = "0.0.0.0:8080"          # subscribers and publishers
admin_listen = "127.0.0.1:9090"  # health, metrics, admin API, console
probe_listen = ""                # set: /healthz, /readyz, /metrics also here, and nothing else (kubelet, Prometheus)
allowed_hosts = []               # see Access in the fine print
trusted_proxies = []             # CIDRs whose X-Forwarded-For names the client address
heartbeat_interval = "30s"
write_timeout = "30s"            # a subscriber whose socket takes nothing for this long is disconnected
head_timeout = "10s"             # first byte, TLS handshake and request head each
max_publish_bytes = "1MiB"
max_connection_age = "0s"        # 0 = no limit; else streams end at this age ± 20 %
max_connects_per_second = 0      # 0 = no limit
max_subscribers_per_key = 0
max_concurrent_replays = 64      # subscribers catching up from the store at one time; the others wait their turn
max_subscribers = 100000         # 503 + Retry-After beyond it
max_subscribers_per_ip = 0       # 0 = no limit; 429 beyond it
drain_window = "10s"             # on SIGTERM, subscribers are closed spread over this window
cors_allowed_origins = []        # also the list WebSocket Origin is checked against
tls_cert_file = ""               # both set = HTTPS with HTTP/2 by ALPN
tls_key_file = ""

[[upstreams]]                    # one connection each
product_id = "prod_abc"
url = "https://connector.example.com/stream/prod_abc"
token_env = "AUTOPLAY_APP_UNKEY_TOKEN"
heartbeat_timeout = "75s"        # silence longer than this = dead connection, reconnect
max_event_bytes = "1MiB"

[[products]]                     # products without an upstream: they live by publishing; no upstream metrics, a start writes no gap
product_id = "agents"

[auth]
allow_anonymous = false          # true is refused on a non-loopback listen unless --allow-anonymous is given
anonymous_permissions = ["subscribe"]
admin_key_env = "RELAY_ADMIN_KEY"
[[auth.keys]]                    # static keys for back-end agents
name = "agent-a"
key_env = "AGENT_A_KEY"
products = ["prod_abc"]          # ["*"] = all
permissions = ["subscribe"]      # subscribe, publish
max_publishes_per_second = 0     # 0 = no limit; 429 + Retry-After beyond it
[auth.jwt]                       # scoped tokens, for browsers above all
algorithm = "HS256"              # HS256, EdDSA, ES256, RS256
secret_env = "RELAY_JWT_SECRET"  # 32 bytes or more; or public_key_file (may hold several keys)
previous_secret_env = ""         # still accepted, for rotation
audience = ""                    # checked when set
allow_query_token = false        # true: a scoped token may come as ?access_token= (it then stands in proxies' logs)
cookie_name = ""                 # set, e.g. "__Secure-autoplay-relay": a scoped token may come in this cookie

[log]                            # events kept for resume
memory_events = 65536            # per product
memory_bytes = "64MiB"           # per product
data_dir = ""                    # "" = memory only; a path = durable, survives restarts
retention = "24h"
retention_bytes = "1GiB"
dead_letter_retention = "7d"
dead_letter_bytes = "256MiB"

[[webhooks]]
id = "crm"
product_id = "prod_abc"
url = "https://crm.example.com/events"
secret_env = "CRM_SECRET"
types = ["actions"]              # which events
session_ids = []                 # [] = all
user_ids = []                    # [] = all
headers = {}                     # further headers, e.g. { "X-Gateway-Key" = { env = "NAME" }, "X-Tenant" = "a" } (or { file = "path" }); values are secrets
timeout = "10s"
max_retries = 8
initial_backoff = "2s"
max_backoff = "5m"
max_in_flight = 16
[egress]
allow_networks = []              # CIDRs that webhooks may reach although they are not public
ca_file = ""                     # further roots for https upstreams and webhooks (SSL_CERT_FILE works too)
"##;

fn sample_environment() -> Environment {
    [
        ("AUTOPLAY_APP_UNKEY_TOKEN", "hush-upstream"),
        ("RELAY_ADMIN_KEY", "hush-admin"),
        ("AGENT_A_KEY", "hush-agent"),
        ("RELAY_JWT_SECRET", "hush-jwt-hush-jwt-hush-jwt-hush-jwt"),
        ("CRM_SECRET", "hush-crm"),
    ]
    .into_iter()
    .collect()
}

fn product(name: &str) -> crate::event::ProductId {
    crate::event::ProductId::new(name).unwrap()
}

#[test]
fn the_documented_sample_gives_the_documented_server_and_log() {
    let config = parsed_with(SAMPLE, &sample_environment());
    let without_sections = parsed("");
    // The sample shows only the defaults of these three sections, except that it listens on IPv4
    // alone, where the default has both families.
    let listen = "0.0.0.0:8080".parse().unwrap();
    assert_eq!(config.server, ServerConfig { listen, ..without_sections.server });
    assert_eq!(config.log, without_sections.log);
    assert_eq!(config.egress, without_sections.egress);
}

#[test]
fn the_documented_sample_gives_the_documented_upstream_and_webhook() {
    let config = parsed_with(SAMPLE, &sample_environment());
    let [upstream] = config.upstreams.as_slice() else { panic!("one upstream") };
    assert_eq!(upstream.product_id, product("prod_abc"));
    assert_eq!(upstream.url.to_string(), "https://connector.example.com/stream/prod_abc");
    assert_eq!(upstream.token.as_ref().unwrap().expose(), "hush-upstream");
    assert_eq!(
        (upstream.heartbeat_timeout, upstream.max_event_bytes),
        (Duration::from_secs(75), 1_048_576)
    );
    let served: Vec<_> = config.served_products().map(|it| (it.id.as_str(), it.upstream)).collect();
    assert_eq!(served, [("prod_abc", Some(upstream)), ("agents", None)]);
    let [webhook] = config.webhooks.as_slice() else { panic!("one webhook") };
    assert_eq!((webhook.id.as_str(), &webhook.product_id), ("crm", &product("prod_abc")));
    assert_eq!(webhook.url.to_string(), "https://crm.example.com/events");
    assert_eq!(webhook.secret.expose(), "hush-crm");
    assert_eq!(webhook.types, Only::These(["actions".to_owned()].into()));
    assert_eq!((&webhook.session_ids, &webhook.user_ids), (&Only::Everything, &Only::Everything));
    assert_eq!((webhook.timeout, webhook.max_retries), (Duration::from_secs(10), 8));
    assert_eq!(
        (webhook.initial_backoff, webhook.max_backoff),
        (Duration::from_secs(2), Duration::from_secs(300))
    );
    assert_eq!(webhook.max_in_flight, 16);
}

#[test]
fn the_documented_sample_gives_the_documented_access() {
    let auth = parsed_with(SAMPLE, &sample_environment()).auth;
    assert_eq!(
        (auth.allow_anonymous, auth.anonymous_permissions),
        (false, BTreeSet::from([Permission::Subscribe]))
    );
    assert_eq!(auth.admin_key.unwrap().expose(), "hush-admin");
    let [key] = auth.keys.as_slice() else { panic!("one key") };
    assert_eq!((key.name.as_str(), key.key.expose()), ("agent-a", "hush-agent"));
    assert_eq!(key.products, Only::These([product("prod_abc")].into()));
    assert_eq!(key.permissions, BTreeSet::from([Permission::Subscribe]));
    let jwt = auth.jwt.unwrap();
    let JwtVerification::SharedSecret { secret, previous_secret: None } = jwt.verification else {
        panic!("HS256, one secret")
    };
    assert_eq!(secret.expose(), "hush-jwt-hush-jwt-hush-jwt-hush-jwt");
    assert_eq!((jwt.audience, jwt.allow_query_token, jwt.cookie_name), (None, false, None));
}

#[test]
fn upstreams_alone_give_the_documented_defaults() {
    let text = "[[upstreams]]\nproduct_id = 'p'\nurl = 'http://h/p'";
    let Config { server, upstreams, products, auth, log, webhooks, egress } = parsed(text);
    assert_eq!(products, []);
    let seconds = Duration::from_secs;
    let expected = ServerConfig {
        listen: "[::]:8080".parse().unwrap(),
        admin_listen: "127.0.0.1:9090".parse().unwrap(),
        probe_listen: None,
        allowed_hosts: vec![],
        trusted_proxies: vec![],
        heartbeat_interval: seconds(30),
        write_timeout: seconds(30),
        head_timeout: seconds(10),
        max_publish_bytes: 1_048_576,
        max_connection_age: None,
        max_connects_per_second: None,
        max_subscribers_per_key: None,
        max_concurrent_replays: 64,
        max_subscribers: 100_000,
        max_subscribers_per_ip: None,
        drain_window: seconds(10),
        cors_allowed_origins: vec![],
        tls: None,
    };
    assert_eq!(server, expected);
    assert_eq!(
        upstreams,
        [UpstreamConfig::new(product("p"), HttpUrl::parse("http://h/p").unwrap(), None)]
    );
    assert_eq!(
        (upstreams[0].heartbeat_timeout, upstreams[0].max_event_bytes),
        (seconds(75), 1_048_576)
    );
    let anonymous_permissions = BTreeSet::from([Permission::Subscribe]);
    assert_eq!(
        auth,
        AuthConfig {
            allow_anonymous: false,
            anonymous_permissions,
            admin_key: None,
            keys: vec![],
            jwt: None
        }
    );
    let expected = LogConfig {
        memory_events: 65_536,
        memory_bytes: 67_108_864,
        data_dir: None,
        retention: seconds(86_400),
        retention_bytes: 1_073_741_824,
        dead_letter_retention: seconds(604_800),
        dead_letter_bytes: 268_435_456,
    };
    assert_eq!(log, expected);
    assert_eq!(
        (webhooks, egress),
        (vec![], EgressConfig { allow_networks: vec![], ca_file: None })
    );
}

#[test]
fn the_masked_sample_is_toml_without_a_secret() {
    let masked = parsed_with(SAMPLE, &sample_environment()).to_masked_toml();
    let table: toml::Table = masked.parse().unwrap();
    assert!(!masked.contains("hush"), "{masked}");
    assert_eq!(masked.matches("\"********\"").count(), 5, "{masked}");
    assert_eq!(table["auth"]["keys"][0]["key"].as_str(), Some("********"));
    assert_eq!(table["server"]["heartbeat_interval"].as_str(), Some("30s"));
    assert_eq!(table["log"]["memory_bytes"].as_str(), Some("64MiB"));
}

#[test]
fn the_masked_output_reads_back_as_what_it_shows() {
    let (_folder, pair) =
        certificate::tests::generate_certificate(certificate::tests::P256_OPTIONS);
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&keys, RFC_8410_KEY).unwrap();
    let rare = format!(
        "[server]\nlisten = '[::1]:8080'\nprobe_listen = '127.0.0.1:7000'\nallowed_hosts = ['a:1', 'b']\ntrusted_proxies = ['::1']\n\
         max_connection_age = '90m'\nmax_connects_per_second = 5\ncors_allowed_origins = ['https://a']\ntls_cert_file = '{2}'\n\
         tls_key_file = '{3}'\n[auth]\nallow_anonymous = true\nkeys = [{{ name = \"a\\\"\\n'b\", key = 'k', products = ['*'] }}]\n\
         [auth.jwt]\nalgorithm = 'EdDSA'\npublic_key_file = '{1}'\naudience = 'x'\n[egress]\nca_file = '{0}'",
        pair.cert_file.display(),
        keys.path().display(),
        pair.cert_file.display(),
        pair.key_file.display()
    );
    for text in [SAMPLE, &rare] {
        let masked = parsed_with(text, &sample_environment()).to_masked_toml();
        let mut number = 0;
        let mut filled = masked.clone();
        while filled.contains("********") {
            number += 1;
            filled = filled.replacen(
                "********",
                &format!("a-secret-that-is-long-enough-for-hs256-{number}"),
                1,
            );
        }
        assert_eq!(parsed(&filled).to_masked_toml(), masked);
    }
}

/// The example key of RFC 8410, section 10.1.
const RFC_8410_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

#[test]
fn debug_output_holds_no_secret() {
    let config = parsed_with(SAMPLE, &sample_environment());
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn every_scalar_key_of_the_named_sections_can_be_overridden() {
    let keys = parsed_with(SAMPLE, &sample_environment()).to_masked_toml();
    let mut section = String::new();
    let mut overridden = 0;
    for line in keys.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).replace('.', "__").to_uppercase();
        } else if let Some((key, _)) = line
            .split_once(" = ")
            .filter(|_| ["SERVER", "AUTH", "AUTH__JWT", "LOG", "EGRESS"].contains(&&*section))
        {
            let name = format!("AUTOPLAY_RELAY__{section}__{}", key.to_uppercase());
            // No key accepts these bytes, and the finding of every known key names that key.
            let found =
                attempt("", &Environment::with_bytes(&name, b"\xff"), AllowAnonymous::OnLoopback)
                    .unwrap_err();
            assert!(
                found.lines().any(|line| line.starts_with(&format!(
                    "{name}: {}.",
                    section.to_lowercase().replace("__", ".")
                ))),
                "{found}"
            );
            overridden += 1;
        }
    }
    assert_eq!(overridden, 19 + 3 + 5 + 7 + 2);
}

#[test]
fn a_file_cut_short_anywhere_is_read_or_found_wrong_without_a_panic_or_a_secret() {
    let inline = SAMPLE
        .replace("_env = \"", " = \"hush-hush-hush-hush-hush-hush-hush-")
        .replace("\"hush-hush-hush-hush-hush-hush-hush-\"", "\"\"");
    assert!(parsed(&inline).auth.jwt.is_some());
    let ends = (0..inline.len()).filter(|end| inline.is_char_boundary(*end)).step_by(3);
    for end in ends {
        let found = attempt(&inline[..end], &Environment::default(), AllowAnonymous::OnLoopback)
            .err()
            .unwrap_or_default();
        assert!(!found.contains("hush"), "{found}");
    }
}
