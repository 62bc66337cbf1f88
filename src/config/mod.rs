//! The configuration: raw text in, checked values out.
//!
//! In: a TOML file, the environment, or the environment alone. Out: a [`Config`] in which every
//! value has its own checked type, or all findings at once, each with the key that the operator
//! typed. No other module reads the environment or interprets text of the file.
//!
//! ```text
//! text ─► section ─► entry ─► values, address, network, secret, certificate ─┐
//!            │         │                       │                               │
//!            └─────────┴───── findings ◄───────┘                               ▼
//!                     server, upstream, auth, jwt, log, webhook ─► Config ─► masked
//! ```
//!
//! Each key is one line of its section, which says type, reload rule and reading; `keys` makes the
//! rest of it. `source` reads the configuration again for reloads, and `diff` has the differences.
//!
//! May use: `event`.

mod address;
mod admin_address;
mod auth;
mod certificate;
mod diff;
mod entry;
mod environment;
mod findings;
mod jwt;
mod keys;
mod log;
mod masked;
mod network;
mod parse_context;
mod pem;
mod public_keys;
mod secret;
mod section;
mod server;
mod sidecar;
mod source;
#[cfg(test)]
mod tests;
mod upstream;
mod values;
mod webhook;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub(crate) use self::address::{HostAndPort, Origin};
pub(crate) use self::auth::{AuthConfig, Permission, Permissions};
pub(crate) use self::certificate::{TlsFiles, TlsIdentity, TlsIdentityError};
pub(crate) use self::diff::ConfigDiff;
pub(crate) use self::environment::Environment;
pub(crate) use self::findings::{Finding, Findings};
pub(crate) use self::jwt::{JwtConfig, JwtVerification};
pub(crate) use self::log::{EgressConfig, LogConfig};
pub(crate) use self::network::Network;
pub(crate) use self::pem::read_pem_file as pem_contents;
pub(crate) use self::public_keys::PublicKey;
pub(crate) use self::public_keys::PublicKeyAlgorithm;
pub(crate) use self::secret::Secret;
pub(crate) use self::server::ServerConfig;
pub(crate) use self::source::ConfigSource;
pub(crate) use self::upstream::{ProductConfig, ServedProduct, UpstreamConfig};
pub(crate) use self::values::{format_duration, parse_duration};
pub(crate) use self::webhook::{FieldError, WebhookConfig, WebhookJson};

use crate::event::ProductId;

use self::{
    findings::ConfigLocation,
    keys::{ConfigKeys, config_keys},
    masked::MaskedToml,
    parse_context::ParseContext,
    section::Section,
};

config_keys! {
    /// The configuration; its fields have the names of the sections.
    struct Config {
        /// Listeners, limits and times.
        server: ServerConfig = ByKey;
        /// Upstreams that events come from; may be empty, because products can be registered later.
        upstreams: Vec<UpstreamConfig> = ByKey;
        /// Products without an upstream.
        products: Vec<ProductConfig> = ByKey;
        /// Credentials and permissions.
        auth: AuthConfig = ByKey;
        /// Events that are kept for subscribers that resume.
        log: LogConfig = ByKey;
        /// Receivers that events are pushed to.
        webhooks: Vec<WebhookConfig> = ByKey;
        /// Networks that the relay's own connections may reach.
        egress: EgressConfig = ByKey;
    }
}

/// Listeners on which subscribers without a credential may be admitted. This only permits it:
/// `auth.allow_anonymous` admits them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AllowAnonymous {
    /// Only on loopback addresses, which other machines cannot reach.
    OnLoopback,
    /// On every address: the operator has given `--allow-anonymous`.
    Anywhere,
}

/// Defaults that depend on the way in which the relay is started.
struct StartDefaults {
    listen: SocketAddr,
    allow_anonymous: bool,
}

impl Config {
    /// Reads the file at `path`, with overrides from the environment.
    ///
    /// # Errors
    ///
    /// All findings, or a single one if the file cannot be read.
    pub(crate) fn load(
        path: &Path,
        environment: &Environment,
        anonymous: AllowAnonymous,
    ) -> Result<Self, Findings> {
        Self::load_tracking_files(path, environment, anonymous, &mut BTreeSet::new())
    }

    /// Reads the file at `path`, and adds to `files` every file that the configuration depends on,
    /// including those that are missing or invalid.
    fn load_tracking_files(
        path: &Path,
        environment: &Environment,
        anonymous: AllowAnonymous,
        files: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, Findings> {
        files.insert(path.to_owned());
        let file = path.display().to_string();
        let unreadable =
            |message| Finding { location: ConfigLocation::File(file.clone()), key: None, message };
        let text = read_config_file(path).map_err(unreadable)?;
        Self::parse_tracking_files(&text, &file, environment, anonymous, files)
    }

    /// Reads `text`, which findings call `file`, with overrides from the environment.
    ///
    /// # Errors
    ///
    /// All findings. If the text is not TOML, only the syntax errors: a value that seems missing
    /// may be in the part that could not be parsed.
    pub(crate) fn parse(
        text: &str,
        file: &str,
        environment: &Environment,
        anonymous: AllowAnonymous,
    ) -> Result<Self, Findings> {
        Self::parse_tracking_files(text, file, environment, anonymous, &mut BTreeSet::new())
    }

    fn parse_tracking_files(
        text: &str,
        file: &str,
        environment: &Environment,
        anonymous: AllowAnonymous,
        files: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, Findings> {
        /// With a file, the operator decides about anonymous access, and the server is reached from
        /// outside.
        const FILE_DEFAULTS: StartDefaults =
            StartDefaults { listen: server::DEFAULT_LISTEN, allow_anonymous: false };
        let (document, errors) = DeTable::parse_recoverable(text);
        let context = ParseContext::new(file, text, environment);
        context.report_syntax_errors(&errors);
        if let Some(findings) = context.findings() {
            return Err(findings);
        }
        let config =
            Self::read(Section::root(&context, document.get_ref()), &FILE_DEFAULTS, anonymous);
        files.extend(context.dependencies());
        context.finish().map(|()| config)
    }

    /// Reads a configuration without a file: the sidecar of one product, from `AUTOPLAY_STREAM_URL`
    /// and `AUTOPLAY_APP_UNKEY_TOKEN`.
    ///
    /// # Errors
    ///
    /// All findings; if neither variable is set, a finding that names both ways to start.
    pub(crate) fn from_environment(
        environment: &Environment,
        anonymous: AllowAnonymous,
    ) -> Result<Self, Findings> {
        /// Only its own pod reaches a sidecar, and no operator is there to distribute keys.
        const SIDECAR_DEFAULTS: StartDefaults = StartDefaults {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            allow_anonymous: true,
        };
        let context = ParseContext::new("environment", "", environment);
        let empty = DeTable::new();
        let mut config = Self::read(Section::root(&context, &empty), &SIDECAR_DEFAULTS, anonymous);
        if let Some(upstream) = sidecar::upstream(&context) {
            config.auth.keys.extend(sidecar::upstream_key(&upstream));
            config.upstreams.push(upstream);
        }
        context.finish().map(|()| config)
    }

    /// Reads the whole document. A default replaces each invalid value, so the result is valid only
    /// if there are no findings.
    fn read(mut root: Section<'_>, defaults: &StartDefaults, anonymous: AllowAnonymous) -> Self {
        let [mut server, mut auth, mut log, mut egress] =
            ["server", "auth", "log", "egress"].map(|name| root.section(name));
        let (upstreams, products) = upstream::read_products(&mut root);
        let ids = upstreams
            .iter()
            .map(|it| &it.product_id)
            .chain(products.iter().map(|it| &it.product_id));
        let config = Self {
            server: ServerConfig::read(&mut server, defaults.listen),
            webhooks: WebhookConfig::read_all(&mut root, &ids.collect()),
            upstreams,
            products,
            auth: AuthConfig::read_keys(&mut auth, defaults.allow_anonymous),
            log: LogConfig::read_keys(&mut log),
            egress: EgressConfig::read_keys(&mut egress),
        };
        config.check_anonymous(&mut server, &mut auth, anonymous);
        config.check_admin(&mut server, &auth);
        [root, server, auth, log, egress].into_iter().for_each(Section::finish);
        config
    }

    fn check_anonymous(
        &self,
        server: &mut Section<'_>,
        auth: &mut Section<'_>,
        anonymous: AllowAnonymous,
    ) {
        let listen = server.entry("listen");
        let is_open = self.auth.allow_anonymous && !binds_loopback(self.server.listen);
        if is_open && anonymous == AllowAnonymous::OnLoopback && listen.is_free_of_findings() {
            let address = self.server.listen;
            let at_fault = if listen.is_given() { listen } else { auth.entry("allow_anonymous") };
            at_fault.report(format!(
                "{address} can be reached from outside while auth.allow_anonymous is true; \
                 set server.listen to 127.0.0.1:8080 or the like, or auth.allow_anonymous to false, or give --allow-anonymous"
            ));
        }
    }

    fn check_admin(&self, server: &mut Section<'_>, auth: &Section<'_>) {
        let listen = server.entry("admin_listen");
        let is_open = self.auth.admin_key.is_none() && !binds_loopback(self.server.admin_listen);
        // An invalid admin key has a finding of its own.
        if is_open && listen.is_free_of_findings() && auth.context().accepts("auth.admin_key") {
            let address = self.server.admin_listen;
            listen.report(format!(
                "{address} can be reached from outside; set auth.admin_key, or listen on 127.0.0.1"
            ));
        }
    }
}

impl Config {
    /// Returns the products that the relay serves, with and without an upstream.
    pub(crate) fn served_products(&self) -> impl Iterator<Item = ServedProduct<'_>> {
        let upstreams = self.upstreams.iter();
        upstreams
            .map(|upstream| ServedProduct { id: &upstream.product_id, upstream: Some(upstream) })
            .chain(
                self.products.iter().map(|it| ServedProduct { id: &it.product_id, upstream: None }),
            )
    }

    /// Returns a product, if the relay serves it.
    pub(crate) fn served_product(&self, id: &ProductId) -> Option<ServedProduct<'_>> {
        self.served_products().find(|product| product.id == id)
    }

    /// Returns the configuration in force as TOML, with defaults and overrides; every secret reads
    /// `"********"`.
    pub(crate) fn to_masked_toml(&self) -> String {
        let mut document = MaskedToml::default();
        self.write_keys("", &mut document);
        document.text
    }

    /// Returns the keys, in the order of the file's tables, whose change waits for a restart.
    pub(crate) fn restart_only_keys(&self) -> Vec<String> {
        self.merge_reload(self.clone()).1.restart_only
    }

    /// Merges `new` into this running configuration; keys that wait for a restart keep their old
    /// values.
    fn merge_reload(&self, new: Self) -> (Self, ConfigDiff) {
        let mut diff = ConfigDiff::default();
        (self.merge_keys(new, "", &mut diff), diff)
    }

    /// Returns why this configuration would admit strangers, if it would. This concerns a reload of
    /// which a part waits for a restart; [`Config::read`] has checked each file by the same rules.
    fn exposure_error(&self, anonymous: AllowAnonymous) -> Option<&'static str> {
        let is_open = self.auth.allow_anonymous && !binds_loopback(self.server.listen);
        if is_open && anonymous == AllowAnonymous::OnLoopback {
            return Some(
                "auth.allow_anonymous would be true, and other machines can reach the server.listen in force; restart the relay to change both",
            );
        }
        let is_admin_open =
            self.auth.admin_key.is_none() && !binds_loopback(self.server.admin_listen);
        is_admin_open.then_some(
            "auth.admin_key would be removed, and other machines can reach the server.admin_listen in force; restart the relay to change both",
        )
    }
}

/// Returns the text of a configuration file, or why it is not read. A mistaken path may lead to any
/// file, so the size has a bound.
fn read_config_file(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(MAX_CONFIG_TEXT_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > MAX_CONFIG_TEXT_BYTES => {
            Err("is larger than 4 MiB; name the relay's own configuration file, which has to be smaller".to_owned())
        }
        Ok(_) => String::from_utf8(bytes).map_err(|_| "cannot read the file: it is not UTF-8 text".to_owned()),
        Err(error) => Err(format!("cannot read the file: {error}")),
    }
}

/// Maximum size of a configuration file: enough for thousands of keys and webhooks.
const MAX_CONFIG_TEXT_BYTES: u64 = 4 * 1024 * 1024;

fn binds_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
