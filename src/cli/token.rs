//! `token`: mints a scoped token for a subscriber.
//!
//! May use: `auth`, `config`, `event`.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{CliError, parse_duration, print_line};
use crate::{
    auth::{self, TokenSpec},
    config::{AllowAnonymous, Config, Environment, JwtVerification, Secret},
    event::{Kind, ProductId, SessionId, UserId},
};

/// Mint a scoped token that permits subscribing, and print it.
///
/// The token is signed with auth.jwt.secret and carries auth.jwt.audience. Its holder sees one
/// product and, if sessions, users or types are given, only these. A token cannot be revoked before
/// its expiry, except by changing the secret.
#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// The configuration file (TOML) of the relay that is to accept the token.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Product that the token grants.
    #[arg(long, value_name = "ID", value_parser = parse_product)]
    product: ProductId,
    /// Session that the token is limited to; may be given several times.
    #[arg(long = "session-id", value_name = "S", value_parser = parse_session)]
    sessions: Vec<SessionId>,
    /// User that the token is limited to; may be given several times.
    #[arg(long = "user-id", value_name = "U", value_parser = parse_user)]
    users: Vec<UserId>,
    /// Event type that the token is limited to; may be given several times.
    #[arg(long = "type", value_name = "T", value_parser = parse_kind)]
    kinds: Vec<Kind>,
    /// Lifetime of the token, e.g. 15m.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
}

pub(super) fn run(args: TokenArgs) -> Result<(), CliError> {
    let TokenArgs { config: file, product, sessions, users, kinds, ttl } = args;
    let config = Config::load(&file, &Environment::from_process(), AllowAnonymous::Anywhere)?;
    let (secret, audience) = signing_secret(&config)
        .map_err(|message| CliError::Usage(format!("{}: {message}", file.display())))?;
    if config.served_product(&product).is_none() {
        tracing::warn!(%product, "the configuration does not have this product");
    }
    let spec = TokenSpec {
        product,
        sessions: BTreeSet::from_iter(sessions),
        users: BTreeSet::from_iter(users),
        kinds: BTreeSet::from_iter(kinds),
        ttl,
    };
    let token = auth::mint(secret, audience, &spec)
        .map_err(|error| CliError::Other(format!("cannot sign the token: {error}")))?;
    print_line(&token)
}

/// Returns the secret that signs tokens, and their audience.
fn signing_secret(config: &Config) -> Result<(&Secret, Option<&str>), String> {
    let jwt =
        config.auth.jwt.as_ref().ok_or("[auth.jwt] is missing; its secret signs scoped tokens")?;
    match &jwt.verification {
        JwtVerification::SharedSecret { secret, .. } => Ok((secret, jwt.audience.as_deref())),
        JwtVerification::PublicKeys { .. } => {
            let algorithm = jwt.verification.algorithm_name();
            Err(format!(
                "auth.jwt.algorithm: with {algorithm} the relay has public keys only; mint the token with the private key"
            ))
        }
    }
}

fn parse_product(text: &str) -> Result<ProductId, String> {
    ProductId::new(text).map_err(|error| error.to_string())
}

fn parse_session(text: &str) -> Result<SessionId, String> {
    SessionId::new(text).map_err(|error| error.to_string())
}

fn parse_user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| error.to_string())
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(Kind::new(text)) }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|ttl| {
        if ttl.is_zero() { Err("must be longer than 0s".to_owned()) } else { Ok(ttl) }
    })
}
