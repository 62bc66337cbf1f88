//! What the operator wants: raw text in, checked values out.
//!
//! In: a TOML file, the environment, or the environment alone. Out: a [`Config`] in which every
//! value is of its own checked type, or all that is wrong with it at once, by the key the operator
//! typed. No other room reads the environment, and none interprets text from the file.
//!
//! ```text
//! text ─► section ─► entry ─► values, address, network, secret, certificate ─► server, upstream, auth, jwt, log, webhook ─► Config
//!           └─────────┴────────────── findings ◄────────────────────────┘                                     └► masked
//! ```
//!
//! `source` reads it again and again, `diff` tells the next one from the one in force.
//!
//! May use: no other module.

mod address;
mod auth;
mod certificate;
mod diff;
mod entry;
mod environment;
mod findings;
mod jwt;
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
pub(crate) use self::upstream::UpstreamConfig;
pub(crate) use self::values::{format_duration, parse_duration};
pub(crate) use self::webhook::{FieldError, WebhookConfig, WebhookJson};

use self::{findings::ConfigLocation, parse_context::ParseContext, section::Section};

/// All that can be configured; the fields have the names of the sections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Config {
    /// Listeners, limits and times.
    pub(crate) server: ServerConfig,
    /// Where events come from; may be empty, as products can be registered later.
    pub(crate) upstreams: Vec<UpstreamConfig>,
    /// Who may do what.
    pub(crate) auth: AuthConfig,
    /// What is kept for those who resume.
    pub(crate) log: LogConfig,
    /// Whom events are pushed to.
    pub(crate) webhooks: Vec<WebhookConfig>,
    /// What the relay's own connections may reach.
    pub(crate) egress: EgressConfig,
}

/// Where subscribers without a credential may be let in. It allows; only `auth.allow_anonymous`
/// does it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AllowAnonymous {
    /// Only where nobody but this machine can come from.
    OnLoopback,
    /// Anywhere: the operator has given `--allow-anonymous`.
    Anywhere,
}

/// What a key means that is not given, where that depends on the way the relay is started.
struct StartDefaults {
    listen: SocketAddr,
    allow_anonymous: bool,
}

impl Config {
    /// Reads the file at `path`, with overrides from the environment.
    ///
    /// # Errors
    ///
    /// All that is wrong, or that the file cannot be read.
    pub(crate) fn load(
        path: &Path,
        environment: &Environment,
        anonymous: AllowAnonymous,
    ) -> Result<Self, Findings> {
        Self::load_tracking_files(path, environment, anonymous, &mut BTreeSet::new())
    }

    /// The same, and notes in `files` which files it relies on, whether they are as they should be
    /// or not.
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
    /// All that is wrong. Of a text that is not TOML, only that: what seems missing may be what was
    /// not understood.
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
        /// A file says whom to let in, and a server is reached from outside.
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

    /// Starts without a file: the sidecar of one product, told by `AUTOPLAY_STREAM_URL` and
    /// `AUTOPLAY_APP_UNKEY_TOKEN`.
    ///
    /// # Errors
    ///
    /// All that is wrong, or how to start when nothing says which way.
    pub(crate) fn from_environment(
        environment: &Environment,
        anonymous: AllowAnonymous,
    ) -> Result<Self, Findings> {
        /// Only its own pod reaches a sidecar, and nobody is there to hand out keys.
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

    /// Reads the whole document. A default stands in for what is wrong, so the result counts only
    /// if nothing was.
    fn read(mut root: Section<'_>, defaults: &StartDefaults, anonymous: AllowAnonymous) -> Self {
        let (mut server, mut auth) = (root.section("server"), root.section("auth"));
        let upstreams = UpstreamConfig::read_all(&mut root);
        let config = Self {
            server: ServerConfig::read(&mut server, defaults.listen),
            webhooks: WebhookConfig::read_all(&mut root, &upstreams),
            upstreams,
            auth: AuthConfig::read(&mut auth, defaults.allow_anonymous),
            log: LogConfig::read(root.section("log")),
            egress: EgressConfig::read(root.section("egress")),
        };
        config.check_anonymous(&mut server, &mut auth, anonymous);
        config.check_admin(&mut server, &auth);
        [root, server, auth].into_iter().for_each(Section::finish);
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
        // A key that was given but is unfit has a finding of its own.
        if is_open && listen.is_free_of_findings() && auth.context().accepts("auth.admin_key") {
            let address = self.server.admin_listen;
            listen.report(format!(
                "{address} can be reached from outside; set auth.admin_key, or listen on 127.0.0.1"
            ));
        }
    }
}

impl Config {
    /// Why this would let strangers in, if it would: for a configuration of which a part waits for
    /// a restart. What is read from one file has been checked by the same rules.
    fn exposure_error(&self, anonymous: AllowAnonymous) -> Option<&'static str> {
        let is_open = self.auth.allow_anonymous && !binds_loopback(self.server.listen);
        if is_open && anonymous == AllowAnonymous::OnLoopback {
            return Some(
                "auth.allow_anonymous would be true on the server.listen in force, which others can reach: restart",
            );
        }
        let is_admin_open =
            self.auth.admin_key.is_none() && !binds_loopback(self.server.admin_listen);
        is_admin_open.then_some(
            "auth.admin_key would be none on the server.admin_listen in force, which others can reach: restart",
        )
    }
}

/// What a file of the configuration holds; or why it is not read. A mistaken path may lead to
/// anything.
fn read_config_file(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(MAX_CONFIG_TEXT_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > MAX_CONFIG_TEXT_BYTES => {
            Err("is larger than 4 MiB; name the relay's own configuration; one of that size is not read".to_owned())
        }
        Ok(_) => String::from_utf8(bytes).map_err(|_| "cannot read it: it is not UTF-8 text".to_owned()),
        Err(error) => Err(format!("cannot read it: {error}")),
    }
}

/// Thousands of keys and webhooks have room in it.
const MAX_CONFIG_TEXT_BYTES: u64 = 4 * 1024 * 1024;

fn binds_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
