//! `serve`: the relay.
//!
//! May use: `app`, `config`.

use std::path::PathBuf;

use super::{CliError, CommandRuntime};
use crate::{
    app::{App, config_watch::ConfigWatcher},
    config::{AllowAnonymous, Config, ConfigSource, Environment},
};

/// Run the relay: one upstream connection per product, many subscribers.
///
/// Without --config, the environment alone configures the relay: AUTOPLAY_STREAM_URL and
/// AUTOPLAY_APP_UNKEY_TOKEN. It then listens on 127.0.0.1:8080.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept auth.allow_anonymous = true although other machines can reach the relay.
    #[arg(long)]
    allow_anonymous: bool,
}

pub(super) fn run(args: &ServeArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    let environment = Environment::from_process();
    let anonymous = match args.allow_anonymous {
        true => AllowAnonymous::Anywhere,
        false => AllowAnonymous::OnLoopback,
    };
    let (config, source) = match &args.config {
        Some(path) => {
            let source = ConfigSource::new(path.clone(), environment, anonymous);
            let snapshot = source.read();
            (snapshot.config?, Some((source, snapshot.dependencies)))
        }
        None => (Config::from_environment(&environment, anonymous)?, None),
    };
    runtime.serve(|signals| async move {
        let watcher = source.map(|(source, files)| ConfigWatcher::new(source, files));
        Ok(App::start(config)?.run(signals, watcher).await?)
    })
}
