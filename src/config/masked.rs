//! The effective configuration as TOML, secrets masked: what `check` prints.
//!
//! In: a [`Config`]. Out: a document in the layout of the documentation, which reads back once the masks are replaced.
//!
//! May use: the rooms of all sections.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use toml::Value;

use super::{
    Config, Secret,
    auth::{Auth, Key, Permissions},
    certificate::TlsFiles,
    jwt::{Jwt, Verification},
    log::{Egress, Log},
    secret::MASK,
    server::Server,
    upstream::Upstream,
    values::{duration_text, size_text},
    webhook::Webhook,
};
use crate::event::Only;

impl Config {
    /// The configuration in force, defaults and overrides included, as TOML; every secret reads `"********"`.
    pub(crate) fn to_masked_toml(&self) -> String {
        let mut page = Page::default();
        page.server(&self.server);
        self.upstreams.iter().for_each(|upstream| page.upstream(upstream));
        page.auth(&self.auth);
        page.log(&self.log);
        self.webhooks.iter().for_each(|webhook| page.webhook(webhook));
        page.egress(&self.egress);
        page.text
    }
}

/// The document as far as it is written.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn server(&mut self, server: &Server) {
        self.heading("[server]");
        self.line("listen", server.listen.to_string());
        self.line("admin_listen", server.admin_listen.to_string());
        self.line("probe_listen", server.probe_listen.map(|address| address.to_string()).unwrap_or_default());
        self.line("allowed_hosts", texts(&server.allowed_hosts));
        self.line("trusted_proxies", texts(&server.trusted_proxies));
        self.line("heartbeat_interval", duration_text(server.heartbeat_interval));
        self.line("write_timeout", duration_text(server.write_timeout));
        self.line("head_timeout", duration_text(server.head_timeout));
        self.line("max_publish_bytes", size_text(server.max_publish_bytes));
        self.line("max_connection_age", duration_text(server.max_connection_age.unwrap_or_default()));
        self.line("max_connects_per_second", server.max_connects_per_second.unwrap_or_default());
        self.line("max_subscribers_per_key", count(server.max_subscribers_per_key.unwrap_or_default()));
        self.line("max_concurrent_replays", count(server.max_concurrent_replays));
        self.line("max_subscribers", count(server.max_subscribers));
        self.line("max_subscribers_per_ip", count(server.max_subscribers_per_ip.unwrap_or_default()));
        self.line("drain_window", duration_text(server.drain_window));
        let origins: Vec<&str> = server.cors_allowed_origins.iter().map(|origin| origin.as_str()).collect();
        self.line("cors_allowed_origins", origins);
        let files = server.tls.as_ref().map(|TlsFiles { cert_file, key_file }| (cert_file, key_file));
        self.line("tls_cert_file", path(files.map(|(cert, _)| cert)));
        self.line("tls_key_file", path(files.map(|(_, key)| key)));
    }

    fn upstream(&mut self, upstream: &Upstream) {
        self.heading("[[upstreams]]");
        self.line("product_id", upstream.product_id.as_str());
        self.line("url", upstream.url.masked());
        self.secret("token", upstream.token.as_ref());
        self.line("heartbeat_timeout", duration_text(upstream.heartbeat_timeout));
        self.line("max_event_bytes", size_text(upstream.max_event_bytes));
    }

    fn auth(&mut self, auth: &Auth) {
        self.heading("[auth]");
        self.line("allow_anonymous", auth.allow_anonymous);
        self.permissions("anonymous_permissions", &auth.anonymous_permissions);
        self.secret("admin_key", auth.admin_key.as_ref());
        auth.keys.iter().for_each(|key| self.key(key));
        if let Some(jwt) = &auth.jwt {
            self.jwt(jwt);
        }
    }

    fn key(&mut self, key: &Key) {
        self.heading("[[auth.keys]]");
        self.line("name", key.name.as_str());
        self.secret("key", Some(&key.key));
        self.line("products", listed(&key.products, &["*"], |product| product.as_str()));
        self.permissions("permissions", &key.permissions);
    }

    fn jwt(&mut self, jwt: &Jwt) {
        self.heading("[auth.jwt]");
        self.line("algorithm", jwt.verification.algorithm_name());
        match &jwt.verification {
            Verification::Shared { secret, previous_secret } => {
                self.secret("secret", Some(secret));
                self.secret("previous_secret", previous_secret.as_ref());
            }
            Verification::Public { public_key_file, .. } => self.line("public_key_file", path(Some(public_key_file))),
        }
        self.line("audience", jwt.audience.as_deref().unwrap_or_default());
        self.line("allow_query_token", jwt.allow_query_token);
        self.line("cookie_name", jwt.cookie_name.as_deref().unwrap_or_default());
    }

    fn log(&mut self, log: &Log) {
        self.heading("[log]");
        self.line("memory_events", count(log.memory_events));
        self.line("memory_bytes", size_text(log.memory_bytes));
        self.line("data_dir", path(log.data_dir.as_ref()));
        self.line("retention", duration_text(log.retention));
        self.line("retention_bytes", size_text(log.retention_bytes));
        self.line("dead_letter_retention", duration_text(log.dead_letter_retention));
        self.line("dead_letter_bytes", size_text(log.dead_letter_bytes));
    }

    fn webhook(&mut self, webhook: &Webhook) {
        self.heading("[[webhooks]]");
        self.line("id", webhook.id.as_str());
        self.line("product_id", webhook.product_id.as_str());
        self.line("url", webhook.url.masked());
        self.secret("secret", Some(&webhook.secret));
        self.line("types", listed(&webhook.types, &[], String::as_str));
        self.line("session_ids", listed(&webhook.session_ids, &[], |session| session.as_str()));
        self.line("timeout", duration_text(webhook.timeout));
        self.line("max_retries", webhook.max_retries);
        self.line("initial_backoff", duration_text(webhook.initial_backoff));
        self.line("max_backoff", duration_text(webhook.max_backoff));
        self.line("max_in_flight", count(webhook.max_in_flight));
    }

    fn egress(&mut self, egress: &Egress) {
        self.heading("[egress]");
        self.line("allow_networks", texts(&egress.allow_networks));
        self.line("ca_file", path(egress.ca_file.as_ref()));
    }

    fn heading(&mut self, heading: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.push(format_args!("{blank}{heading}\n"));
    }

    fn line(&mut self, key: &str, value: impl Into<Value>) {
        self.push(format_args!("{key} = {}\n", value.into()));
    }

    /// A secret that is not there has no line: `key = ""` would look like one.
    fn secret(&mut self, key: &str, secret: Option<&Secret>) {
        if secret.is_some() {
            self.line(key, MASK);
        }
    }

    fn permissions(&mut self, key: &str, permissions: &Permissions) {
        let names: Vec<&str> = permissions.iter().map(|permission| permission.name()).collect();
        self.line(key, names);
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes all text");
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn listed<'a, T>(only: &'a Only<T>, everything: &[&'a str], text: impl Fn(&'a T) -> &'a str) -> Vec<&'a str> {
    match only {
        Only::Everything => everything.to_vec(),
        Only::These(these) => these.iter().map(text).collect(),
    }
}

/// The path as it was given: it came from UTF-8 text, so nothing is lost.
fn path(path: Option<&PathBuf>) -> String {
    path.map(|path| Path::to_string_lossy(path).into_owned()).unwrap_or_default()
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
