//! `healthcheck`: asks the running relay whether it is ready, for images without a shell.
//!
//! May use: `config`, `error_chain`, `net`, `outbound`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{HeaderMap, StatusCode, Uri};
use tokio::time::timeout;

use super::{CliError, CommandRuntime};
use crate::{
    config::{Config, Environment},
    error_chain::error_chain,
    net::local_address,
    outbound::client::EventStreamClient,
};

/// Exit with 0 if the running relay is ready, otherwise with 1.
///
/// Without --url it asks /readyz where `serve` listens for operators under the same file and the
/// same environment.
#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// URL to ask; without a path, /readyz is asked.
    #[arg(long)]
    url: Option<Uri>,
    /// The configuration file (TOML) that `serve` was started with.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &HealthcheckArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    let url = &match &args.url {
        Some(url) => url.clone(),
        None => configured_url(args.config.as_deref())?,
    };
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(CliError::Usage(format!(
            "--url: {url} is not an http or https URL; write http://host:port/readyz"
        )));
    }
    let url = &readiness_url(url);
    runtime.run(async {
        let client =
            EventStreamClient::new(None).map_err(|error| CliError::Other(error_chain(&error)))?;
        let reply = timeout(HEALTHCHECK_TIMEOUT, client.get(url, HeaderMap::new())).await;
        let exchange = reply
            .map_err(|_| {
                CliError::Other(format!(
                    "{url}: no answer within {} s",
                    HEALTHCHECK_TIMEOUT.as_secs()
                ))
            })?
            .map_err(|error| CliError::Other(format!("{url}: {}", error_chain(&error))))?;
        match exchange.response.status() {
            StatusCode::OK => Ok(()),
            status => Err(CliError::Other(format!("{url}: answered {status}"))),
        }
    })
}

/// Returns the readiness URL of the relay that `serve` runs with this file and this environment.
fn configured_url(config: Option<&Path>) -> Result<Uri, CliError> {
    let address = Config::admin_address(config, &Environment::from_process())?;
    let address = local_address(address);
    let url = format!("http://{address}/readyz");
    url.parse().map_err(|error| CliError::Other(format!("{url}: {error}")))
}

/// Returns the URL to ask. The root of the admin listener is the console, which answers whether or
/// not the relay is ready, so `/` becomes `/readyz`.
fn readiness_url(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    if url.path() == "/" {
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        parts.path_and_query = format!("/readyz{query}").parse().ok();
    }
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// Maximum time for the answer. The checks of Docker and Kubernetes give up at about this time too.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);
