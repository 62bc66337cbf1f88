//! `token`: a scoped token for a subscriber.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{Failure, duration, print};
use crate::{
    auth::{self, Order},
    config::{AllowAnonymous, Config, Environment, Secret, Verification},
    event::{Kind, ProductId, SessionId},
};

/// Mint a scoped token that may subscribe, and print it.
///
/// It is signed with auth.jwt.secret and carries auth.jwt.audience. Whoever holds it sees one product and, where sessions or types
/// are named, nothing else of it. Nothing can take it back before its end but another secret.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file (TOML) of the relay that is to accept it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The product it opens.
    #[arg(long, value_name = "ID", value_parser = product)]
    product: ProductId,
    /// A session it is limited to; repeatable.
    #[arg(long = "session-id", value_name = "S", value_parser = session)]
    sessions: Vec<SessionId>,
    /// A type of events it is limited to; repeatable.
    #[arg(long = "type", value_name = "T", value_parser = kind)]
    kinds: Vec<Kind>,
    /// How long it is good for, e.g. 15m.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = ttl)]
    ttl: Duration,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config: file, product, sessions, kinds, ttl } = arguments;
    let config = Config::load(&file, &Environment::from_process(), AllowAnonymous::Anywhere)?;
    let (secret, audience) =
        signing(&config).map_err(|message| Failure::Usage(format!("{}: {message}", file.display())))?;
    if !config.upstreams.iter().any(|upstream| upstream.product_id == product) {
        tracing::warn!(%product, "the configuration has no upstream for this product");
    }
    let order = Order { product, sessions: BTreeSet::from_iter(sessions), kinds: BTreeSet::from_iter(kinds), ttl };
    let token =
        auth::mint(secret, audience, &order).map_err(|error| Failure::Other(format!("cannot sign: {error}")))?;
    print(&token);
    Ok(())
}

/// What a token is signed with, and for which audience.
fn signing(config: &Config) -> Result<(&Secret, Option<&str>), String> {
    let jwt = config.auth.jwt.as_ref().ok_or("[auth.jwt] is missing; scoped tokens are signed with its secret")?;
    match &jwt.verification {
        Verification::Shared { secret, .. } => Ok((secret, jwt.audience.as_deref())),
        Verification::Public { .. } => {
            let algorithm = jwt.verification.algorithm_name();
            Err(format!(
                "auth.jwt.algorithm: with {algorithm} the relay has public keys only; mint the token where the private key is"
            ))
        }
    }
}

fn product(text: &str) -> Result<ProductId, String> {
    ProductId::new(text).map_err(|error| error.to_string())
}

fn session(text: &str) -> Result<SessionId, String> {
    SessionId::new(text).map_err(|error| error.to_string())
}

fn kind(text: &str) -> Result<Kind, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(Kind::new(text)) }
}

fn ttl(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|ttl| if ttl.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(ttl) })
}
