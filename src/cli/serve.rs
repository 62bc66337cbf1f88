//! `serve`: the relay.

use std::path::PathBuf;

use super::{Failure, block_on};
use crate::{
    app::{App, config_watch::Watch},
    config::{AllowAnonymous, Config, Environment, Source},
    shutdown::Signals,
};

/// Run the relay: one upstream connection per product, many subscribers.
///
/// Without --config it runs on the environment alone: AUTOPLAY_STREAM_URL and AUTOPLAY_APP_UNKEY_TOKEN, listening on
/// 127.0.0.1:8080.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Let auth.allow_anonymous = true stand although the relay can be reached from other machines.
    #[arg(long)]
    allow_anonymous: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let environment = Environment::from_process();
    let anonymous = match arguments.allow_anonymous {
        true => AllowAnonymous::Anywhere,
        false => AllowAnonymous::OnLoopback,
    };
    let (config, source) = match &arguments.config {
        Some(path) => {
            let source = Source::new(path.clone(), environment, anonymous);
            let look = source.read();
            (look.config?, Some((source, look.files)))
        }
        None => (Config::from_environment(&environment, anonymous)?, None),
    };
    block_on(async {
        let signals = Signals::listen()?;
        let watch = source.map(|(source, files)| Watch::new(source, files));
        Ok(App::start(config)?.run(signals, watch).await?)
    })
}
