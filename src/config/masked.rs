//! The effective configuration as TOML with masked secrets, as `check` prints it.
//!
//! In: a [`Config`]. Out: a document in the layout of the documentation, which can be read back
//! once the masks are replaced.
//!
//! May use: `event`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use toml::Value;

use super::{
    Config, Secret,
    auth::{AuthConfig, Permissions, StaticKeyConfig},
    certificate::TlsFiles,
    jwt::{JwtConfig, JwtVerification},
    log::{EgressConfig, LogConfig},
    secret::MASK,
    server::ServerConfig,
    upstream::UpstreamConfig,
    values::{format_duration, format_size},
    webhook::WebhookConfig,
};
use crate::event::Only;

impl Config {
    /// Returns the configuration in force as TOML, with defaults and overrides; every secret reads
    /// `"********"`.
    pub(crate) fn to_masked_toml(&self) -> String {
        let mut document = MaskedToml::default();
        document.server(&self.server);
        self.upstreams.iter().for_each(|upstream| document.upstream(upstream));
        document.auth(&self.auth);
        document.log(&self.log);
        self.webhooks.iter().for_each(|webhook| document.webhook(webhook));
        document.egress(&self.egress);
        document.text
    }
}

/// The part of the document that is already written.
#[derive(Default)]
struct MaskedToml {
    text: String,
}

impl MaskedToml {
    fn server(&mut self, server: &ServerConfig) {
        self.heading("[server]");
        self.line("listen", server.listen.to_string());
        self.line("admin_listen", server.admin_listen.to_string());
        self.line(
            "probe_listen",
            server.probe_listen.map(|address| address.to_string()).unwrap_or_default(),
        );
        self.line("allowed_hosts", to_strings(&server.allowed_hosts));
        self.line("trusted_proxies", to_strings(&server.trusted_proxies));
        self.line("heartbeat_interval", format_duration(server.heartbeat_interval));
        self.line("write_timeout", format_duration(server.write_timeout));
        self.line("head_timeout", format_duration(server.head_timeout));
        self.line("max_publish_bytes", format_size(server.max_publish_bytes));
        self.line(
            "max_connection_age",
            format_duration(server.max_connection_age.unwrap_or_default()),
        );
        self.line("max_connects_per_second", server.max_connects_per_second.unwrap_or_default());
        self.line(
            "max_subscribers_per_key",
            toml_integer(server.max_subscribers_per_key.unwrap_or_default()),
        );
        self.line("max_concurrent_replays", toml_integer(server.max_concurrent_replays));
        self.line("max_subscribers", toml_integer(server.max_subscribers));
        self.line(
            "max_subscribers_per_ip",
            toml_integer(server.max_subscribers_per_ip.unwrap_or_default()),
        );
        self.line("drain_window", format_duration(server.drain_window));
        let origins: Vec<&str> =
            server.cors_allowed_origins.iter().map(|origin| origin.as_str()).collect();
        self.line("cors_allowed_origins", origins);
        let files =
            server.tls.as_ref().map(|TlsFiles { cert_file, key_file }| (cert_file, key_file));
        self.line("tls_cert_file", path_text(files.map(|(cert, _)| cert)));
        self.line("tls_key_file", path_text(files.map(|(_, key)| key)));
    }

    fn upstream(&mut self, upstream: &UpstreamConfig) {
        self.heading("[[upstreams]]");
        self.line("product_id", upstream.product_id.as_str());
        self.line("url", upstream.url.masked());
        self.secret("token", upstream.token.as_ref());
        self.line("heartbeat_timeout", format_duration(upstream.heartbeat_timeout));
        self.line("max_event_bytes", format_size(upstream.max_event_bytes));
    }

    fn auth(&mut self, auth: &AuthConfig) {
        self.heading("[auth]");
        self.line("allow_anonymous", auth.allow_anonymous);
        self.permissions("anonymous_permissions", &auth.anonymous_permissions);
        self.secret("admin_key", auth.admin_key.as_ref());
        auth.keys.iter().for_each(|key| self.key(key));
        if let Some(jwt) = &auth.jwt {
            self.jwt(jwt);
        }
    }

    fn key(&mut self, key: &StaticKeyConfig) {
        self.heading("[[auth.keys]]");
        self.line("name", key.name.as_str());
        self.secret("key", Some(&key.key));
        self.line("products", only_to_list(&key.products, &["*"], |product| product.as_str()));
        self.permissions("permissions", &key.permissions);
    }

    fn jwt(&mut self, jwt: &JwtConfig) {
        self.heading("[auth.jwt]");
        self.line("algorithm", jwt.verification.algorithm_name());
        match &jwt.verification {
            JwtVerification::SharedSecret { secret, previous_secret } => {
                self.secret("secret", Some(secret));
                self.secret("previous_secret", previous_secret.as_ref());
            }
            JwtVerification::PublicKeys { public_key_file, .. } => {
                self.line("public_key_file", path_text(Some(public_key_file)));
            }
        }
        self.line("audience", jwt.audience.as_deref().unwrap_or_default());
        self.line("allow_query_token", jwt.allow_query_token);
        self.line("cookie_name", jwt.cookie_name.as_deref().unwrap_or_default());
    }

    fn log(&mut self, log: &LogConfig) {
        self.heading("[log]");
        self.line("memory_events", toml_integer(log.memory_events));
        self.line("memory_bytes", format_size(log.memory_bytes));
        self.line("data_dir", path_text(log.data_dir.as_ref()));
        self.line("retention", format_duration(log.retention));
        self.line("retention_bytes", format_size(log.retention_bytes));
        self.line("dead_letter_retention", format_duration(log.dead_letter_retention));
        self.line("dead_letter_bytes", format_size(log.dead_letter_bytes));
    }

    fn webhook(&mut self, webhook: &WebhookConfig) {
        self.heading("[[webhooks]]");
        self.line("id", webhook.id.as_str());
        self.line("product_id", webhook.product_id.as_str());
        self.line("url", webhook.url.masked());
        self.secret("secret", Some(&webhook.secret));
        self.line("types", only_to_list(&webhook.types, &[], String::as_str));
        self.line(
            "session_ids",
            only_to_list(&webhook.session_ids, &[], |session| session.as_str()),
        );
        self.line("timeout", format_duration(webhook.timeout));
        self.line("max_retries", webhook.max_retries);
        self.line("initial_backoff", format_duration(webhook.initial_backoff));
        self.line("max_backoff", format_duration(webhook.max_backoff));
        self.line("max_in_flight", toml_integer(webhook.max_in_flight));
    }

    fn egress(&mut self, egress: &EgressConfig) {
        self.heading("[egress]");
        self.line("allow_networks", to_strings(&egress.allow_networks));
        self.line("ca_file", path_text(egress.ca_file.as_ref()));
    }

    fn heading(&mut self, heading: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.write(format_args!("{blank}{heading}\n"));
    }

    fn line(&mut self, key: &str, value: impl Into<Value>) {
        self.write(format_args!("{key} = {}\n", value.into()));
    }

    /// Writes a masked secret. An absent secret has no line, because `key = ""` would look like a
    /// secret.
    fn secret(&mut self, key: &str, secret: Option<&Secret>) {
        if secret.is_some() {
            self.line(key, MASK);
        }
    }

    fn permissions(&mut self, key: &str, permissions: &Permissions) {
        let names: Vec<&str> = permissions.iter().map(|permission| permission.name()).collect();
        self.line(key, names);
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes all text");
    }
}

fn to_strings<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn only_to_list<'a, T>(
    only: &'a Only<T>,
    everything: &[&'a str],
    text: impl Fn(&'a T) -> &'a str,
) -> Vec<&'a str> {
    match only {
        Only::Everything => everything.to_vec(),
        Only::These(these) => these.iter().map(text).collect(),
    }
}

/// Returns the path as text. It was UTF-8 in the configuration, so the conversion loses nothing.
fn path_text(path: Option<&PathBuf>) -> String {
    path.map(|path| Path::to_string_lossy(path).into_owned()).unwrap_or_default()
}

fn toml_integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
